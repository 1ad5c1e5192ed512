"""Classification metrics: arrays -> numbers, pure. A metric that is undefined is NaN, never 0 or 0.5.

Every metric is defined once, over row counts, so that the point estimate and the bootstrap cannot differ.
Axes: N rows, F findings, R resamples. Labels are 0, 1, or -100 where unknown.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.bootstrap import Interval, count_bootstrap, percentile_interval


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

    def all_findings(counts: np.ndarray) -> np.ndarray:
        return np.stack([weighted_auroc(scores[:, f], labels[:, f], counts) for f in columns], axis=1)

    values = count_bootstrap(all_findings, patient_ids, num_resamples, seed)
    is_defined = ~np.isnan(values)
    sums = np.where(is_defined, values, 0.0).sum(axis=1)
    macro = _ratio(sums, is_defined.sum(axis=1))
    return [percentile_interval(values[:, f], patient_ids) for f in columns], percentile_interval(
        macro, patient_ids
    )


def weighted_auroc(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` AUROC of the samples in which row i occurs ``counts[r, i]`` times; see ``auroc``."""
    positive, negative = _mass_per_score(scores, labels, counts)
    below = np.cumsum(negative, axis=1) - negative
    wins = (positive * (below + 0.5 * negative)).sum(axis=1)
    return _ratio(wins, positive.sum(axis=1) * negative.sum(axis=1))


def weighted_average_precision(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` average precision of resamples given as row counts; see ``average_precision``."""
    positive, negative = (mass[:, ::-1] for mass in _mass_per_score(scores, labels, counts))
    found = np.cumsum(positive, axis=1)
    # Where nothing is retrieved yet there is no positive either, so the term is 0 whatever the precision.
    precision = found / np.maximum(found + np.cumsum(negative, axis=1), 1)
    has_both = (found[:, -1] > 0) & (negative.sum(axis=1) > 0)
    values = _ratio((positive * precision).sum(axis=1), found[:, -1])
    return np.where(has_both, values, np.nan)


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
    _check_vectors(predicted, labels)
    weights = np.ones((1, len(labels))) if counts is None else counts
    yes = predicted.astype(bool)
    tp, fp = weights @ (yes & (labels == 1)), weights @ (yes & (labels == 0))
    fn, tn = weights @ (~yes & (labels == 1)), weights @ (~yes & (labels == 0))
    total = tp + fp + fn + tn
    # Both scaled by total squared, which keeps complete chance agreement an exact zero.
    chance = (tp + fp) * (tp + fn) + (fn + tn) * (fp + tn)
    kappa = _ratio((tp + tn) * total - chance, total**2 - chance)
    return BinaryMetrics(_ratio(tp, tp + fp), _ratio(tp, tp + fn), _ratio(2 * tp, 2 * tp + fp + fn), kappa)


def _mass_per_score(
    scores: np.ndarray, labels: np.ndarray, counts: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Sum counts per distinct score, ascending: two ``(R, S)`` arrays, positives and negatives."""
    _check_vectors(scores, labels)
    known = labels != MASKED_TARGET
    if not known.any():
        empty = np.zeros((len(counts), 1))
        return empty, empty
    order = np.argsort(scores[known], kind="stable")
    ranked = scores[known][order]
    starts = np.flatnonzero(np.r_[True, ranked[1:] != ranked[:-1]])
    weights = counts[:, known][:, order].astype(np.float64)
    is_positive = labels[known][order] == 1
    positive = np.add.reduceat(weights * is_positive, starts, axis=1)
    return positive, np.add.reduceat(weights * ~is_positive, starts, axis=1)


def _ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    is_defined = denominator != 0
    return np.where(is_defined, numerator / np.where(is_defined, denominator, 1), np.nan)


def _check_vectors(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.shape != labels.shape or scores.ndim != 1:
        raise ValueError(
            f"scores and labels must be (N,), got shapes {scores.shape} and {labels.shape}. "
            "Use the per-finding function for a matrix."
        )
    num_nan = int(np.isnan(scores.astype(np.float64)).sum())
    if num_nan:
        raise ValueError(f"scores must be numbers, got {num_nan} NaN. Leave out rows that have no score.")
    invalid = labels[~np.isin(labels, (0, 1, MASKED_TARGET))]
    if len(invalid):
        raise ValueError(
            f"labels must be 0, 1 or -100, got {np.unique(invalid).tolist()}. Mask what is neither with -100."
        )


def _check_matrices(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.shape != labels.shape or scores.ndim != 2:
        raise ValueError(
            f"scores and labels must be (N, F), got shapes {scores.shape} and {labels.shape}. "
            "Give one row per study and one column per finding."
        )
