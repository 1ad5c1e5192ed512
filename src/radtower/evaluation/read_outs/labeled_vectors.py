"""What a read-out reads, and what it gives back.

Axes: N items, E embedding, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radtower.data.targets import MASKED_TARGET


@dataclass(frozen=True)
class LabeledVectors:
    """Vectors of one split with labels and patients.

    Args:
        vectors: ``(N, E)`` finite floats.
        labels: ``(N, F)``, 0, 1 or -100.
        patient_ids: ``(N,)``.

    Raises:
        ValueError: If lengths differ, there are no rows, a vector is not finite, or a label is another.
    """

    vectors: np.ndarray
    labels: np.ndarray
    patient_ids: np.ndarray | Sequence[object]

    def __post_init__(self) -> None:
        shapes = self.vectors.shape, self.labels.shape
        if self.vectors.ndim != 2 or self.labels.ndim != 2 or not len(self.vectors):
            raise ValueError(f"vectors and labels must be (N, E) and (N, F), N > 0, got {shapes}.")
        if not len(self.vectors) == len(self.labels) == len(self.patient_ids):
            raise ValueError(
                f"vectors, labels and patient_ids must pair up row by row, got {len(self.vectors)}, "
                f"{len(self.labels)} and {len(self.patient_ids)}."
            )
        num_invalid = int((~np.isfinite(self.vectors)).any(axis=1).sum())
        if num_invalid:
            raise ValueError(
                f"vectors must be finite, got {num_invalid} rows with NaN or infinity. Find their cause."
            )
        invalid = self.labels[~np.isin(self.labels, (0, 1, MASKED_TARGET))]
        if len(invalid):
            raise ValueError(
                f"labels must be 0, 1 or -100, got {np.unique(invalid)[:5].tolist()}. "
                "Mask what is neither with -100."
            )


@dataclass(frozen=True)
class ReadOutScores:
    """Scores of a read-out.

    Args:
        test: ``(N, F)`` scores of the split under test, higher where the finding is likelier; a column of NaN
            where the read-out has none.
        validation: ``(M, F)`` scores to choose thresholds on; None without a validation split.
        undefined: Why a finding has no score, by key; for ``FindingScores``.
        protocol: What the read-out is, for the ``protocol`` of results: equal for models to be compared.
        note: What was chosen for this model, for the ``note`` of its results.
    """

    test: np.ndarray
    validation: np.ndarray | None
    undefined: dict[str, str]
    protocol: str
    note: str


def one_class_findings(labels: np.ndarray, keys: Sequence[str], split: str) -> dict[str, str]:
    """Return why nothing can be learned about a finding from ``(N, F)`` labels, by key."""
    num_known, num_positive = (labels >= 0).sum(axis=0), (labels == 1).sum(axis=0)
    return {
        key: f"{split} has {positive} of {known} known labels positive: nothing to tell apart"
        for key, known, positive in zip(keys, num_known.tolist(), num_positive.tolist(), strict=True)
        if positive in (0, known)
    }


def check_same_findings(train: LabeledVectors, others: Sequence[LabeledVectors], keys: Sequence[str]) -> None:
    """Refuse splits that do not belong together.

    Raises:
        ValueError: If their widths or numbers of findings differ.
    """
    shapes = {(split.vectors.shape[1], split.labels.shape[1]) for split in (train, *others)}
    if len(shapes) > 1 or train.labels.shape[1] != len(keys):
        raise ValueError(
            f"all splits must have vectors of one width and {len(keys)} findings, got (width, findings) "
            f"{sorted(shapes)}. Embed them with one model."
        )
