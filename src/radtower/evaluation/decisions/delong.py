"""Is the AUROC of two models on the same items different: DeLong's test, also for patients with several.

DeLong et al. 1988 (Biometrics 44, 837-845), in O(N log N) as Sun and Xu 2014 (IEEE SPL 21, 1389-1393): a
placement, the share of the other class that an item is ranked right against, is the difference of two
midranks, and here of two binary searches. Its variance takes items for independent. Where patients have
several, placements are summed per patient first: Obuchowski 1997 (Biometrics 53, 567-578), which is DeLong's
variance where every patient has one item.
Axes: N items, C patients.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from radtower.evaluation.ranked_scores import check_scores_and_labels

INDEPENDENT = "DeLong"
_NAN = float("nan")
_ROUNDING = 1e-20  # a variance that is zero but for float64
CLUSTERED = "DeLong, clustered by patient (Obuchowski 1997)"


@dataclass(frozen=True)
class AurocDifference:
    """Two AUROCs and their difference, second minus first.

    ``value`` is NaN where a class is missing. ``standard_error``, ``low``, ``high`` and ``p_value`` are NaN,
    and ``undefined_because`` says why, where there is no variance: both models rank every pair alike, say, or
    a class has one patient. The interval is that of the normal approximation and may leave [-1, 1].
    """

    first: float
    second: float
    standard_error: float
    low: float
    high: float
    p_value: float
    method: str
    level: float = 0.95
    undefined_because: str | None = None

    @property
    def value(self) -> float:
        """Return second minus first."""
        return self.second - self.first


def delong_test(
    first: np.ndarray,
    second: np.ndarray,
    labels: np.ndarray,
    patient_ids: Sequence[object] | np.ndarray,
    level: float = 0.95,
) -> AurocDifference:
    """Compare the scores of two models for one finding.

    Args:
        first: ``(N,)``, any real numbers; ties count half.
        second: ``(N,)``, likewise, on the same items.
        labels: ``(N,)``, 0 or 1; -100 is left out.
        patient_ids: ``(N,)``; where one repeats among the known labels, its items are not taken for
            independent, and ``method`` says so.
        level: Of the interval, in (0, 1).

    Raises:
        ValueError: If shapes differ, a score is NaN, a label is another, or ``level`` is not in (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}. Use 0.95 for a 95 % interval.")
    check_scores_and_labels(first, labels)
    check_scores_and_labels(second, labels)
    if len(patient_ids) != len(labels):
        raise ValueError(f"patient_ids must be one per item, got {len(patient_ids)} for {len(labels)} items.")
    known = labels >= 0
    truth = labels[known] == 1
    patients = np.unique(np.asarray(patient_ids)[known], return_inverse=True)[1]
    method = CLUSTERED if len(patients) > len(np.unique(patients)) else INDEPENDENT
    if truth.all() or not truth.any():
        return _undefined((_NAN, _NAN), method, level, "one class only")
    placements = [_placements(scores[known], truth) for scores in (first, second)]
    aurocs = (float(placements[0][truth].mean()), float(placements[1][truth].mean()))
    variance = _variance(placements[1] - placements[0], truth, patients)
    if math.isnan(variance):
        return _undefined(aurocs, method, level, "a class has one patient only")
    if variance <= _ROUNDING:
        reason = "too little varies between the items: the variance is not above zero"
        return _undefined(aurocs, method, level, reason)
    difference, error = aurocs[1] - aurocs[0], math.sqrt(variance)
    margin = NormalDist().inv_cdf((1 + level) / 2) * error
    return AurocDifference(
        *aurocs,
        standard_error=error,
        low=difference - margin,
        high=difference + margin,
        p_value=math.erfc(abs(difference) / error / math.sqrt(2)),  # two-sided
        method=method,
        level=level,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values corrected for their number: Holm 1979 (Scand. J. Statist. 6, 65-70).

    The chance that any of them is below 0.05 where no model differs is at most 0.05, however they depend on
    each other. NaN stays NaN and does not count.
    """
    defined = [position for position, p in enumerate(p_values) if not math.isnan(p)]
    corrected = [float("nan")] * len(p_values)
    largest = 0.0
    for rank, position in enumerate(sorted(defined, key=lambda position: p_values[position])):
        largest = max(largest, min(1.0, (len(defined) - rank) * p_values[position]))
        corrected[position] = largest
    return corrected


def _undefined(aurocs: tuple[float, float], method: str, level: float, reason: str) -> AurocDifference:
    return AurocDifference(*aurocs, _NAN, _NAN, _NAN, _NAN, method, level, reason)


def _placements(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Share of the other class that each item is ranked right against; the AUROC is the mean of a class."""
    placements = np.empty(len(scores))
    for own in (True, False):
        others = np.sort(scores[truth != own])
        asked = scores[truth == own]
        below = (np.searchsorted(others, asked, "left") + np.searchsorted(others, asked, "right")) / 2
        placements[truth == own] = (below if own else len(others) - below) / len(others)
    return placements


def _variance(placements: np.ndarray, truth: np.ndarray, patients: np.ndarray) -> float:
    """Variance of the mean placement; placements may be differences of two models."""
    mean = placements[truth].mean()
    num_patients = patients.max() + 1
    sums, sizes, products = [], [], []
    for own in (truth, ~truth):
        centered = np.where(own, placements - mean, 0.0)
        sums.append(np.bincount(patients, centered, num_patients))
        sizes.append(own.sum())
        num_own = len(np.unique(patients[own]))
        if num_own < 2:
            return float("nan")
        products.append(num_own / (num_own - 1) * (sums[-1] ** 2).sum() / sizes[-1] ** 2)
    both = num_patients / (num_patients - 1) * (sums[0] * sums[1]).sum() / (sizes[0] * sizes[1])
    return float(products[0] + products[1] + 2 * both)
