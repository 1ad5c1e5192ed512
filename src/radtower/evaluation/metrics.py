"""Classification metrics: arrays -> numbers, pure. A metric that is undefined is NaN, never 0 or 0.5.

Every metric is defined once, over row counts, so that the point estimate and the bootstrap cannot differ.
Axes: N rows, F findings, R resamples. Labels are 0, 1, or -100 where unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.bootstrap import Interval, count_bootstrap, percentile_interval
from radtower.evaluation.decisions.confusion import count_decisions, ratio
from radtower.evaluation.ranked_scores import RankedScores, check_scores_and_labels


@dataclass(frozen=True)
class MacroMean:
    """An unweighted mean over the findings that are defined, and how many those are."""

    value: float
    num_defined: int
    num_findings: int


@dataclass(frozen=True)
class BinaryMetrics:
    """Metrics of yes/no decisions, each ``(R,)``; NaN = undefined."""

    precision: np.ndarray
    recall: np.ndarray
    f1: np.ndarray
    kappa: np.ndarray


def auroc(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the probability that a positive scores above a negative, ties counted half.

    Args:
        scores: ``(N,)``, any real numbers.
        labels: ``(N,)``, 0 or 1; -100 is left out.

    Returns:
        NaN when only one class is there.

    Raises:
        ValueError: If the shapes differ, a score is NaN, or a label is neither 0, 1 nor -100.
    """
    return float(weighted_auroc(scores, labels, np.ones((1, len(scores))))[0])


def average_precision(scores: np.ndarray, labels: np.ndarray) -> float:
    """Return the mean precision over the positives, as a step function (no interpolation); see ``auroc``.

    NaN when there is no positive or no negative.
    """
    return float(weighted_average_precision(scores, labels, np.ones((1, len(scores))))[0])


def auroc_per_finding(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return ``(F,)`` AUROC of ``(N, F)`` scores and labels; NaN for a finding with one class."""
    _check_matrices(scores, labels)
    return np.array([auroc(scores[:, f], labels[:, f]) for f in range(scores.shape[1])])


def macro_mean(values: np.ndarray) -> MacroMean:
    """Return the mean over the findings whose value is defined."""
    defined = values[~np.isnan(values)]
    return MacroMean(float(defined.mean()) if len(defined) else float("nan"), len(defined), len(values))


def macro_auroc(scores: np.ndarray, labels: np.ndarray) -> MacroMean:
    """Return the unweighted mean AUROC over the findings where it is defined, and their number."""
    return macro_mean(auroc_per_finding(scores, labels))


def bootstrap_auroc(
    scores: np.ndarray,
    labels: np.ndarray,
    patient_ids: Sequence[object] | np.ndarray,
    num_resamples: int = 2000,
    seed: int = 0,
) -> tuple[list[Interval], Interval]:
    """Return the interval of every finding and of the macro mean, from the same resamples.

    A finding that has one class in a resample drops out of the macro mean of that resample; a finding that
    has one class in the whole sample is in none of them.

    Args:
        scores: ``(N, F)``.
        labels: ``(N, F)``, 0, 1 or -100.
        patient_ids: ``(N,)``.
        num_resamples: Number of resamples.
        seed: Seed of the resampling.
    """
    _check_matrices(scores, labels)
    columns = range(scores.shape[1])
    ranked = [RankedScores(scores[:, f], labels[:, f]) for f in columns]

    def all_findings(counts: np.ndarray) -> np.ndarray:
        by_row = counts_by_row(counts)
        return np.stack([finding.weighed(by_row).auroc() for finding in ranked], axis=1)

    values = count_bootstrap(all_findings, patient_ids, num_resamples, seed)
    macro = mean_over_findings(values)
    return [percentile_interval(values[:, f], patient_ids) for f in columns], percentile_interval(
        macro, patient_ids
    )


def mean_over_findings(values: np.ndarray) -> np.ndarray:
    """Return the ``(R,)`` means of ``(R, F)`` values over the findings that are defined in each resample."""
    is_defined = ~np.isnan(values)
    return ratio(np.where(is_defined, values, 0.0).sum(axis=1), is_defined.sum(axis=1))


def weighted_auroc(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` AUROC of the samples in which row i occurs ``counts[r, i]`` times; see ``auroc``."""
    return RankedScores(scores, labels).weighed(counts_by_row(counts)).auroc()


def weighted_average_precision(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` average precision of resamples given as row counts; see ``average_precision``."""
    return RankedScores(scores, labels).weighed(counts_by_row(counts)).average_precision()


def binary_metrics(
    predicted: np.ndarray, labels: np.ndarray, counts: np.ndarray | None = None
) -> BinaryMetrics:
    """Return precision, recall, F1 and Cohen's kappa of yes/no decisions.

    Undefined (NaN): precision without a predicted positive, recall without a positive, F1 without either,
    kappa when chance alone would agree completely.

    Args:
        predicted: ``(N,)`` bool, for a threshold: ``scores >= threshold``.
        labels: ``(N,)``, 0 or 1; -100 is left out.
        counts: ``(R, N)`` row counts of resamples; None is the sample itself, R = 1.

    Raises:
        ValueError: If the shapes differ, or a label is neither 0, 1 nor -100.
    """
    check_scores_and_labels(predicted, labels)
    by_row = np.ones((len(labels), 1)) if counts is None else counts_by_row(counts)
    decisions = count_decisions(predicted[:, None].astype(bool), labels[:, None], by_row)
    of_all = (decisions.precision(), decisions.recall(), decisions.f1(), decisions.kappa())
    return BinaryMetrics(*(values[0] for values in of_all))


def counts_by_row(counts: np.ndarray) -> np.ndarray:
    """Return counts ``(R, N)`` of resamples as ``(N, R)`` float64: all counts of a row side by side."""
    return np.ascontiguousarray(counts.T, dtype=np.float64)


def _check_matrices(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(
            f"scores and labels must be (N, F), got shapes {scores.shape} and {labels.shape}. "
            "Give one row per study and one column per finding."
        )
