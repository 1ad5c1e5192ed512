"""The reports that somebody would write who never sees a scan, chosen on the training split.

Axes: N training reports, U different rows of labels, C candidates, K chosen.
"""

import numpy as np

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.clinical.label_answers import label_jaccard

# Different rows of labels that are tried, the most frequent first: a rare one is no common report.
_MAX_CANDIDATES = 500
_BLOCK_ROWS = 2000


def most_common_reports(labels: np.ndarray, num_reports: int = 1) -> np.ndarray:
    """Return the training reports that agree best with all training reports.

    The first one has the highest mean label Jaccard with the training reports. Each further one is chosen so
    that the best of those chosen agrees best on average: the strongest fixed answers for a "best of K".
    Of reports with equal labels the first is taken; ties go to the more frequent row of labels.

    Args:
        labels: ``(N, F)``: 0, 1 or -100.
        num_reports: K; fewer come back where the training reports have fewer different labels.

    Returns:
        ``(K,)`` rows of ``labels``.

    Raises:
        ValueError: If no training report has a known label, or ``num_reports`` is below 1.
    """
    if num_reports < 1:
        raise ValueError(f"num_reports must be at least 1, got {num_reports}.")
    known = np.flatnonzero((labels != MASKED_TARGET).any(axis=1))
    if not len(known):
        raise ValueError(f"labels must be known for a training report, got {len(labels)} without any.")
    truths, truth_sizes = np.unique(labels[known], axis=0, return_counts=True)
    patterns, first, sizes = np.unique(labels[known] == 1, axis=0, return_index=True, return_counts=True)
    candidates = np.argsort(-sizes, kind="stable")[:_MAX_CANDIDATES]
    named = patterns[candidates].astype(labels.dtype)
    chosen: list[int] = []
    best = np.zeros(len(truths))
    for _ in range(min(num_reports, len(candidates))):
        gains = _mean_of_best(truths, truth_sizes, named, best)
        gains[chosen] = -np.inf
        chosen.append(int(gains.argmax()))
        best = np.maximum(best, label_jaccard(truths, named[chosen[-1:]])[:, 0])
    return np.asarray(known[first[candidates[chosen]]], dtype=np.int64)


def _mean_of_best(truths: np.ndarray, sizes: np.ndarray, named: np.ndarray, best: np.ndarray) -> np.ndarray:
    """``(C,)``: mean agreement if a candidate joins those chosen."""
    total = np.zeros(len(named))
    for start in range(0, len(truths), _BLOCK_ROWS):
        block = slice(start, start + _BLOCK_ROWS)
        agreement = np.maximum(label_jaccard(truths[block], named), best[block, None])
        total += sizes[block] @ agreement
    return total / sizes.sum()
