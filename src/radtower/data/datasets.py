"""Volumes -> training samples: preprocessed scan, targets, text features.

Axes: N studies, F findings, E embedding of the text tower.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch.utils.data import Dataset

from radtower.data.augmentation import VolumeAugmentation
from radtower.data.manifest import Manifest
from radtower.data.targets import TargetPolicy
from radtower.data.volume_cache import VolumeCache
from radtower.labeling.findings import load_findings
from radtower.labeling.label_table import read_labels
from radtower.processing.report_text import report_sha256


class StudyDataset(Dataset[dict[str, torch.Tensor]]):
    """One sample per volume, with what the training at hand needs.

    Args:
        volume_ids: Volumes in order.
        scans: A cache, or a function of a volume id that returns ``pixel_values`` ``(C, Z, Y, X)`` float32.
        targets: ``(N, F)`` in [0, 1] or -100. None leaves labels out.
        text_features: ``(N, E)``, pooled by a frozen text tower. None leaves them out.
        augmentation: Varies the HU of the cache per epoch. None takes the middle of each volume.
        pair_keys: ``(N, K)`` int64, see :func:`pair_keys`; samples then have their ``row``, too. None leaves
            them out.

    Raises:
        TypeError: If there is an augmentation and no cache.
        ValueError: If a table has another number of rows than there are volumes.
    """

    def __init__(
        self,
        volume_ids: Sequence[str],
        scans: VolumeCache | Callable[[str], torch.Tensor],
        targets: np.ndarray | None = None,
        text_features: torch.Tensor | None = None,
        augmentation: VolumeAugmentation | None = None,
        pair_keys: torch.Tensor | None = None,
    ) -> None:
        tables = (("targets", targets), ("text_features", text_features), ("pair_keys", pair_keys))
        for name, table in tables:
            if table is not None and len(table) != len(volume_ids):
                raise ValueError(
                    f"{name} must have one row per volume, got {len(table)} for {len(volume_ids)}. "  # noqa: S608 -- prose
                    "Select both from the same manifest."
                )
        if augmentation is not None and not isinstance(scans, VolumeCache):
            raise TypeError(
                f"scans must be a VolumeCache to be augmented, got {type(scans).__name__}. "
                "Open the cache, or leave the augmentation out."
            )
        self.volume_ids = list(volume_ids)
        self.scans = scans
        self.targets = None if targets is None else torch.as_tensor(targets, dtype=torch.float32)
        self.text_features = text_features
        self.augmentation = augmentation
        self.pair_keys = pair_keys
        # In shared memory: the processes of a data loader may outlive an epoch.
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()

    def __len__(self) -> int:
        return len(self.volume_ids)

    @property
    def epoch(self) -> int:
        """The epoch that was set last."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Choose the variation of each volume, in this process and in those of the data loader."""
        self._epoch.fill_(epoch)

    def sha256(self) -> str:
        """Hash of all rows in order: what a resumed run must go on with, wherever it lies.

        Keys stand for the reports, where there are some: vectors of the same reports differ in their last
        digits from one machine to another.
        """
        digest = hashlib.sha256(json.dumps([str(volume_id) for volume_id in self.volume_ids]).encode())
        vectors = self.text_features if self.pair_keys is None else None
        tables = (("targets", self.targets), ("text_features", vectors), ("pair_keys", self.pair_keys))
        for name, table in tables:
            if table is not None:
                digest.update(f"{name} {tuple(table.shape)} {table.dtype}".encode())
                digest.update(as_bytes(table))
        return digest.hexdigest()

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = {"pixel_values": self._pixel_values(index)}
        if self.targets is not None:
            sample["labels"] = self.targets[index]
        if self.text_features is not None:
            sample["text_features"] = self.text_features[index]
        if self.pair_keys is not None:
            sample |= {"pair_keys": self.pair_keys[index], "row": torch.tensor(index)}
        return sample

    def _pixel_values(self, index: int) -> torch.Tensor:
        volume_id = self.volume_ids[index]
        if not isinstance(self.scans, VolumeCache):
            return self.scans(volume_id)
        if self.augmentation is None:
            return self.scans[volume_id]
        return self.augmentation(self.scans.volume_hu(volume_id), self.epoch, index)


def as_bytes(values: torch.Tensor) -> bytes:
    """Return the memory of a tensor of any type, for a hash of it."""
    return values.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()


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
