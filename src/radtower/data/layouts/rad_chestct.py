"""RAD-ChestCT as it is downloaded (Draelos et al. 2021, arXiv 2002.04752, Zenodo) -> a manifest.

One npz per scan, HU at 0.8 mm, no reports. Labels are per abnormality and location.
"""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from radtower.data.csv_table import csv_columns
from radtower.data.layouts.downloaded_set import DownloadedSet, read_columns, rows_of
from radtower.data.manifest import Manifest, identifier_hash
from radtower.labeling.findings_mapping import load_mapping, map_scores

SPLIT = {"imgtrain": "train", "imgvalid": "validation", "imgtest": "test"}
SUMMARY = "Summary_3630.csv"
LABELS = "{split}_Abnormality_and_Location_Labels.csv"
SCAN_NAME = re.compile(r"(trn|val|tst)\d{5}")
SPACING_MM = 0.8  # isotropic; the files do not say
MAPPING = "rad_chestct_columns_to_ct_rate_18"


def read_rad_chestct(root: str | Path) -> DownloadedSet:
    """Read the tables and list the scans of a download, whole or in part.

    A finding is present where its abnormality is present at any location; which abnormality that is says
    the mapping ``rad_chestct_columns_to_ct_rate_18``, and a finding that has none gets no column. Reports are
    empty. The official split is kept.

    Args:
        root: The folder with the tables; the scans are in it or below it.

    Raises:
        FileNotFoundError: If there are no scans, or a table is missing.
        ValueError: If a scan is there twice or in no table, its split is unknown or contradictory, or a
            table lacks an abnormality.
    """
    root = Path(root)
    paths = _scans_in(root)
    scan_ids = list(paths)
    summary = read_columns(root / SUMMARY, "NoteAcc_DEID", ("MRN_DEID", "Set_Assigned", "Subset_Assigned"))
    rows = rows_of(summary, scan_ids, SUMMARY)
    splits = [
        _split_of(scan_id, *rows.loc[scan_id, ["Set_Assigned", "Subset_Assigned"]]) for scan_id in scan_ids
    ]
    labels = [
        _labels_of(
            root / LABELS.format(split=split),
            [i for i, s in zip(scan_ids, splits, strict=True) if s == split],
        )
        for split in SPLIT
        if split in splits
    ]
    columns: dict[str, Any] = {
        "volume_id": scan_ids,
        "study_id": scan_ids,
        "patient_id": rows["MRN_DEID"].to_numpy(),
        "image_path": [str(path) for path in paths.values()],
        "split": [SPLIT[split] for split in splits],
        "report": "",
        **dict.fromkeys(("spacing_z_mm", "spacing_y_mm", "spacing_x_mm"), SPACING_MM),
    }
    frame = pd.DataFrame(columns).join(pd.concat(labels), on="volume_id")
    return DownloadedSet(Manifest(frame), 0, len(set(summary.index) - set(scan_ids)), ())


def _scans_in(root: Path) -> dict[str, Path]:
    paths: dict[str, Path] = {}
    for path in sorted(root.rglob("*.npz")):
        if not SCAN_NAME.fullmatch(path.stem) or path.stem in paths:
            raise ValueError(
                f"every npz must be one scan, such as trn00001.npz, got a second or another one (sha256 "
                f"{identifier_hash(path.stem)}) below {root}. Remove it."
            )
        paths[path.stem] = path
    if not paths:
        raise FileNotFoundError(
            f"root must hold scans such as trn00001.npz, got none in {root}. Unpack them there."
        )
    return paths


def _split_of(scan_id: str, *assigned: object) -> str:
    """Official split; the two columns say it with different endings, such as imgtrain and imgtrain_extra."""
    found = {split for split in SPLIT for value in assigned if re.match(rf"{split}(_|$)", str(value))}
    if len(found) != 1:
        raise ValueError(
            f"Set_Assigned and Subset_Assigned must name one of {', '.join(SPLIT)}, got {list(assigned)} for "
            f"sha256 {identifier_hash(scan_id)}. Repair the row of {SUMMARY}."
        )
    return found.pop()


def _labels_of(path: Path, scan_ids: list[str]) -> pd.DataFrame:
    """``(N, F)`` numbers by scan and finding: the maximum over locations."""
    mapping = load_mapping(MAPPING)
    header = csv_columns(path) if path.is_file() else []
    by_abnormality: dict[str, list[str]] = {name: [] for name in mapping.source.names}
    for column in header:
        by_abnormality.get(column.partition("*")[0], []).append(column)
    table = read_columns(path, "NoteAcc_DEID", [c for columns in by_abnormality.values() for c in columns])
    absent = [name for name, columns in by_abnormality.items() if not columns]
    if absent:
        raise ValueError(
            f"{path.name} must have a column abnormality*location per location, got none for {absent}. "
            "Download it again."
        )
    numbers = rows_of(table, scan_ids, path.name).astype(np.float32)
    abnormalities = {
        finding.key: numbers[by_abnormality[finding.name]].max(axis=1) for finding in mapping.source.findings
    }
    return map_scores(pd.DataFrame(abnormalities), mapping)[list(mapping.mapped_keys)]
