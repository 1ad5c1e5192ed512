"""What reports say about findings, as far as it is known, for the read-outs of retrieved reports.

Axes: N reports, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radtower.data.finding_truth import FindingTruth
from radtower.data.targets import MASKED_TARGET


@dataclass(frozen=True)
class ReportLabels:
    """Labels of N reports.

    Args:
        keys: Findings, in column order.
        values: ``(N, F)``: 0, 1, or -100 where unknown or masked.
        source: Who gave them, and by which rule.
        class_set: Name of the findings.
    """

    keys: tuple[str, ...]
    values: np.ndarray
    source: str
    class_set: str

    @property
    def is_labeled(self) -> np.ndarray:
        """``(N,)`` whether anything is known."""
        known: np.ndarray = (self.values != MASKED_TARGET).any(axis=1)
        return known

    def at(self, rows: Sequence[int] | np.ndarray) -> "ReportLabels":
        """Return those of some rows, in that order."""
        return ReportLabels(self.keys, self.values[rows], self.source, self.class_set)


def report_labels(truth: FindingTruth, findings_name: str) -> ReportLabels:
    """Take the findings that have labels."""
    columns = [truth.keys.index(key) for key in truth.labeled_keys]
    return ReportLabels(
        truth.labeled_keys,
        truth.labels[:, columns],
        truth.source,
        f"{findings_name}, {len(columns)} findings",
    )
