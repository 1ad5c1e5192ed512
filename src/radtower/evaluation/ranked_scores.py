"""Scores of one finding, sorted once, from which the ranking metrics of every resample follow.

AUROC, average precision and the sensitivity at a specificity are sums over the positives of what the
negatives around each of them weigh. So a resample costs one gather of its counts and no sort.
Axes: N rows, R resamples, P positives.
"""

from dataclasses import dataclass

import numpy as np

from radtower.data.masked_target import MASKED_TARGET

# Of the number of negatives: a specificity such as 0.9 is not a number a computer has, 9 of 10 are.
_ROUNDING = 1e-9


class RankedScores:
    """Who ranks where.

    Args:
        scores: ``(N,)``, any real numbers.
        labels: ``(N,)``, 0 or 1; -100 is left out.

    Raises:
        ValueError: If the shapes differ, a score is NaN, or a label is neither 0, 1 nor -100.
    """

    def __init__(self, scores: np.ndarray, labels: np.ndarray) -> None:
        check_scores_and_labels(scores, labels)
        order = np.argsort(scores, kind="stable")
        ranked = labels[order]
        self.positives, self.negatives = order[ranked == 1], order[ranked == 0]
        high, low = scores[self.positives], scores[self.negatives]
        self._num_below = np.searchsorted(low, high, side="left")
        self._num_not_above = np.searchsorted(low, high, side="right")
        self._first_equal = np.searchsorted(high, high, side="left")

    def weighed(self, counts: np.ndarray) -> "WeighedRanks":
        """Return what stands around each positive where row i occurs ``counts[i, r]`` times.

        Args:
            counts: ``(N, R)`` float64, contiguous where speed matters.
        """
        weights, negatives = counts[self.positives], counts[self.negatives]
        # Only sums between two positives are ever asked for: one running sum over those.
        edges = np.unique(np.r_[0, self._num_below, self._num_not_above])
        inside = edges[edges < len(negatives)]
        running = np.zeros((len(inside) + 1, counts.shape[1]))
        if len(inside):
            np.cumsum(np.add.reduceat(negatives, inside, axis=0), axis=0, out=running[1:])
        return WeighedRanks(
            weights=weights,
            below=running[np.searchsorted(inside, self._num_below)],
            not_above=running[np.searchsorted(inside, self._num_not_above)],
            num_negative=running[-1],
            first_equal=self._first_equal,
        )


@dataclass(frozen=True, kw_only=True)
class WeighedRanks:
    """One finding in R resamples; every metric is ``(R,)``, NaN where a resample has one class only.

    Args:
        weights: ``(P, R)``, how often each positive occurs; the lowest score first.
        below: ``(P, R)``, negatives that score below it.
        not_above: ``(P, R)``, negatives that score below it or like it.
        num_negative: ``(R,)``.
        first_equal: ``(P,)``, the first positive with the same score.
    """

    weights: np.ndarray
    below: np.ndarray
    not_above: np.ndarray
    num_negative: np.ndarray
    first_equal: np.ndarray

    def auroc(self) -> np.ndarray:
        """Return the probability that a positive scores above a negative, ties counted half."""
        wins = _sum_of_products(self.weights, self.below) + _sum_of_products(self.weights, self.not_above)
        return self._where_both(wins / 2, self.weights.sum(axis=0) * self.num_negative)

    def average_precision(self) -> np.ndarray:
        """Return the mean precision over the positives, as a step function (no interpolation)."""
        num_positive = self.weights.sum(axis=0)
        found = np.cumsum(self.weights[::-1], axis=0)[::-1][self.first_equal]
        retrieved = found + (self.num_negative - self.below)
        # Where nothing is retrieved the positive does not occur, so the term is 0 whatever the precision.
        precision = found / np.where(retrieved > 0, retrieved, 1)
        return self._where_both(_sum_of_products(self.weights, precision), num_positive)

    def sensitivity_at(self, specificity: float) -> np.ndarray:
        """Return the largest sensitivity of a threshold whose specificity is at least the one asked for.

        No interpolation: thresholds are scores, and rows that tie are decided alike. Every resample has an
        operating point of its own. 0 where only a threshold above all scores is specific enough.
        """
        needed = specificity * self.num_negative
        is_found = self.below >= needed - _ROUNDING * self.num_negative
        return self._where_both(_sum_of_products(self.weights, is_found), self.weights.sum(axis=0))

    def _where_both(self, numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
        has_both = (self.weights.sum(axis=0) > 0) & (self.num_negative > 0)
        return np.where(has_both, numerator / np.where(has_both, denominator, 1), np.nan)


def check_scores_and_labels(scores: np.ndarray, labels: np.ndarray) -> None:
    """Refuse what is not one finding.

    Raises:
        ValueError: If the shapes differ, a score is NaN, or a label is neither 0, 1 nor -100.
    """
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


def _sum_of_products(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    return np.einsum("pr,pr->r", weights, values)
