"""Studies -> training samples: preprocessed scan, targets, text features.

Axes: N studies, F findings, E embedding of the text tower.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from radtower.data.manifest import Manifest
from radtower.data.targets import TargetPolicy
from radtower.labeling.findings import load_findings
from radtower.labeling.label_table import read_labels
from radtower.processing.report_text import report_sha256


class StudyDataset(Dataset[dict[str, torch.Tensor]]):
    """One sample per study, with what the training at hand needs.

    Args:
        study_ids: Studies in order.
        load_scan: Study id -> ``(C, Z, Y, X)`` float32, such as a :class:`VolumeCache`'s ``__getitem__``.
        targets: ``(N, F)`` in [0, 1] or -100. None leaves labels out.
        text_features: ``(N, E)``, pooled by a frozen text tower. None leaves them out.

    Raises:
        ValueError: If a table has another number of rows than there are studies.
    """

    def __init__(
        self,
        study_ids: Sequence[str],
        load_scan: Callable[[str], torch.Tensor],
        targets: np.ndarray | None = None,
        text_features: torch.Tensor | None = None,
    ) -> None:
        for name, table in (("targets", targets), ("text_features", text_features)):
            if table is not None and len(table) != len(study_ids):
                raise ValueError(
                    f"{name} must have one row per study, got {len(table)} for {len(study_ids)}. "  # noqa: S608 -- prose
                    "Select both from the same manifest."
                )
        self.study_ids = list(study_ids)
        self.load_scan = load_scan
        self.targets = None if targets is None else torch.as_tensor(targets, dtype=torch.float32)
        self.text_features = text_features

    def __len__(self) -> int:
        return len(self.study_ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = {"pixel_values": self.load_scan(self.study_ids[index])}
        if self.targets is not None:
            sample["labels"] = self.targets[index]
        if self.text_features is not None:
            sample["text_features"] = self.text_features[index]
        return sample


@dataclass(frozen=True)
class StudyTargets:
    """Training targets of studies.

    Args:
        keys: Findings, in column order.
        values: ``(N, F)`` float32 in [0, 1], or -100; all -100 where labeling failed.
    """

    keys: tuple[str, ...]
    values: np.ndarray


def study_targets(studies: pd.DataFrame, labels: str | Path, policy: TargetPolicy) -> StudyTargets:
    """Look up the training targets of studies in a label table, by the hash of their reports.

    Args:
        studies: Rows of a manifest, with a ``report`` column.
        labels: ``labels.parquet``.
        policy: What uncertain and not mentioned become.

    Raises:
        KeyError: If a report was never labeled.
    """
    table = read_labels(labels)
    rows = table.rows_of([report_sha256(report) for report in studies["report"]])
    return StudyTargets(table.keys, policy.targets_from_status(table.status_frame.iloc[rows]))


def manifest_targets(manifest: Manifest, findings: str | Path, policy: TargetPolicy) -> StudyTargets:
    """Return the labels that a manifest has in its per-finding columns; see :meth:`Manifest.truth`.

    Args:
        manifest: With a column per finding.
        findings: Findings set by name, or a YAML file.
        policy: Rule for status values; numbers are taken as they are.
    """
    columns = load_findings(findings)
    return StudyTargets(columns.keys, manifest.truth(columns, policy))
