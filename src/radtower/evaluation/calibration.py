"""Do probabilities mean what they say: reliability, its error, and the temperature that repairs it.

Labels are numbers in [0, 1], or -100 where unknown; all known labels of a matrix count alike.
Axes: N items, F findings, R resamples, K bins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from radtower.data.targets import MASKED_TARGET

NUM_BINS = 10  # of equal width over [0, 1]; Guo et al. 2017, arXiv 1706.04599
# Temperatures looked at. Where every held-out label is right there is no best one: the lower, the better.
LOWEST, HIGHEST = 0.1, 10.0
_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True)
class Reliability:
    """What was said and what was true, in bins of equal width over [0, 1].

    Attributes:
        counts: ``(K,)`` labels per bin.
        mean_score: ``(K,)`` mean probability of a bin; NaN where it is empty.
        mean_label: ``(K,)`` share of present findings in it; NaN where it is empty.
        error: Expected calibration error: the mean distance of the two, weighted by the counts; NaN where
            nothing is known.
    """

    counts: np.ndarray
    mean_score: np.ndarray
    mean_label: np.ndarray
    error: float


@dataclass(frozen=True)
class TemperatureFit:
    """A temperature, and what it does to the labels it was fitted on.

    Attributes:
        temperature: Divides the logits; 1.0 where ``is_found`` is false.
        is_found: Whether there is a best one between 0.1 and 10.
        num_labels: Known labels.
        nll: Mean negative log-likelihood without and with it.
        error: Expected calibration error without and with it.
    """

    temperature: float
    is_found: bool
    num_labels: int
    nll: tuple[float, float]
    error: tuple[float, float]

    def describe(self) -> str:
        """Return one sentence with the numbers."""
        on = f"{self.num_labels} held-out labels"
        if not self.is_found:
            return (
                f"Label temperature 1, unchanged: {on} have no best one between {LOWEST:g} and {HIGHEST:g}, "
                f"NLL {self.nll[0]:.4f}, calibration error {self.error[0]:.4f}."
            )
        return (
            f"Label temperature {self.temperature:.3f}, fitted on {on}: NLL {self.nll[0]:.4f} -> "
            f"{self.nll[1]:.4f}, calibration error {self.error[0]:.4f} -> {self.error[1]:.4f} "
            "on the same labels."
        )


def reliability(scores: np.ndarray, labels: np.ndarray, num_bins: int = NUM_BINS) -> Reliability:
    """Compare probabilities with labels.

    Args:
        scores: P(present) in [0, 1], of any shape; NaN is left out.
        labels: Of the same shape, in [0, 1] or -100, which is left out.
        num_bins: Number K of bins.

    Raises:
        ValueError: If the shapes differ, or a score or label is out of range.
    """
    is_known = _are_known(scores, labels)
    said, truth = scores[is_known].astype(np.float64), labels[is_known].astype(np.float64)
    place = _bins(said, num_bins)
    counts = np.bincount(place, minlength=num_bins)
    filled = np.where(counts, counts, np.nan)
    mean_score, mean_label = (np.bincount(place, w, num_bins) / filled for w in (said, truth))
    gaps = np.abs(mean_score - mean_label) * counts
    error = float(np.nansum(gaps) / len(said)) if len(said) else float("nan")
    return Reliability(counts, mean_score, mean_label, error)


def weighted_error(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` the expected calibration error of resamples given as row counts.

    Few rows bias it upward, in a resample more than in the sample.

    Args:
        scores: ``(N,)``, or ``(N, F)`` to pool the findings, in [0, 1]; NaN is left out.
        labels: The same shape, in [0, 1] or -100, which is left out.
        counts: ``(R, N)``.

    Returns:
        NaN where a resample has no known score.

    Raises:
        ValueError: If the shapes differ, or a score or label is out of range.
    """
    is_known = _are_known(scores, labels)
    gap = np.zeros((len(scores), NUM_BINS))  # per row and bin: sum of score minus label
    said, truth = scores[is_known].astype(np.float64), labels[is_known].astype(np.float64)
    np.add.at(gap, (np.nonzero(is_known)[0], _bins(said, NUM_BINS)), said - truth)
    total = counts @ is_known.reshape(len(scores), -1).sum(axis=1)
    return np.where(total > 0, np.abs(counts @ gap).sum(axis=1) / np.where(total > 0, total, 1), np.nan)


