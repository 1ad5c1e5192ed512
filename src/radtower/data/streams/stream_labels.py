"""Training targets of reports that come one by one.

Axes: F findings.
"""

from pathlib import Path

import torch

from radtower.data.targets import MASKED_TARGET, TargetPolicy
from radtower.labeling.label_table import read_labels
from radtower.processing.report_text import normalized_sha256


class StreamLabels:
    """Targets of the finding head by the hash of a report.

    Args:
        path: ``labels.parquet``.
        policy: What uncertain and not mentioned become.
    """

    def __init__(self, path: str | Path, policy: TargetPolicy) -> None:
        table = read_labels(path)
        self.keys = table.keys
        self.rows = {sha256: row for row, sha256 in enumerate(table.frame["report_sha256"])}
        self.targets = torch.from_numpy(policy.targets_from_status(table.status_frame))

    def __call__(self, report: str) -> tuple[torch.Tensor, str | None]:
        """Return ``(F,)`` targets of a normalized report; all -100, and a remark, if it was not labeled."""
        row = self.rows.get(normalized_sha256(report))
        if row is None:
            return torch.full((len(self.keys),), MASKED_TARGET), "its report is not in the label table"
        return self.targets[row].clone(), None
