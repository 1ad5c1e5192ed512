"""Silver labels against gold labels: how far a labeler can be trusted, per finding and as a whole.

Axes: N reports, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

import numpy as np
import pandas as pd

from radtower.data.targets import MASKED_TARGET, Status, TargetPolicy
from radtower.evaluation.bootstrap import Interval, count_bootstrap, percentile_interval
from radtower.evaluation.calibration import Reliability, reliability, weighted_error
from radtower.evaluation.metrics import auroc_per_finding, binary_metrics, bootstrap_auroc, macro_mean
from radtower.evaluation.results import MetricResult, Provenance, measured

# A finding that gold is silent about is not there; an uncertain one is no truth.
GOLD_POLICY = TargetPolicy(uncertain=None, not_mentioned=0.0)
HARD_SCORE = {Status.PRESENT: 1.0, Status.UNCERTAIN: 0.5, Status.ABSENT: 0.0, Status.NOT_MENTIONED: 0.0}
_DECISIONS = ("f1", "precision", "recall", "kappa")
# Beyond every score, so that a failed report loses against all others.
_WRONG_SCORE = {1.0: -1.0, 0.0: 2.0}
Failures = Literal["left_out", "wrong"]


@dataclass(frozen=True)
class Agreement:
    """The outcome of a comparison.

    ``metrics``: AUROC, F1, precision, recall, kappa and, where the labeler measured scores, the expected
    calibration error, per finding and as macro mean; exact-row agreement.
    ``confusion``: per finding a table of counts, rows gold, columns silver; four rows, or two (present,
    absent) where gold has no other state. Failed reports are not in it.
    ``reliability``: the scores of all findings, binned; None where no finding has scores.
    ``num_failed`` reports have no silver label. They are in no metric, so a labeler that fails on the hard
    reports looks better than it is, or count as wrong.
    """

    metrics: tuple[MetricResult, ...]
    confusion: dict[str, pd.DataFrame]
    num_compared: int
    num_failed: int
    reliability: Reliability | None = None


@dataclass(frozen=True)
class _Sample:
    scores: np.ndarray  # (N, F)
    is_present: np.ndarray  # (N, F) bool, silver
    labels: np.ndarray  # (N, F) gold: 0, 1 or -100
    measured: np.ndarray  # (N, F) P(present), all NaN for a finding that is scored by its status
    patient_ids: np.ndarray  # (N,)

    @property
    def score_notes(self) -> list[str | None]:
        """What to say about the score of each finding."""
        is_hard = np.isnan(self.measured).all(axis=0)
        return ["three-level score" if hard else None for hard in is_hard]


def compare_labels(
    silver: pd.DataFrame,
    gold: pd.DataFrame,
    provenance: Provenance,
    *,
    scores: np.ndarray | None = None,
    patient_ids: Sequence[object] | np.ndarray | None = None,
    num_resamples: int = 2000,
    failures: Failures = "left_out",
) -> Agreement:
    """Compare two tables of status values.

    Positive means present; an uncertain silver label counts as not present in all but AUROC. An uncertain
    or unknown gold label is left out of all of them.

    Args:
        silver: ``(N, F)`` status values of the labeler; a row of missing cells is a report it failed on.
        gold: ``(N, F)`` status values, same index and columns in the same order; None where unknown.
        provenance: Data set, class set and source of the gold labels.
        scores: ``(N, F)`` P(present) of the labeler. A finding without a score in a labeled report, and
            every finding where it is None, gets three levels from the status (present 1, uncertain 0.5,
            else 0), which the note of the AUROC then says.
        patient_ids: ``(N,)``; None takes every report for a patient of its own.
        num_resamples: Number of bootstrap resamples.
        failures: Leave out the reports that the labeler failed on, or count each of their findings as
            answered wrong.

    Raises:
        ValueError: If the tables do not match, or no report has a silver label.
    """
    _check_tables(silver, gold, scores, patient_ids)
    is_labeled = silver.notna().all(axis=1).to_numpy()
    if not is_labeled.any():
        raise ValueError(f"silver must have labels, got {len(silver)} failed reports of {len(silver)}.")
    patients = np.arange(len(silver)) if patient_ids is None else np.asarray(patient_ids)
    sample = _sample(silver, gold, scores, patients)
    num_failed = int((~is_labeled).sum())
    if failures == "left_out":
        sample = _Sample(*(getattr(sample, field.name)[is_labeled] for field in fields(sample)))
        note = f"{num_failed} reports without silver labels left out" if num_failed else None
    else:
        note = f"{num_failed} reports without silver labels counted as wrong" if num_failed else None
    keys = list(gold.columns)
    report = _Reporter(provenance, note, num_resamples)
    metrics = [
        *_auroc_results(sample, keys, report),
        *_decision_results(sample, keys, report),
        *_calibration_results(sample, keys, report),
        _exact_row_result(sample, report),
    ]
    states = _gold_states(gold)
    confusion = {
        key: _confusion(gold.loc[is_labeled, key], silver.loc[is_labeled, key], states) for key in keys
    }
    has_scores = not np.isnan(sample.measured).all()
    curve = reliability(sample.measured, sample.labels) if has_scores else None
    return Agreement(tuple(metrics), confusion, len(sample.labels), num_failed, curve)


def _sample(
    silver: pd.DataFrame, gold: pd.DataFrame, scores: np.ndarray | None, patient_ids: np.ndarray
) -> _Sample:
    """All rows; those that failed are as wrong as can be."""
    is_labeled = silver.notna().all(axis=1).to_numpy()[:, None]
    labels = GOLD_POLICY.targets_from_status(gold)
    hard = silver.map(lambda status: np.nan if status is None else HARD_SCORE[Status(status)])
    measured = np.full(gold.shape, np.nan) if scores is None else np.asarray(scores, dtype=np.float64)
    # All or nothing: scores and levels have no common scale.
    is_scored = (~np.isnan(measured) | ~is_labeled).all(axis=0)
    measured = np.where(is_scored & is_labeled, measured, np.nan)
    values = np.where(is_scored, measured, hard.to_numpy(dtype=np.float64))
    wrong = np.select([labels == label for label in _WRONG_SCORE], list(_WRONG_SCORE.values()), 0.0)
    return _Sample(
        scores=np.where(is_labeled, values, wrong),
        is_present=np.where(is_labeled, (silver == Status.PRESENT).to_numpy(dtype=bool), labels == 0),
        labels=labels,
        measured=measured,
        patient_ids=patient_ids,
    )


@dataclass(frozen=True)
class _Reporter:
    provenance: Provenance
    note: str | None
    num_resamples: int

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


def _auroc_results(sample: _Sample, keys: list[str], report: _Reporter) -> list[MetricResult]:
    values = auroc_per_finding(sample.scores, sample.labels)
    intervals, macro_interval = bootstrap_auroc(
        sample.scores, sample.labels, sample.patient_ids, report.num_resamples
    )
    notes = sample.score_notes
    results = [
        report.result("auroc", values[f], intervals[f], notes[f], finding=key, **_sizes(sample.labels[:, f]))
        for f, key in enumerate(keys)
    ]
    num_hard = sum(note is not None for note in notes)
    note = notes[0] if num_hard in (0, len(keys)) else f"three-level score in {num_hard} of {len(keys)}"
    return [*results, report.macro("macro_auroc", values, macro_interval, note, n=len(sample.labels))]


def _calibration_results(sample: _Sample, keys: list[str], report: _Reporter) -> list[MetricResult]:
    """Of the findings that have scores; a failed report has none."""
    scored = [f for f, note in enumerate(sample.score_notes) if note is None]
    if not scored:
        return []
    is_answered = ~np.isnan(sample.measured)
    labels = np.where(is_answered, sample.labels, MASKED_TARGET)

    def all_findings(counts: np.ndarray) -> np.ndarray:
        """Return ``(R, F' + 1)``, the last one for all findings pooled."""
        columns = [weighted_error(sample.measured[:, f], labels[:, f], counts) for f in scored]
        return np.stack([*columns, weighted_error(sample.measured, labels, counts)], axis=1)

    values = all_findings(np.ones((1, len(labels))))[0]
    resampled = count_bootstrap(all_findings, sample.patient_ids, report.num_resamples)
    note, why = "few reports bias it upward, in the interval more", "no known gold label"
    results = [
        report.result(
            "ece",
            values[column],
            percentile_interval(resampled[:, column], sample.patient_ids),
            note,
            finding=keys[f],
            undefined_because=why,
            **_sizes(labels[:, f]),
        )
        for column, f in enumerate(scored)
    ]
    means = np.array([macro_mean(resample).value for resample in resampled[:, :-1]])
    interval = percentile_interval(means, sample.patient_ids)
    num_reports = int(is_answered.any(axis=1).sum())
    results.append(report.macro("macro_ece", values[:-1], interval, note, n=num_reports))
    interval = percentile_interval(resampled[:, -1], sample.patient_ids)
    note = f"scores of {len(scored)} findings pooled"
    return [
        *results,
        report.result("pooled_ece", values[-1], interval, note, n=num_reports, undefined_because=why),
    ]


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
    resampled = count_bootstrap(all_findings, sample.patient_ids, report.num_resamples)
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
    resampled = count_bootstrap(share, sample.patient_ids, report.num_resamples)
    interval = percentile_interval(resampled, sample.patient_ids)
    why = "no report whose gold labels are all known"
    return report.result("exact_row", value, interval, n=int(is_known.sum()), undefined_because=why)


def _gold_states(gold: pd.DataFrame) -> list[str]:
    decided = [Status.PRESENT, Status.ABSENT]
    is_binary = (gold.isin([str(state) for state in decided]) | gold.isna()).all(axis=None)
    return [str(state) for state in (decided if is_binary else Status)]


def _confusion(gold: pd.Series, silver: pd.Series, gold_states: list[str]) -> pd.DataFrame:
    table = pd.crosstab(gold.astype(str).to_numpy(), silver.astype(str).to_numpy())
    # Drops the row of unknown gold.
    table = table.reindex(index=gold_states, columns=[str(status) for status in Status], fill_value=0)
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
    if scores is not None and np.shape(scores) != gold.shape:
        raise ValueError(f"scores must have shape {gold.shape}, got {np.shape(scores)}.")
    if patient_ids is not None and len(patient_ids) != len(gold):
        raise ValueError(
            f"patient_ids must have one entry per report, got {len(patient_ids)} for {len(gold)}."
        )
