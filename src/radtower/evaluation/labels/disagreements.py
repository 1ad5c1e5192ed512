"""The cells where silver and gold differ, the most confident first: what a reader should look at.

Ids only: no text, no evidence.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from radtower.data.targets import MASKED_TARGET, Status
from radtower.evaluation.agreement import GOLD_POLICY, HARD_SCORE


@dataclass(frozen=True)
class Disagreement:
    """One cell.

    ``distance`` in [0, 1] is how far the score is from gold. ``score`` None: none was measured, and the
    distance is that of the status (present 1, uncertain 0.5, else 0).
    """

    report_id: str
    finding: str
    gold: str
    silver: str
    score: float | None
    distance: float


def most_confident_disagreements(
    silver: pd.DataFrame, gold: pd.DataFrame, scores: pd.DataFrame, limit: int
) -> list[Disagreement]:
    """Return cells of which one side says present and the other not, by distance, id and finding.

    Unknown gold labels and failed reports are no disagreements.

    Args:
        silver: ``(N, F)`` status values, None where labeling failed.
        gold: ``(N, F)`` status values, None where unknown; same index and columns.
        scores: ``(N, F)`` P(present), NaN where none was measured.
        limit: How many, at most.

    Raises:
        ValueError: If ``limit`` is negative.
    """
    if limit < 0:
        raise ValueError(f"limit must be at least 0, got {limit}. Use 0 for no list.")
    labels = GOLD_POLICY.targets_from_status(gold)
    is_present = (silver == Status.PRESENT).to_numpy(dtype=bool)
    differs = silver.notna().to_numpy() & (labels != MASKED_TARGET) & (is_present != (labels == 1))
    values = scores.to_numpy(dtype=np.float64)
    found = []
    for row, column in np.argwhere(differs):
        status, score = str(silver.iat[row, column]), float(values[row, column])
        measured = None if np.isnan(score) else score
        level = HARD_SCORE[Status(status)] if measured is None else measured
        found.append(
            Disagreement(
                report_id=str(gold.index[row]),
                finding=str(gold.columns[column]),
                gold=str(gold.iat[row, column]),
                silver=status,
                score=measured,
                distance=abs(level - float(labels[row, column])),
            )
        )
    found.sort(key=lambda cell: (-cell.distance, cell.report_id, cell.finding))
    return found[:limit]
