"""CT-RATE as it is downloaded (Hamamci et al. 2024, arXiv 2403.17834) -> a manifest.

Two versions of the volumes exist. The first (``dataset/train``) stores raw values and no geometry: slope,
intercept and spacing are in a table, and go into the manifest for the reader, who applies a rescale only
where the values show that nobody did. The second (``dataset/train_fixed``) stores HU and geometry, and its
manifest carries no rescale at all: what is not in the manifest cannot be applied twice.
"""

import ast
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from radtower.data.layouts.downloaded_set import DownloadedSet, read_columns, rows_of
from radtower.data.manifest import Manifest, identifier_hash
from radtower.labeling.findings import load_findings
from radtower.processing.report_text import join_sections

Version = Literal["v1", "v2"]
TREE_SUFFIX: dict[Version, str] = {"v1": "", "v2": "_fixed"}
# Official split -> its name in the report and metadata tables, and ours: published numbers are of "valid".
TABLE_SPLIT = {"train": "train", "valid": "validation"}
SPLIT = {"train": "train", "valid": "test"}
VOLUME_NAME = re.compile(r"((train|valid)_\d+)_([a-z]+)_(\d+)(?:\.nii\.gz)?")
REPORT_COLUMNS = {"Findings_EN": "findings", "Impressions_EN": "impression"}
METADATA_COLUMNS = ("RescaleSlope", "RescaleIntercept", "XYSpacing", "ZSpacing")


def read_ct_rate(
    root: str | Path, version: Version | None = None, exclude: Sequence[str | Path] = ()
) -> DownloadedSet:
    """Read the tables and list the volumes of a download of ``ibrahimhamamci/CT-RATE``, whole or in part.

    A reconstruction is a volume; those of a study share its id and its report. The labels become one column
    per finding, by key. The lists of head scans that come with the metadata (``no_chest_train.txt``,
    ``no_chest_valid.txt``) are always excluded. The official ``valid`` split is the manifest's test split.

    Args:
        root: The folder that holds ``dataset``.
        version: Which volumes to take; None takes those that are there.
        exclude: Further lists of volumes; see ``read_volume_names``.

    Raises:
        FileNotFoundError: If there are no volumes, or a table of a split that has some is missing.
        ValueError: If both versions are there and none is chosen, a volume has no row in a table, or a table
            or list cannot be what its name says.
    """
    folder = Path(root) / "dataset"
    version = _version_in(folder, version)
    paths = {split: _volumes_in(folder / f"{split}{TREE_SUFFIX[version]}", split) for split in SPLIT}
    if not any(paths.values()):
        raise FileNotFoundError(
            f"dataset must hold at least one volume, got none in {folder}. Download some first."
        )
    lists = [*sorted((folder / "metadata").glob("no_chest_*.txt")), *map(Path, exclude)]
    excluded = set().union(*map(read_volume_names, lists))
    tables = [_split_table(folder, split, found, version) for split, found in paths.items() if found]
    frame = pd.concat([table for table, _ in tables], ignore_index=True)
    is_excluded = frame["volume_id"].isin(excluded)
    if is_excluded.all():
        raise ValueError(
            f"exclude must leave some volumes, got {len(frame)} of {len(frame)} excluded. Drop it."
        )
    return DownloadedSet(
        Manifest(frame[~is_excluded].reset_index(drop=True)),
        num_excluded=int(is_excluded.sum()),
        num_not_downloaded=sum(num_absent for _, num_absent in tables),
        exclusion_lists=tuple(path.name for path in lists),
    )


def read_volume_names(path: str | Path) -> set[str]:
    """Read a list of CT-RATE volumes, such as an exclusion list; names without ``.nii.gz``.

    Args:
        path: A CSV file with a column VolumeName, or a text file with the name of a volume, or a path to it,
            per line; empty lines and lines that begin with ``#`` are skipped.

    Raises:
        ValueError: If there is no such column, or an entry names no volume.
    """
    path = Path(path)
    if path.suffix == ".csv":
        names = list(read_columns(path, "VolumeName", ()).index)
    else:
        lines = path.read_text(encoding="utf-8").splitlines()
        names = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
    bases = [re.split(r"[/\\]", str(name))[-1] for name in names]
    for row, base in enumerate(bases):
        if not VOLUME_NAME.fullmatch(base):
            raise ValueError(
                f"every entry of {path.name} must name a volume, such as train_1_a_1.nii.gz, got entry {row} "
                f"(sha256 {identifier_hash(base)}), which does not. List volumes, not studies or patients."
            )
    return {base.removesuffix(".nii.gz") for base in bases}


