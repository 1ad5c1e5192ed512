"""Volumes of one split with their vectors and their labels; what cannot be read or has no label is named.

Axes: N volumes, F findings, P projected embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F

from radtower.data.finding_truth import FindingTruth, read_truth
from radtower.data.manifest import Manifest
from radtower.evaluation.pairs.embedded_pairs import embed_volumes
from radtower.evaluation.zero_shot.protocol import ALL_SPLITS, Protocol
from radtower.modeling.modeling_medclip import MedCLIPModel


@dataclass(frozen=True)
class LabeledVolumes:
    """Row i of vectors, table and labels is one volume.

    Args:
        projected: ``(N, P)`` float32 on the CPU, as the tower projects scans: not normalized.
        compared: ``(N, P)``, as the model compares them: unit vectors, unless it compares by dot products.
        studies: N rows of the manifest.
        labels: ``(N, F)``, 0, 1, or -100 where unknown; findings in the order of ``keys``.
        keys: Findings that have labels.
        failures: Reason by volume id, of those that are left out.
    """

    projected: torch.Tensor
    compared: torch.Tensor
    studies: pd.DataFrame
    labels: np.ndarray
    keys: tuple[str, ...]
    failures: dict[str, str]


@dataclass(frozen=True)
class LabeledSplit:
    """Volumes of a split, or all, and what is true of them."""

    manifest: Manifest
    truth: FindingTruth

    def __len__(self) -> int:
        return len(self.manifest)


def label_splits(
    manifest: Manifest,
    names: Sequence[str],
    protocol: Protocol,
    table: str | Path | None = None,
    id_column: str | None = None,
) -> dict[str, LabeledSplit]:
    """Return splits with their labels; see :func:`read_truth` for what is refused.

    Args:
        manifest: All volumes.
        names: Splits that are wanted, or ``all``.
        protocol: Whose findings are labeled.
        table: Of labels; None takes the columns of the manifest.
        id_column: Of the table.

    Raises:
        ValueError: If a split has no volume, or studies are measured whose volumes have different labels.
    """
    splits = {name: manifest if name == ALL_SPLITS else manifest.split(_split(name)) for name in names}
    findings = protocol.mapping or protocol.labels
    labeled = {
        name: LabeledSplit(volumes, read_truth(volumes, findings, table, id_column))
        for name, volumes in splits.items()
    }
    for split in labeled.values() if protocol.unit == "study" else ():
        frame = split.manifest.frame
        is_labeled = ~frame["volume_id"].isin(split.truth.unlabeled).to_numpy()
        check_labels_agree(split.truth.labels[is_labeled], frame["study_id"].to_numpy()[is_labeled])
    return labeled


def check_labels_agree(labels: np.ndarray, study_ids: np.ndarray) -> None:
    """Refuse ``(N, F)`` labels that differ within a study.

    Raises:
        ValueError: If they do.
    """
    rows, distinct = pd.factorize(study_ids)
    first = np.unique(rows, return_index=True)[1]
    num_differing = len(np.unique(rows[(labels != labels[first][rows]).any(axis=1)]))
    if num_differing:
        raise ValueError(
            f"labels must agree within a study to be measured per study, got {num_differing} of "
            f"{len(distinct)} studies whose volumes differ. Measure per volume."
        )


def embed_labeled(
    model: MedCLIPModel,
    split: LabeledSplit,
    keys: Sequence[str],
    load_scan: Callable[[str], torch.Tensor],
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> LabeledVolumes:
    """Embed the volumes that have labels.

    Args:
        model: In evaluation mode.
        split: Volumes and labels.
        keys: Findings that are wanted.
        load_scan: Volume id -> ``pixel_values``; see :func:`embed_volumes`.
        batch_size: Scans at a time.
        on_progress: Called with the number of volumes done.

    Raises:
        ValueError: If nothing is left, or ``batch_size`` is below 1.
    """
    frame, truth = split.manifest.frame, split.truth
    rows = np.flatnonzero(~frame["volume_id"].isin(truth.unlabeled).to_numpy())
    wanted = frame.iloc[rows].reset_index(drop=True)
    volumes = embed_volumes(model, wanted, load_scan, batch_size, on_progress, normalize=False)
    place = {volume_id: row for row, volume_id in enumerate(frame["volume_id"])}
    kept = [place[volume_id] for volume_id in volumes.studies["volume_id"]]
    columns = [truth.keys.index(key) for key in keys]
    return LabeledVolumes(
        projected=volumes.images,
        compared=F.normalize(volumes.images, dim=-1) if model.is_cosine else volumes.images,
        studies=volumes.studies,
        labels=truth.labels[np.ix_(kept, columns)],
        keys=tuple(keys),
        failures={**truth.unlabeled, **volumes.failures},
    )


def _split(name: str) -> Any:
    return name  # what is no split is refused as one without volumes
