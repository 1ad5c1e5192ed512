"""Scores of items for findings, with their labels and patients: what all metrics of findings are made of.

Axes: N items, F findings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from radtower.data.targets import MASKED_TARGET


@dataclass(frozen=True, kw_only=True)
class FindingScores:
    """One model's scores of N items for F findings.

    Args:
        scores: ``(N, F)`` floats, higher where the finding is likelier; a whole column of NaN where there is
            no score for a finding.
        labels: ``(N, F)``, 0, 1 or -100.
        patient_ids: ``(N,)``; the items of a patient are resampled together.
        keys: F names of findings, in column order.
        undefined: Why a finding has no score, by key; for each column of NaN and for no other.

    Raises:
        ValueError: If shapes do not fit, labels are others, keys repeat, or NaN and ``undefined`` disagree.
    """

    scores: np.ndarray
    labels: np.ndarray
    patient_ids: np.ndarray | Sequence[object]
    keys: Sequence[str]
    undefined: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._check_shapes()
        invalid = self.labels[~np.isin(self.labels, (0, 1, MASKED_TARGET))]
        if len(invalid):
            raise ValueError(
                f"labels must be 0, 1 or -100, got {np.unique(invalid)[:5].tolist()}. "
                "Mask what is neither with -100."
            )
        is_missing = np.isnan(self.scores)
        for column, key in enumerate(self.keys):
            num_missing, is_undefined = int(is_missing[:, column].sum()), key in self.undefined
            if num_missing != (len(self.scores) if is_undefined else 0):
                raise ValueError(
                    f"scores of {key} must be numbers, or all NaN with a reason in undefined, got "
                    f"{num_missing} NaN of {len(self.scores)} {'with' if is_undefined else 'without'} one. "
                    "Leave out items that cannot be scored."
                )

    @property
    def scored_columns(self) -> list[int]:
        """Columns that have scores."""
        return [column for column, key in enumerate(self.keys) if key not in self.undefined]

    @property
    def num_known(self) -> np.ndarray:
        """``(F,)`` items whose label is known."""
        return (self.labels >= 0).sum(axis=0)

    @property
    def num_positive(self) -> np.ndarray:
        """``(F,)`` items with the finding."""
        return (self.labels == 1).sum(axis=0)

    def _check_shapes(self) -> None:
        if self.scores.ndim != 2 or self.scores.shape != self.labels.shape:
            raise ValueError(
                f"scores and labels must be (N, F), got shapes {self.scores.shape} and {self.labels.shape}. "
                "Give one row per item and one column per finding."
            )
        if (len(self.patient_ids), len(self.keys)) != self.scores.shape:
            raise ValueError(
                f"patient_ids and keys must have the length of the rows and of the columns, got "
                f"{len(self.patient_ids)} and {len(self.keys)} for scores {self.scores.shape}. "
                "Give one per row and one per column."
            )
        unknown = sorted(set(self.undefined) - set(self.keys))
        if len(set(self.keys)) != len(self.keys) or unknown:
            raise ValueError(
                f"keys must be unique and hold all of undefined, got {len(self.keys)} keys, "
                f"{len(set(self.keys))} of them distinct, and unknown ones: {', '.join(unknown) or 'none'}."
            )
