"""Scores of a gallery -> the rank of the right answer, and what is said of many ranks; numpy only.

Axes: Q queries, G gallery, R resamples.
"""

from collections.abc import Sequence
from typing import Literal

import numpy as np

Ties = Literal["pessimistic", "average"]
# Float32 products of equal rows differ by rounding, and rounding must not decide who comes first.
TIE_TOLERANCE = 1e-6


def ranks_of_scores(
    scores: np.ndarray,
    positives: Sequence[np.ndarray | Sequence[int] | int] | np.ndarray,
    ties: Ties = "pessimistic",
    *,
    tolerance: float = TIE_TOLERANCE,
) -> np.ndarray:
    """Return the rank of the best right answer of each query, from scores of any kind (BM25, say).

    Ties are those of ``retrieval_ranks``.

    Args:
        scores: ``(Q, G)``; higher is better, minus infinity where an item is not there for a query.
        positives: For each query the gallery row or rows that are right.
        ties: Who wins a tie.
        tolerance: Scores tie that differ by no more than this share of the largest of their query. The usual
            one is the rounding of float32 products. 0 takes only equal scores as ties: for scores of unknown
            scale, whose ranks must not change with it.

    Raises:
        ValueError: If a score is no number, a positive is invalid, or none of a query is there.
    """
    values = np.array(scores, dtype=np.float64)
    is_there = np.isfinite(values)
    num_invalid = int((~is_there & (values != -np.inf)).sum())
    if values.ndim != 2 or num_invalid:
        raise ValueError(
            f"scores must be (Q, G), and finite or minus infinity, got shape {values.shape} and "
            f"{num_invalid} that are neither. Find their cause."
        )
    rows, columns = flatten_positives(positives, *values.shape)
    num_unanswered = len(values) - len(np.unique(rows[is_there[rows, columns]]))
    if num_unanswered:
        raise ValueError(
            f"every query must have a positive that is there, got {num_unanswered} without. Leave these "
            "queries out, and say so."
        )
    margin = tolerance * np.abs(np.where(is_there, values, 0.0)).max(axis=1)
    return ranks_of_block(values, rows, columns, margin, ties)


def recall_at_k(ranks: np.ndarray, k: int) -> float:
    """Return the share of queries whose right answer is among the first k."""
    return float((ranks <= k).mean())


def rank_metric_names(ks: Sequence[int]) -> list[str]:
    """Return the names of what ``rank_metrics`` gives."""
    return [*(f"recall_at_{k}" for k in ks), "median_rank", "mrr"]


def rank_metrics(ranks: np.ndarray, counts: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """Return ``(R, K + 2)``: recall@k, median rank and mean reciprocal rank of resamples.

    Args:
        ranks: ``(Q,)``.
        counts: ``(R, Q)`` int64, how often each query occurs.
        ks: K numbers of items looked at.
    """
    per_query = np.stack([*(ranks <= k for k in ks), 1 / ranks], axis=1).astype(np.float64)
    means = counts @ per_query / counts.sum(axis=1, keepdims=True)
    return np.column_stack([means[:, :-1], weighted_median(ranks, counts), means[:, -1]])


def ranks_of_block(
    scores: np.ndarray, rows: np.ndarray, columns: np.ndarray, margin: np.ndarray, ties: Ties
) -> np.ndarray:
    """Return the rank of the best positive of each row of ``scores`` ``(q, G)``, which is overwritten.

    Args:
        scores: Higher is better.
        rows: Rows of the pairs (row, column) that are right.
        columns: Their columns.
        margin: ``(q,)``; scores that differ by less are ties.
        ties: Who wins a tie.
    """
    best = np.full(len(scores), -np.inf, dtype=scores.dtype)
    np.maximum.at(best, rows, scores[rows, columns])
    scores[rows, columns] = -np.inf
    num_better = (scores > (best + margin)[:, None]).sum(axis=1)
    num_tied = (scores >= (best - margin)[:, None]).sum(axis=1) - num_better
    return 1 + num_better + num_tied * (1.0 if ties == "pessimistic" else 0.5)


def flatten_positives(
    positives: Sequence[np.ndarray | Sequence[int] | int] | np.ndarray, num_queries: int, num_gallery: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the pairs (query, gallery row), sorted by query."""
    if len(positives) != num_queries:
        raise ValueError(f"positives must have one entry per query, got {len(positives)} for {num_queries}.")
    per_query = [np.atleast_1d(np.asarray(entry, dtype=np.int64)) for entry in positives]
    for position, entry in enumerate(per_query):
        if not len(entry) or entry.min() < 0 or entry.max() >= num_gallery:
            raise ValueError(
                f"positives must be rows of the gallery (0 to {num_gallery - 1}), at least one per query, "
                f"got {entry.tolist()[:5]} at query {position}."
            )
    rows = np.repeat(np.arange(num_queries), [len(entry) for entry in per_query])
    return rows, np.concatenate(per_query)


def weighted_median(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the ``(R,)`` medians of ``(N,)`` values where value i occurs ``counts[r, i]`` times."""
    order = np.argsort(values)
    reached = np.cumsum(counts[:, order], axis=1)
    total = reached[:, -1:]
    lower, upper = ((reached <= middle).sum(axis=1) for middle in ((total - 1) // 2, total // 2))
    return (values[order][lower] + values[order][upper]) / 2
