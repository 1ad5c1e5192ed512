"""Queries, the scores of all items for each, and which items are right: the input of retrieval modules.

Axes: Q queries, G items.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.evaluate_modules.module_values import Values, check_patients, matrix

_USUAL_KS = (1, 5, 10)


@dataclass(frozen=True)
class Searched:
    """Queries that have a right answer.

    Args:
        scores: ``(Q, G)`` float64; minus infinity where an item is not there for a query.
        right: For each query the items that are right.
        patient_ids: Q ids, or None.
        ks: Numbers of items looked at, each below the number of items there for any query.
        num_without_answer: Queries left out.
    """

    scores: np.ndarray
    right: list[np.ndarray]
    patient_ids: list[Hashable] | None
    ks: tuple[int, ...]
    num_without_answer: int

    @property
    def num_there(self) -> np.ndarray:
        """``(Q,)`` items there for each query."""
        return np.isfinite(self.scores).sum(axis=1)

    def sizes(self) -> Values:
        """Return what the numbers are of."""
        return {
            "num_queries": len(self.scores),
            "num_without_answer": self.num_without_answer,
            "num_items": self.scores.shape[1],
        }


def searched(
    predictions: Sequence[Sequence[float]],
    references: Sequence[Sequence[int]],
    ks: Sequence[int] | None,
    patient_ids: Sequence[Hashable] | None,
) -> Searched:
    """Check scores and right answers, and leave out queries without one.

    Args:
        predictions: Scores of all items, for each query; minus infinity where an item is not there for it.
        references: Items that are right, for each query.
        ks: None takes 1, 5 and 10, as far as there are more items.
        patient_ids: One per query, or None.

    Raises:
        ValueError: If queries have different numbers of items, a score is no number, an item does not exist,
            a k is out of range, or there is another number of patients than of queries.
    """
    scores = matrix("predictions", predictions)
    num_invalid = int((np.isnan(scores) | (scores == np.inf)).sum())
    if num_invalid:
        raise ValueError(
            f"predictions must be numbers, or minus infinity for an item that is not there, got "
            f"{num_invalid} that are neither. Find their cause."
        )
    check_patients(patient_ids, len(scores))
    right = _right_items(references, scores)
    kept = [row for row, items in enumerate(right) if len(items)]
    return Searched(
        scores=scores[kept],
        right=[right[row] for row in kept],
        patient_ids=None if patient_ids is None else [patient_ids[row] for row in kept],
        ks=_checked_ks(ks, int(np.isfinite(scores[kept or slice(None)]).sum(axis=1).min())),
        num_without_answer=len(right) - len(kept),
    )


def _right_items(references: Sequence[Sequence[int]], scores: np.ndarray) -> list[np.ndarray]:
    """The items that are right and there."""
    right = [np.unique(np.asarray(items, dtype=np.int64)) for items in references]
    last = scores.shape[1] - 1
    outside = [row for row, items in enumerate(right) if len(items) and (items[0] < 0 or items[-1] > last)]
    if outside:
        raise ValueError(
            f"references must be positions of items, 0 to {last}, got others for {len(outside)} queries, "
            f"first {right[outside[0]].tolist()[:5]} for query {outside[0]}."
        )
    return [items[np.isfinite(of_query[items])] for items, of_query in zip(right, scores, strict=True)]


def _checked_ks(ks: Sequence[int] | None, num_there: int) -> tuple[int, ...]:
    chosen = tuple(k for k in _USUAL_KS if k < num_there) if ks is None else tuple(dict.fromkeys(ks))
    if not chosen or min(chosen) < 1 or max(chosen) >= num_there:
        raise ValueError(
            f"ks must be between 1 and {num_there - 1}, got {list(chosen)}. Of {num_there} items, the right "
            f"one is always among the first {num_there}."
        )
    return chosen