def negative_log_likelihood(logits: np.ndarray, labels: np.ndarray, temperature: float = 1.0) -> float:
    """Return the mean over the known labels of what ``sigmoid(logits / temperature)`` costs, in nats.

    Args:
        logits: Of any shape.
        labels: Of the same shape, in [0, 1] or -100.
        temperature: > 0.

    Raises:
        ValueError: If the shapes differ, no label is known, or a label is out of range.
    """
    scaled, truth = _known(logits, labels)
    scaled = scaled / temperature
    # -y log p - (1 - y) log(1 - p), written so that nothing overflows.
    return float((np.logaddexp(0.0, scaled) - truth * scaled).mean())


def fit_temperature(logits: np.ndarray, labels: np.ndarray) -> TemperatureFit:
    """Find the one temperature for all findings that makes held-out labels likeliest.

    One for all: a finding that is present in five held-out reports cannot say which temperature is its own.
    The order of the scores, and with it every AUROC, stays. Source: Guo et al. 2017, arXiv 1706.04599.

    Args:
        logits: Of held-out reports, of any shape.
        labels: Of the same shape, in [0, 1] or -100.

    Raises:
        ValueError: If the shapes differ, no label is known, or a label is out of range.
    """
    low, high = np.log(LOWEST), np.log(HIGHEST)
    # Convex in 1 / temperature, so there is one minimum in the logarithm, too.
    best = _golden_section(lambda x: negative_log_likelihood(logits, labels, float(np.exp(x))), low, high)
    is_found = min(best - low, high - best) > 1e-3
    temperature = float(np.exp(best)) if is_found else 1.0
    nll = [negative_log_likelihood(logits, labels, t) for t in (1.0, temperature)]
    errors = [reliability(_sigmoid(logits / t), labels).error for t in (1.0, temperature)]
    num_labels = int((labels != MASKED_TARGET).sum())
    return TemperatureFit(temperature, is_found, num_labels, (nll[0], nll[1]), (errors[0], errors[1]))


def _golden_section(cost: Callable[[float], float], low: float, high: float) -> float:
    """Place of the minimum of a function with one, to 1e-6."""
    left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
    at_left, at_right = cost(left), cost(right)
    while high - low > 1e-6:
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - _GOLDEN * (high - low)
            at_left = cost(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + _GOLDEN * (high - low)
            at_right = cost(right)
    return (low + high) / 2


def _sigmoid(logits: np.ndarray) -> np.ndarray:
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, dtype=np.float64)))


def _bins(scores: np.ndarray, num_bins: int) -> np.ndarray:
    return np.minimum((scores * num_bins).astype(np.int64), num_bins - 1)  # 1.0 belongs to the last


def _are_known(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Cells with a score and a label, both in range."""
    _check_pair(scores, labels)
    is_known = (labels != MASKED_TARGET) & ~np.isnan(scores)
    outside = scores[(scores < 0) | (scores > 1)]
    if len(outside):
        raise ValueError(
            f"scores must be in [0, 1], got {float(outside[0])}. Give probabilities, not logits."
        )
    return is_known


def _known(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of the known cells, float64, flat."""
    _check_pair(values, labels)
    is_known = labels != MASKED_TARGET
    if not is_known.any():
        raise ValueError(
            f"labels must hold a known one, got {labels.size} that are all {MASKED_TARGET:g}. Label more."
        )
    return values[is_known].astype(np.float64), labels[is_known].astype(np.float64)


def _check_pair(values: np.ndarray, labels: np.ndarray) -> None:
    if values.shape != labels.shape:
        raise ValueError(
            f"values and labels must have one shape, got {values.shape} and {labels.shape}. Pair them."
        )
    known = labels[labels != MASKED_TARGET]
    if not ((known >= 0) & (known <= 1)).all():
        raise ValueError(
            f"labels must be in [0, 1] or {MASKED_TARGET:g}, got {known.min()} to {known.max()}. Mask others."
        )
