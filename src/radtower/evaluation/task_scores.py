"""What a task measured on one model, kept per row, so that two models can be compared on the same rows.

Axes: N rows, K metrics, R resamples.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.bootstrap import count_bootstrap, percentile_interval
from radtower.evaluation.results import Direction, MetricResult, Provenance, measured


class NothingToMeasure(ValueError):
    """The data have no question for a task; the message says which task, and what is missing."""


@dataclass(frozen=True, kw_only=True)
class Metric:
    """One of the K numbers of a task; see ``MetricResult``. ``undefined_because`` is said where it is NaN."""

    name: str
    n: int
    n_positive: int | None = None
    finding: str | None = None
    threshold: float | None = None
    note: str | None = None
    undefined_because: str = "too few rows to measure it on"


@dataclass(frozen=True, kw_only=True)
class TaskScores:
    """K metrics of one model on one task.

    Args:
        task: Name of the task.
        provenance: Data, class set, label source; ``protocol`` says what counts.
        metrics: The K metrics.
        patient_ids: ``(N,)``.
        weighted: Counts ``(R, N)`` -> values ``(R, K)``, NaN where undefined.
        direction: Which side asks, for retrieval.
    """

    task: str
    provenance: Provenance
    metrics: tuple[Metric, ...]
    patient_ids: np.ndarray
    weighted: Callable[[np.ndarray], np.ndarray]
    direction: Direction | None = None

    def values(self) -> np.ndarray:
        """Return the ``(K,)`` values on the rows as they are."""
        return self.weighted(np.ones((1, len(self.patient_ids))))[0]

    def results(self, num_resamples: int = 2000, seed: int = 0) -> list[MetricResult]:
        """Return the metrics with intervals over resampled patients."""
        return _results(self, self.weighted, self.provenance, "", (num_resamples, seed))

    def minus(
        self, baseline: "TaskScores", name: str, num_resamples: int = 2000, seed: int = 0
    ) -> list[MetricResult]:
        """Return the paired differences to a baseline: both are measured on the same resampled patients.

        Raises:
            ValueError: If the two were not measured on the same rows.
        """
        same_rows = np.array_equal(self.patient_ids, baseline.patient_ids)
        mine, theirs = ([(m.name, m.finding, m.n) for m in s.metrics] for s in (self, baseline))
        if not same_rows or mine != theirs:
            raise ValueError(
                f"baseline must be measured on the same {len(self.patient_ids)} rows and {len(mine)} "
                f"metrics, got {len(baseline.patient_ids)} and {len(theirs)}. "
                "Build the tasks once, for all models."
            )
        protocol = "; ".join(filter(None, [self.provenance.protocol, f"model minus {name}"]))
        provenance = self.provenance.model_copy(update={"protocol": protocol})

        def difference(counts: np.ndarray) -> np.ndarray:
            return self.weighted(counts) - baseline.weighted(counts)

        return _results(self, difference, provenance, "_difference", (num_resamples, seed))


def mean_scores(values: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
    """Return the weighted means of ``(N, K)`` values over the rows where they are not NaN."""
    is_there = np.isfinite(values)
    filled = np.where(is_there, values, 0.0)

    def weighted(counts: np.ndarray) -> np.ndarray:
        total = counts @ is_there
        return np.where(total > 0, counts @ filled / np.maximum(total, 1), np.nan)

    return weighted


def _results(
    scores: TaskScores,
    weighted: Callable[[np.ndarray], np.ndarray],
    provenance: Provenance,
    suffix: str,
    resampling: tuple[int, int],
) -> list[MetricResult]:
    values = weighted(np.ones((1, len(scores.patient_ids))))[0]
    resampled = count_bootstrap(weighted, scores.patient_ids, *resampling)
    return [
        measured(
            metric.name + suffix,
            float(values[column]),
            percentile_interval(resampled[:, column], scores.patient_ids),
            provenance,
            n=metric.n,
            n_positive=metric.n_positive,
            finding=metric.finding,
            threshold=None if suffix else metric.threshold,
            direction=scores.direction,
            note=None if suffix else metric.note,
            undefined_because=metric.undefined_because,
        )
        for column, metric in enumerate(scores.metrics)
    ]
