"""How well a score means what it says: reliability and the expected calibration error.

Axes: N reports, F findings, R resamples, K bins.
"""

from dataclasses import dataclass

import numpy as np

from radtower.data.targets import MASKED_TARGET

NUM_BINS = 10  # of equal width over [0, 1], Guo et al. 2017, arXiv 1706.04599


@dataclass(frozen=True)
class Reliability:
    """Scores by bin: their mean, the share that is present, and their number, each ``(K,)``.

    Mean and share are NaN in an empty bin. ``ece`` is the error of all scores pooled.
    """

    mean_score: np.ndarray
    share_present: np.ndarray
    num_scores: np.ndarray
    ece: float


def reliability(scores: np.ndarray, labels: np.ndarray) -> Reliability:
    """Bin scores, those of all findings pooled.

    Args:
        scores: Any shape, in [0, 1]; NaN is left out.
        labels: The same shape, 0, 1, or -100, which is left out.

    Raises:
        ValueError: If the shapes differ, or a score is outside [0, 1].
    """
    _check(scores, labels)
    is_known = (labels != MASKED_TARGET) & ~np.isnan(scores)
    kept, truth = scores[is_known], labels[is_known]
    bins = _bins(kept)
    count = np.bincount(bins, minlength=NUM_BINS)
    total, present = (np.bincount(bins, weights=w, minlength=NUM_BINS) for w in (kept, truth))
    filled = np.where(count, count, np.nan)
    ece = float(np.abs(total - present).sum() / count.sum()) if count.sum() else float("nan")
    return Reliability(total / filled, present / filled, count, ece)


def weighted_ece(scores: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return ``(R,)`` the expected calibration error of resamples given as row counts.

    The mean over the scores of |mean score - share present| of their bin. Few rows bias it upward, in a
    resample more than in the sample.

    Args:
        scores: ``(N,)``, or ``(N, F)`` to pool the findings, in [0, 1]; NaN is left out.
        labels: The same shape, 0, 1 or -100, which is left out.
        counts: ``(R, N)``.

    Returns:
        NaN where a resample has no known score.

    Raises:
        ValueError: If the shapes differ, or a score is outside [0, 1].
    """
    _check(scores, labels)
    is_known = (labels != MASKED_TARGET) & ~np.isnan(scores)
    gap = np.zeros((len(scores), NUM_BINS))  # per row and bin: sum of score minus label
    np.add.at(gap, (np.nonzero(is_known)[0], _bins(scores[is_known])), scores[is_known] - labels[is_known])
    total = counts @ is_known.reshape(len(scores), -1).sum(axis=1)
    return np.where(total > 0, np.abs(counts @ gap).sum(axis=1) / np.where(total > 0, total, 1), np.nan)


def _bins(scores: np.ndarray) -> np.ndarray:
    return np.minimum((scores * NUM_BINS).astype(np.int64), NUM_BINS - 1)  # 1.0 belongs to the last


def _check(scores: np.ndarray, labels: np.ndarray) -> None:
    if scores.shape != labels.shape:
        raise ValueError(
            f"scores and labels must have one shape, got {scores.shape} and {labels.shape}. "
            "Give one label per score."
        )
    outside = scores[(scores < 0) | (scores > 1)]
    if len(outside):
        raise ValueError(f"scores must be in [0, 1], got {float(outside[0])}. Pass logits through a sigmoid.")
