"""Do probabilities mean what they say: reliability, its error, and the temperature that repairs it.

Labels are numbers in [0, 1], or -100 where unknown; all known labels of a matrix count alike. Axes: K bins.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from radtower.data.targets import MASKED_TARGET

NUM_BINS = 10
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
        error: Expected calibration error: the mean distance of the two, weighted by the counts.
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
        scores: P(present) in [0, 1], of any shape.
        labels: Of the same shape, in [0, 1] or -100.
        num_bins: Number K of bins.

    Raises:
        ValueError: If the shapes differ, no label is known, or a score or label is out of range.
    """
    said, truth = _known(scores, labels)
    if not ((said >= 0) & (said <= 1)).all():
        raise ValueError(
            f"scores must be in [0, 1], got {said.min()} to {said.max()}. Give probabilities, not logits."
        )
    place = np.minimum((said * num_bins).astype(int), num_bins - 1)
    counts = np.bincount(place, minlength=num_bins)
    filled = np.where(counts, counts, np.nan)
    mean_score = np.bincount(place, said, num_bins) / filled
    mean_label = np.bincount(place, truth, num_bins) / filled
    error = np.nansum(np.abs(mean_score - mean_label) * counts) / counts.sum()
    return Reliability(counts, mean_score, mean_label, float(error))


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


def _known(values: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Values and labels of the known cells, float64, flat."""
    if values.shape != labels.shape:
        raise ValueError(
            f"values and labels must have one shape, got {values.shape} and {labels.shape}. Pair them."
        )
    is_known = labels != MASKED_TARGET
    truth = labels[is_known].astype(np.float64)
    if not len(truth):
        raise ValueError(
            f"labels must hold a known one, got {labels.size} that are all {MASKED_TARGET:g}. Label more."
        )
    if not ((truth >= 0) & (truth <= 1)).all():
        raise ValueError(
            f"labels must be in [0, 1] or {MASKED_TARGET:g}, got {truth.min()} to {truth.max()}. Mask others."
        )
    return values[is_known].astype(np.float64), truth
