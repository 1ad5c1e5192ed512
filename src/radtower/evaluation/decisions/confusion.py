"""Right and wrong yes/no decisions, counted in every resample, and the metrics that follow.

Axes: N rows, F findings, R resamples.
"""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Confusion:
    """Counts of decisions, all of one shape, such as ``(R,)`` or ``(F, R)``; a metric is NaN where undefined.

    Args:
        tp: Positives called positive.
        fp: Negatives called positive.
        fn: Positives called negative.
        tn: Negatives called negative.
    """

    tp: np.ndarray
    fp: np.ndarray
    fn: np.ndarray
    tn: np.ndarray

    @property
    def num_positive(self) -> np.ndarray:
        """Rows with the finding."""
        return self.tp + self.fn

    @property
    def num_negative(self) -> np.ndarray:
        """Rows without it."""
        return self.tn + self.fp

    def accuracy(self) -> np.ndarray:
        """Return the share of right decisions."""
        return ratio(self.tp + self.tn, self.num_positive + self.num_negative)

    def precision(self) -> np.ndarray:
        """Return the share of positives among those called positive; undefined where none is."""
        return ratio(self.tp, self.tp + self.fp)

    def recall(self) -> np.ndarray:
        """Return the share of positives that are called so, the sensitivity."""
        return ratio(self.tp, self.num_positive)

    def specificity(self) -> np.ndarray:
        """Return the share of negatives that are called so."""
        return ratio(self.tn, self.num_negative)

    def balanced_accuracy(self) -> np.ndarray:
        """Return the mean of sensitivity and specificity."""
        return (self.recall() + self.specificity()) / 2

    def f1(self) -> np.ndarray:
        """Return the F1 of the positive class; undefined without a positive, called or true."""
        return ratio(2 * self.tp, 2 * self.tp + self.fp + self.fn)

    def weighted_f1(self) -> np.ndarray:
        """Return the mean F1 of both classes, weighted by their rows, as CT-CLIP reports it.

        It is scikit-learn's ``average="weighted"``. Mostly the class without the finding: for a rare
        finding it is high even where no positive is found.
        """
        negative = Confusion(self.tn, self.fn, self.fp, self.tp)
        both = [
            np.where(c.num_positive > 0, c.num_positive * c.f1(), 0.0) for c in (self, negative)
        ]  # a class without rows has no weight
        return ratio(both[0] + both[1], self.num_positive + self.num_negative)

    def kappa(self) -> np.ndarray:
        """Return Cohen's kappa; undefined where chance alone would agree completely."""
        total = self.num_positive + self.num_negative
        # Both scaled by total squared, which keeps complete chance agreement an exact zero.
        chance = (self.tp + self.fp) * self.num_positive + (self.fn + self.tn) * self.num_negative
        return ratio((self.tp + self.tn) * total - chance, total**2 - chance)


def count_decisions(predicted: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> Confusion:
    """Count decisions in every resample.

    Args:
        predicted: ``(N, F)`` bool.
        labels: ``(N, F)``, 0 or 1; -100 is left out.
        counts: ``(N, R)`` float64, how often each row occurs.

    Returns:
        Counts ``(F, R)``.
    """
    is_positive, is_negative = labels == 1, labels == 0
    tp, fp = ((predicted & truth).T.astype(np.float64) @ counts for truth in (is_positive, is_negative))
    positive, negative = (truth.T.astype(np.float64) @ counts for truth in (is_positive, is_negative))
    return Confusion(tp=tp, fp=fp, fn=positive - tp, tn=negative - fp)


def ratio(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """Divide; NaN where there is nothing to divide by."""
    is_defined = denominator != 0
    return np.where(is_defined, numerator / np.where(is_defined, denominator, 1), np.nan)
