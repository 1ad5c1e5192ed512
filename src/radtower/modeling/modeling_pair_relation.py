"""Which scans and reports of a batch belong together: their own pair, copies of a report, like findings.

Two studies with the same report, or two reconstructions of one study, must not be pushed apart; and how far
two studies that share most of their findings should be is a question of degree.
Axes in this file: R rows (scans of this process), C columns (reports of all processes), K keys, F findings.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from .losses import UNKNOWN_LABEL, shares_key


@dataclass(frozen=True, kw_only=True)
class PairRelation:
    """What the losses of pairs take for positive.

    The positive mass of row i is spread over the columns as ``(1 - label_share) P_ij / sum_j P_ij +
    label_share J_ij / sum_j J_ij``. ``P`` is 1 for the own column and every column that shares a key, else 0;
    ``J`` is the Jaccard index of the findings, 1 for the own column. Both are symmetric.
    Source of soft targets from label overlap: ARC-CT, arXiv 2608.28455; with identity for what is not
    labeled: MedCLIP, arXiv 2210.10163, section 3.3.

    Args:
        own: ``(R,)`` int64, the column of each row.
        row_keys: ``(R, K)`` int64, hashes of the report, of the study and so on; 0 is no key. None for none.
        column_keys: ``(C, K)``, likewise.
        row_labels: ``(R, F)`` probabilities of findings or concepts, -100 where unknown; present from 0.5 on.
        column_labels: ``(C, F)``, likewise.
        label_share: Mass that goes by findings, in [0, 1]; 0 ignores the labels.

    Raises:
        ValueError: If rows and columns do not have the same of keys and labels, or the share is out of range
            or has no labels.
    """

    own: torch.Tensor
    row_keys: torch.Tensor | None = None
    column_keys: torch.Tensor | None = None
    row_labels: torch.Tensor | None = None
    column_labels: torch.Tensor | None = None
    label_share: float = 0.0

    def __post_init__(self) -> None:
        _require_both("keys", self.row_keys, self.column_keys)
        _require_both("labels", self.row_labels, self.column_labels)
        if not 0 <= self.label_share <= 1 or (self.label_share and self.row_labels is None):
            raise ValueError(
                f"label_share must be in [0, 1], and 0 where there are no labels, got {self.label_share}. "
                "Give labels of both sides, or leave it out."
            )

    @property
    def is_own_only(self) -> bool:
        """Whether every row has one positive: then nothing of size ``(R, C)`` has to be made."""
        return self.row_keys is None and not self.label_share

    def parts(self, rows: slice) -> Iterator[tuple[float, torch.Tensor]]:
        """Share and mass ``(r, C)`` of each kind of belonging, for some rows."""
        if self.label_share < 1:
            yield 1 - self.label_share, self.positives(rows).float()
        if self.label_share:
            yield self.label_share, self._jaccard(rows)

    def positives(self, rows: slice) -> torch.Tensor:
        """``(r, C)`` bool: the own column and those that share a key."""
        own = self.own[rows]
        if self.row_keys is not None and self.column_keys is not None:
            same = shares_key(self.row_keys[rows], self.column_keys)
        elif self.column_labels is not None:
            same = torch.zeros(len(own), len(self.column_labels), dtype=torch.bool, device=own.device)
        else:
            raise ValueError(
                f"positives must have keys or labels, got none for {len(self.own)} rows. Use own where "
                "is_own_only."
            )
        same[torch.arange(len(own), device=own.device), own] = True
        return same

    def _jaccard(self, rows: slice) -> torch.Tensor:
        assert self.row_labels is not None  # checked, as the next
        assert self.column_labels is not None
        index = jaccard_index(self.row_labels[rows], self.column_labels)
        own = self.own[rows]
        index[torch.arange(len(own), device=own.device), own] = 1.0
        return index


def jaccard_index(row_labels: torch.Tensor, column_labels: torch.Tensor) -> torch.Tensor:
    """Overlap of findings over what is known of both: intersection over union, ``(R, C)`` float32 in [0, 1].

    Two studies without any finding are alike (1); two of which nothing is known in common are not (0).

    Args:
        row_labels: ``(R, F)``, present from 0.5 on, -100 where unknown.
        column_labels: ``(C, F)``.
    """
    rows_known, columns_known = ((side != UNKNOWN_LABEL).float() for side in (row_labels, column_labels))
    rows_present, columns_present = ((side >= 0.5).float() for side in (row_labels, column_labels))
    common = rows_present @ columns_present.T
    union = rows_present @ columns_known.T + rows_known @ columns_present.T - common
    is_comparable = (rows_known @ columns_known.T > 0).float()
    return torch.where(union > 0, common / union.clamp(min=1), is_comparable)


def _require_both(name: str, rows: torch.Tensor | None, columns: torch.Tensor | None) -> None:
    if (rows is None) != (columns is None) or (
        rows is not None and columns is not None and rows.shape[1:] != columns.shape[1:]
    ):
        got = [None if side is None else tuple(side.shape) for side in (rows, columns)]
        raise ValueError(
            f"rows and columns must have {name} of one width, or neither any, got {got[0]} and {got[1]}. "
            "Gather both in the same way."
        )