def _version_in(folder: Path, version: Version | None) -> Version:
    there = [v for v in get_args(Version) if any((folder / f"{s}{TREE_SUFFIX[v]}").is_dir() for s in SPLIT)]
    if not there or version not in (None, *there):
        raise FileNotFoundError(
            "root must hold dataset/train_fixed or dataset/valid_fixed (v2), or dataset/train or "
            f"dataset/valid (v1), got {' and '.join(there) or 'neither'} in {folder.parent}. "
            "Point to the downloaded tree."
        )
    if version is None and len(there) > 1:
        raise ValueError(
            f"version must be chosen where both are there, got {' and '.join(there)} in {folder.parent}. "
            "Choose v2, whose files are in HU."
        )
    return version or there[0]


def _volumes_in(folder: Path, split: str) -> dict[str, Path]:
    """Volume id -> path, in the order of the numbers; every file must be where its name says."""
    volumes = {path.name.removesuffix(".nii.gz"): path for path in folder.glob("*/*/*.nii.gz")}
    for volume_id, path in volumes.items():
        match = VOLUME_NAME.fullmatch(volume_id)
        study_id = _study_of(volume_id)
        is_in_place = (path.parents[0].name, path.parents[1].name) == (study_id, _study_of(study_id))
        if not match or match[2] != split or not is_in_place:
            raise ValueError(
                f"every volume must be {split}_<patient>/{split}_<patient>_<scan>/"
                f"{split}_<patient>_<scan>_<reconstruction>.nii.gz in {folder}, got one (sha256 "
                f"{identifier_hash(volume_id)}) that is not. Download the tree again, or remove the file."
            )
    return dict(sorted(volumes.items(), key=lambda item: _natural(item[0])))


def _split_table(
    folder: Path, split: str, paths: dict[str, Path], version: Version
) -> tuple[pd.DataFrame, int]:
    """Rows of the manifest of one split, and how many volumes of its label table are not on disk."""
    names = TABLE_SPLIT[split]
    findings = load_findings("ct_rate_18")
    reports = _read_table(folder / "radiology_text_reports" / f"{names}_reports.csv", REPORT_COLUMNS)
    labels = _read_table(
        folder / "multi_abnormality_labels" / f"{split}_predicted_labels.csv", findings.names
    )
    volume_ids = list(paths)
    columns: dict[str, object] = {
        "volume_id": volume_ids,
        "study_id": [_study_of(volume_id) for volume_id in volume_ids],
        "patient_id": [_study_of(_study_of(volume_id)) for volume_id in volume_ids],
        "image_path": [str(path) for path in paths.values()],
        "split": SPLIT[split],
    }
    rows = rows_of(reports, volume_ids, "the report table")
    columns |= {ours: rows[theirs].fillna("").to_numpy() for theirs, ours in REPORT_COLUMNS.items()}
    columns["report"] = [join_sections(*texts) for texts in rows[list(REPORT_COLUMNS)].fillna("").to_numpy()]
    rows = rows_of(labels, volume_ids, "the label table")
    columns |= {finding.key: rows[finding.name].to_numpy() for finding in findings.findings}
    if version == "v1":
        metadata = _read_table(folder / "metadata" / f"{names}_metadata.csv", METADATA_COLUMNS)
        columns |= _geometry(rows_of(metadata, volume_ids, "the metadata table"))
    return pd.DataFrame(columns), len(set(labels.index) - set(volume_ids))


def _read_table(path: Path, columns: Iterable[str]) -> pd.DataFrame:
    table = read_columns(path, "VolumeName", columns)
    return table.set_axis(table.index.str.removesuffix(".nii.gz"))


def _geometry(rows: pd.DataFrame) -> dict[str, np.ndarray]:
    """Rescale and spacing columns; the table writes XYSpacing as the text ``[0.7, 0.7]``, x before y."""
    pairs = []
    for row, text in enumerate(rows["XYSpacing"]):
        try:
            x_mm, y_mm = (float(value) for value in ast.literal_eval(str(text)))
        except (SyntaxError, TypeError, ValueError) as error:
            raise ValueError(
                f"XYSpacing must be two numbers in brackets, got {text!r} for volume {row} of the split. "
                "Repair the metadata table."
            ) from error
        pairs.append((x_mm, y_mm))
    x_mm, y_mm = np.array(pairs).T
    return {
        "rescale_slope": rows["RescaleSlope"].to_numpy(),
        "rescale_intercept": rows["RescaleIntercept"].to_numpy(),
        "spacing_z_mm": rows["ZSpacing"].to_numpy(),
        "spacing_y_mm": y_mm,
        "spacing_x_mm": x_mm,
    }


def _study_of(volume_id: str) -> str:
    """Drop the last part of a name: volume -> study, study -> patient."""
    return volume_id.rpartition("_")[0]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (0, part) for part in name.split("_")]
