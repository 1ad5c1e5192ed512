"""The one rule that turns what a report says about a finding into a training target.

Axes: N reports or studies, F findings.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from radtower.data.masked_target import MASKED_TARGET as MASKED_TARGET
from radtower.labeling.findings import Status as Status


@dataclass(frozen=True, kw_only=True)
class TargetPolicy:
    """Targets of the two states that are neither present nor absent.

    Args:
        uncertain: Target in [0, 1] of a finding the report hedges about; None masks it.
        not_mentioned: Target in [0, 1] of a finding the report is silent about; None masks it. 0 is the
            convention of CT-RATE.

    Raises:
        ValueError: If a target is outside [0, 1].
    """

    uncertain: float | None = None
    not_mentioned: float | None = 0.0

    def __post_init__(self) -> None:
        for name in ("uncertain", "not_mentioned"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value <= 1.0:
                raise ValueError(
                    f"{name} must be in [0, 1] or None, got {value!r}. Use None to mask the state."
                )

    def target(self, status: Status | str | None) -> float:
        """Return the target of one finding, or -100 where it is masked; see ``training_target``."""
        return training_target(status, uncertain=self.uncertain, not_mentioned=self.not_mentioned)

    def targets_from_status(self, statuses: pd.DataFrame) -> np.ndarray:
        """Apply the rule to a table.

        Args:
            statuses: ``(N, F)`` status values; a missing cell (labeling failed) is masked.

        Returns:
            ``(N, F)`` float32 in [0, 1], or -100.
        """
        rows = statuses.astype(object).where(statuses.notna(), None).to_numpy(dtype=object)
        flat = [self.target(status) for status in rows.ravel()]
        return np.asarray(flat, dtype=np.float32).reshape(rows.shape)

    def targets_from_cells(self, table: pd.DataFrame) -> np.ndarray:
        """Apply the rule to columns as they stand in a file: all status values, or all numbers.

        Args:
            table: ``(N, F)`` status values, or numbers in [0, 1] or -100, as text or not. An empty cell is
                unknown.

        Returns:
            ``(N, F)`` float32 in [0, 1], or -100.

        Raises:
            ValueError: If a cell is anything else; -1 is refused.
        """
        if table.isin([str(status) for status in Status]).to_numpy().any():
            return self.targets_from_status(table)
        numbers = table.apply(pd.to_numeric, errors="coerce")
        num_invalid = int((numbers.isna() & table.notna()).to_numpy().sum())
        if num_invalid:
            raise ValueError(
                f"per-finding columns must hold numbers or {', '.join(Status)}, "
                f"got {num_invalid} other cells. Leave a cell empty where the label is unknown."
            )
        return numeric_targets(numbers)

    def describe(self) -> str:
        """Return the rule as one sentence, for run files and model cards."""
        parts = ["present is 1", "absent is 0"]
        for name, value in (("not mentioned", self.not_mentioned), ("uncertain", self.uncertain)):
            parts.append(f"{name} is masked out of the loss" if value is None else f"{name} is {value:g}")
        return f"Training targets: {', '.join(parts[:-1])} and {parts[-1]}."


def training_target(
    status: Status | str | None, *, uncertain: float | None = None, not_mentioned: float | None = 0.0
) -> float:
    """Return the training target of one finding.

    Args:
        status: What the report says; None where labeling failed, which is always masked.
        uncertain: Target of an uncertain finding; None masks it.
        not_mentioned: Target of a finding the report is silent about; None masks it.

    Returns:
        A number in [0, 1], or -100 where the target is masked. Never -1.

    Raises:
        ValueError: If ``status`` is not one of the four states.
    """
    if status is None:
        return MASKED_TARGET
    if status not in set(Status):
        raise ValueError(
            f"status must be one of {', '.join(Status)}, got {status!r}. "
            "Numeric labels go through numeric_targets."
        )
    values = {
        Status.PRESENT: 1.0,
        Status.ABSENT: 0.0,
        Status.UNCERTAIN: uncertain,
        Status.NOT_MENTIONED: not_mentioned,
    }
    value = values[Status(status)]
    return MASKED_TARGET if value is None else float(value)


def numeric_targets(table: pd.DataFrame | np.ndarray) -> np.ndarray:
    """Check a table of numeric labels and return it as targets.

    Args:
        table: ``(N, F)`` numbers in [0, 1], or -100; a missing cell is masked. -1, which published tables use
            for uncertain and for not mentioned alike, is refused.

    Returns:
        ``(N, F)`` float32 in [0, 1], or -100.

    Raises:
        ValueError: If a value is outside [0, 1] and not -100.
    """
    values = np.asarray(table, dtype=np.float64)
    values = np.where(np.isnan(values), MASKED_TARGET, values)
    invalid = values[(values != MASKED_TARGET) & ~((values >= 0) & (values <= 1))]
    if len(invalid):
        raise ValueError(
            f"numeric labels must be in [0, 1] or -100, got {np.unique(invalid).tolist()}. "
            "-1 mixes uncertain with not mentioned: replace it by a status, or by -100 to mask it."
        )
    return values.astype(np.float32)
