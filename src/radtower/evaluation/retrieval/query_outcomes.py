"""What came out for each query -> metrics with intervals and chance, and the rows behind them.

Axes: Q queries, K metrics.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import pandas as pd

from radtower.evaluation.bootstrap import count_bootstrap, percentile_interval
from radtower.evaluation.results import Direction, MetricResult, Provenance, measured
from radtower.evaluation.retrieval.images.ranked_gains import PerQuery
from radtower.evaluation.retrieval.ranks import RetrievalOptions, summarize_ranks
from radtower.evaluation.rows import QUERY_COLUMNS
from radtower.evaluation.task_scores import mean_scores

FIXED_GALLERY = "queries resampled, gallery fixed"


class Measures(Protocol):
    """Metrics for ``results.json``, what could not be measured and why, and outcomes per query."""

    @property
    def metrics(self) -> Sequence[MetricResult]: ...
    @property
    def not_measured(self) -> Sequence[str]: ...
    @property
    def query_rows(self) -> pd.DataFrame: ...


@dataclass(frozen=True)
class MeasuredQueries:
    """See :class:`Measures`; ``query_rows`` has the columns of ``QueryRows``."""

    metrics: tuple[MetricResult, ...]
    not_measured: tuple[str, ...]
    query_rows: pd.DataFrame


@dataclass(frozen=True, kw_only=True)
class QueryOutcomes:
    """Outcomes of Q queries in one direction, under one protocol.

    Args:
        provenance: Data, class set, label source and protocol.
        direction: What asks for what.
        query_ids: ``(Q,)``.
        patient_ids: ``(Q,)``.
        notes: For every metric.
    """

    provenance: Provenance
    direction: Direction
    query_ids: np.ndarray
    patient_ids: np.ndarray
    notes: tuple[str, ...] = ()

    def rank_results(
        self,
        ranks: np.ndarray,
        chance: Mapping[str, float],
        ks: Sequence[int],
        options: RetrievalOptions,
    ) -> list[MetricResult]:
        """Return recall@k, median rank and MRR of ``(Q,)`` ranks."""
        return [
            measured(
                name,
                value,
                interval,
                self.provenance,
                n=len(ranks),
                direction=self.direction,
                note="; ".join((FIXED_GALLERY, *self.notes)),
                chance=chance[name],
            )
            for name, (value, interval) in summarize_ranks(ranks, self.patient_ids, ks, options).items()
        ]

    def mean_results(
        self, metrics: Mapping[str, PerQuery], options: RetrievalOptions, undefined_because: str
    ) -> list[MetricResult]:
        """Return the means of K metrics over the queries where they are defined.

        Args:
            metrics: By name; NaN where a query has no value. A chance of NaN everywhere is none.
            options: Resampling.
            undefined_because: Why a query has no value.
        """
        values = np.column_stack([item.values for item in metrics.values()])
        weighted = mean_scores(values)
        whole = weighted(np.ones((1, len(values))))[0]
        resampled = count_bootstrap(weighted, self.patient_ids, options.num_resamples, options.seed)
        results = []
        for column, (name, item) in enumerate(metrics.items()):
            is_defined = np.isfinite(item.values)
            chances = item.chance[is_defined & np.isfinite(item.chance)]
            num_left_out = int((~is_defined).sum())
            left_out = [f"{num_left_out} queries left out: {undefined_because}"] if num_left_out else []
            results.append(
                measured(
                    name,
                    float(whole[column]),
                    percentile_interval(resampled[:, column], self.patient_ids),
                    self.provenance,
                    n=int(is_defined.sum()),
                    direction=self.direction,
                    note="; ".join((FIXED_GALLERY, *self.notes, *left_out)),
                    chance=float(chances.mean()) if len(chances) else None,
                    undefined_because=undefined_because,
                )
            )
        return results

    def rows(self, values: Mapping[str, np.ndarray]) -> pd.DataFrame:
        """Return rows with the columns of ``QueryRows``; a query without a value has none."""
        where = self.provenance
        frames = [
            pd.DataFrame(
                {
                    "dataset": where.dataset,
                    "class_set": where.class_set,
                    "label_source": where.label_source,
                    "protocol": where.protocol,
                    "direction": self.direction,
                    "query_id": self.query_ids,
                    "patient_id": self.patient_ids,
                    "metric": name,
                    "value": column.astype(np.float64),
                }
            )
            for name, column in values.items()
        ]
        known = pd.concat(frames, ignore_index=True).dropna(subset=["value"])
        return known[list(QUERY_COLUMNS)].reset_index(drop=True)


def joined(parts: Iterable[Measures]) -> MeasuredQueries:
    """Put the measures of several tasks together."""
    parts = list(parts)
    rows = [part.query_rows for part in parts if len(part.query_rows)]
    return MeasuredQueries(
        tuple(item for part in parts for item in part.metrics),
        tuple(dict.fromkeys(why for part in parts for why in part.not_measured)),
        pd.concat(rows, ignore_index=True) if rows else pd.DataFrame(columns=list(QUERY_COLUMNS)),
    )
