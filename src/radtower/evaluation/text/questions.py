"""A question to a text model: a query, its right answer, and wrong ones that look alike.

Axes: N rows, K columns of metrics.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.text.scorers import TextScorer

_TIE_TOLERANCE = 1e-6


@dataclass(frozen=True)
class Item:
    """A query, its right answer, and wrong ones; ``column`` says which metric it counts for."""

    query: str
    right: str
    wrong: tuple[str, ...]
    column: int
    row: int


def answers(
    scorer: TextScorer, items: Sequence[Item], shape: tuple[int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return two ``(N, K)`` arrays: 1 where the right answer is above all others, and the same by lot.

    NaN where a row has no question. By lot, a tie of j best candidates counts 1 / j where the right one is
    among them.
    """
    is_right, by_lot = np.full(shape, np.nan), np.full(shape, np.nan)
    queries = list(dict.fromkeys(item.query for item in items))
    gallery = list(dict.fromkeys(text for item in items for text in (item.right, *item.wrong)))
    if not items:
        return is_right, by_lot
    query_rows = {text: row for row, text in enumerate(queries)}
    columns = {text: column for column, text in enumerate(gallery)}
    scores = scorer.score(queries, gallery)
    for item in items:
        row = scores[query_rows[item.query]]
        right = row[columns[item.right]]
        wrong = row[[columns[text] for text in item.wrong]]
        margin = _TIE_TOLERANCE * max(1.0, float(np.abs(row).max()))
        num_tied = int((np.abs(wrong - right) <= margin).sum())
        is_beaten = bool((wrong > right + margin).any())
        is_right[item.row, item.column] = not is_beaten and not num_tied
        by_lot[item.row, item.column] = 0.0 if is_beaten else 1 / (1 + num_tied)
    return is_right, by_lot


def tie_note(by_lot: np.ndarray, metric: str) -> str:
    chance = "0.25" if metric == "accuracy_4way" else "0.5"
    if not np.isfinite(by_lot).any():
        return f"chance {chance}"
    return f"chance {chance}; ties count as wrong, by lot it would be {np.nanmean(by_lot):.3f}"
