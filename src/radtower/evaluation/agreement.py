"""Silver labels against gold labels: how far a labeler can be trusted, per finding and as a whole.

Axes: N reports, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from radtower.data.targets import MASKED_TARGET, Status, TargetPolicy
from radtower.evaluation.bootstrap import Interval, count_bootstrap, percentile_interval
from radtower.evaluation.metrics import auroc_per_finding, binary_metrics, bootstrap_auroc, macro_mean
from radtower.evaluation.results import MetricResult, Provenance, measured

# A finding that gold is silent about is not there; an uncertain one is no truth.
_GOLD_POLICY = TargetPolicy(uncertain=None, not_mentioned=0.0)
_HARD_SCORE = {Status.PRESENT: 1.0, Status.UNCERTAIN: 0.5, Status.ABSENT: 0.0, Status.NOT_MENTIONED: 0.0}
_DECISIONS = ("f1", "precision", "recall", "kappa")


@dataclass(frozen=True)
class Agreement:
    """The outcome of a comparison.

    ``metrics``: AUROC, F1, precision, recall, kappa per finding and as macro mean; exact-row agreement.
    ``confusion``: per finding a 4x4 table of counts, rows gold, columns silver.
    ``num_failed`` reports have no silver label and are in no metric, so a labeler that fails on the hard
    reports looks better than it is.
    """

    metrics: tuple[MetricResult, ...]
    confusion: dict[str, pd.DataFrame]
    num_compared: int
    num_failed: int


@dataclass(frozen=True)
class _Sample:
    scores: np.ndarray  # (N, F)
    is_present: np.ndarray  # (N, F) bool, silver
    labels: np.ndarray  # (N, F) gold: 0, 1 or -100
    patient_ids: np.ndarray  # (N,)


def compare_labels(
    silver: pd.DataFrame,
    gold: pd.DataFrame,
    provenance: Provenance,
    *,
    scores: np.ndarray | None = None,
    patient_ids: Sequence[object] | np.ndarray | None = None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Agreement:
    """Compare two tables of status values.

    Positive means present; an uncertain silver label counts as not present in all but AUROC. An uncertain
    gold label is left out of all of them.

    Args:
        silver: ``(N, F)`` status values of the labeler; a row of missing cells is a report it failed on.
        gold: ``(N, F)`` status values, same index and columns in the same order.
        provenance: Data set, class set and source of the gold labels.
        scores: ``(N, F)`` P(present) of the labeler; None derives three levels from the status (present 1,
            uncertain 0.5, else 0), which the note of the AUROC then says.
        patient_ids: ``(N,)``; None takes every report for a patient of its own.
        num_resamples: Number of bootstrap resamples.
        seed: Seed of the resampling.

    Raises:
        ValueError: If the tables do not match, or no report has a silver label.
    """
    _check_tables(silver, gold, scores, patient_ids)
    kept = silver.notna().all(axis=1).to_numpy()
    if not kept.any():
        raise ValueError(f"silver must have labels, got {len(silver)} failed reports of {len(silver)}.")
    silver, gold = silver[kept], gold[kept]
    hard = silver.map(lambda status: _HARD_SCORE[Status(status)]).to_numpy(dtype=np.float64)
    sample = _Sample(
        scores=hard if scores is None else np.asarray(scores, dtype=np.float64)[kept],
        is_present=(silver == Status.PRESENT).to_numpy(dtype=bool),
        labels=_GOLD_POLICY.targets_from_status(gold),
        patient_ids=np.arange(int(kept.sum())) if patient_ids is None else np.asarray(patient_ids)[kept],
    )
    num_failed = int((~kept).sum())
    note = f"{num_failed} reports without silver labels left out" if num_failed else None
    keys = list(gold.columns)
    report = _Reporter(provenance, note, num_resamples, seed)
    metrics = [
        *_auroc_results(sample, keys, report, "three-level score" if scores is None else None),
        *_decision_results(sample, keys, report),
        _exact_row_result(sample, report),
    ]
    confusion = {key: _confusion(gold[key], silver[key]) for key in keys}
    return Agreement(tuple(metrics), confusion, int(kept.sum()), num_failed)


@dataclass(frozen=True)
class _Reporter:
    provenance: Provenance
    note: str | None
    num_resamples: int
    seed: int

    def result(
        self, metric: str, value: float, interval: Interval, *notes: str | None, **details: Any
    ) -> MetricResult:
        note = "; ".join(filter(None, [*notes, self.note])) or None
        return measured(metric, float(value), interval, self.provenance, note=note, **details)

    def macro(
        self, metric: str, values: np.ndarray, interval: Interval, *notes: str | None, n: int
    ) -> MetricResult:
        macro = macro_mean(values)
        of_all = f"mean of {macro.num_defined} of {macro.num_findings} findings"
        return self.result(
            metric, macro.value, interval, of_all, *notes, n=n, undefined_because="in no finding defined"
        )


def _auroc_results(
    sample: _Sample, keys: list[str], report: _Reporter, note: str | None
) -> list[MetricResult]:
    values = auroc_per_finding(sample.scores, sample.labels)
    intervals, macro_interval = bootstrap_auroc(
        sample.scores, sample.labels, sample.patient_ids, report.num_resamples, report.seed
    )
    results = [
        report.result("auroc", values[f], intervals[f], note, finding=key, **_sizes(sample.labels[:, f]))
        for f, key in enumerate(keys)
    ]
    return [*results, report.macro("macro_auroc", values, macro_interval, note, n=len(sample.labels))]


def _decision_results(sample: _Sample, keys: list[str], report: _Reporter) -> list[MetricResult]:
    def all_findings(counts: np.ndarray) -> np.ndarray:
        """Return ``(R, 4, F)``."""
        columns = [
            binary_metrics(sample.is_present[:, f], sample.labels[:, f], counts) for f in range(len(keys))
        ]
        return np.stack(
            [np.stack([getattr(c, name) for c in columns], axis=1) for name in _DECISIONS], axis=1
        )

    values = all_findings(np.ones((1, len(sample.labels))))[0]
    resampled = count_bootstrap(all_findings, sample.patient_ids, report.num_resamples, report.seed)
    why = "no positive to find or found, or chance agrees completely"
    results = []
    for row, name in enumerate(_DECISIONS):
        for f, key in enumerate(keys):
            interval = percentile_interval(resampled[:, row, f], sample.patient_ids)
            sizes = _sizes(sample.labels[:, f])
            results.append(
                report.result(name, values[row, f], interval, finding=key, undefined_because=why, **sizes)
            )
        means = np.array([macro_mean(resample).value for resample in resampled[:, row]])
        interval = percentile_interval(means, sample.patient_ids)
        results.append(report.macro(f"macro_{name}", values[row], interval, n=len(sample.labels)))
    return results


def _exact_row_result(sample: _Sample, report: _Reporter) -> MetricResult:
    is_known = (sample.labels != MASKED_TARGET).all(axis=1)
    is_exact = is_known & (sample.is_present == (sample.labels == 1)).all(axis=1)

    def share(counts: np.ndarray) -> np.ndarray:
        known = counts @ is_known
        return np.where(known > 0, counts @ is_exact / np.maximum(known, 1), np.nan)

    value = share(np.ones((1, len(is_known))))[0]
    resampled = count_bootstrap(share, sample.patient_ids, report.num_resamples, report.seed)
    interval = percentile_interval(resampled, sample.patient_ids)
    why = "no report whose gold labels are all known"
    return report.result("exact_row", value, interval, n=int(is_known.sum()), undefined_because=why)


def _confusion(gold: pd.Series, silver: pd.Series) -> pd.DataFrame:
    states = [str(status) for status in Status]
    table = pd.crosstab(gold.astype(str).to_numpy(), silver.astype(str).to_numpy())
    table = table.reindex(index=states, columns=states, fill_value=0)
    return table.rename_axis(index="gold", columns="silver")


def _sizes(labels: np.ndarray) -> dict[str, int]:
    return {"n": int((labels != MASKED_TARGET).sum()), "n_positive": int((labels == 1).sum())}


def _check_tables(
    silver: pd.DataFrame,
    gold: pd.DataFrame,
    scores: np.ndarray | None,
    patient_ids: Sequence[object] | np.ndarray | None,
) -> None:
    if list(silver.columns) != list(gold.columns):
        raise ValueError(
            f"silver and gold must have the same findings in the same order, got {list(silver.columns)} and "
            f"{list(gold.columns)}. Select the columns of one by the other."
        )
    if not silver.index.equals(gold.index):
        raise ValueError(
            f"silver and gold must have the same reports in the same order, got {len(silver)} and "
            f"{len(gold)} rows. Look the silver rows up by report_sha256: duplicates share one."
        )
    if gold.isna().any(axis=None):
        raise ValueError(
            f"gold must have a status in every cell, got {int(gold.isna().sum().sum())} missing."
        )
    if scores is not None and np.shape(scores) != gold.shape:
        raise ValueError(f"scores must have shape {gold.shape}, got {np.shape(scores)}.")
    if patient_ids is not None and len(patient_ids) != len(gold):
        raise ValueError(
            f"patient_ids must have one entry per report, got {len(patient_ids)} for {len(gold)}."
        )
