"""The manifest: one row per study with its ids, image, report and split. Refuses a patient in two splits.

Axes: N studies, F findings.
"""

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from radtower.data.targets import TargetPolicy, numeric_targets
from radtower.labeling.findings import FindingsSet, Status
from radtower.processing.report_text import join_sections

Split = Literal["train", "validation", "test"]
_REQUIRED = ("study_id", "patient_id", "image_path", "split")
_SECTIONS = ("findings", "impression")


@dataclass(frozen=True)
class Manifest:
    """Studies in file order.

    ``frame`` has the columns study_id, patient_id, image_path (resolved), report, split, all strings, and the
    further columns of the file as they were.
    """

    frame: pd.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    def split(self, name: Split) -> "Manifest":
        """Return the studies of one split.

        Raises:
            ValueError: If the split has no study.
        """
        kept = self.frame[self.frame["split"] == name].reset_index(drop=True)
        if kept.empty:
            found = sorted(self.frame["split"].unique())
            raise ValueError(f"split must be one of {', '.join(found)} in this manifest, got {name!r}.")
        return Manifest(kept)

    def truth(self, findings: FindingsSet, policy: TargetPolicy | None = None) -> np.ndarray:
        """Return ``(N, F)`` float32 labels from the per-finding columns, named by key or by name.

        Columns hold numbers in [0, 1], with an empty cell for unknown, or status values.

        Args:
            findings: The columns, in order.
            policy: Rule for status values; None is the default rule.

        Returns:
            Labels in [0, 1], or -100 where unknown or masked.

        Raises:
            KeyError: If a finding has no column.
            ValueError: If a column holds anything else; -1 is refused.
        """
        columns = {f.key: f.key if f.key in self.frame else f.name for f in findings.findings}
        missing = [key for key, column in columns.items() if column not in self.frame]
        if missing:
            raise KeyError(f"the manifest must have a column per finding, got none for {missing}.")
        table = self.frame[list(columns.values())]
        is_status = table.isin([str(status) for status in Status])
        if is_status.to_numpy().any():
            return (policy or TargetPolicy()).targets_from_status(table)
        numbers = table.apply(pd.to_numeric, errors="coerce")
        num_invalid = int((numbers.isna() & table.notna()).to_numpy().sum())
        if num_invalid:
            raise ValueError(
                f"per-finding columns must hold numbers or {', '.join(Status)}, "
                f"got {num_invalid} other cells. Leave a cell empty where the label is unknown."
            )
        return numeric_targets(numbers)

    def missing_images(self) -> list[int]:
        """Return the positions (0 is the first study) whose image is neither a file nor a folder."""
        return [row for row, path in enumerate(self.frame["image_path"]) if not Path(path).exists()]


def read_manifest(path: str | Path, *, check_images: bool = False) -> Manifest:
    """Read a manifest from CSV or parquet and check it.

    A relative ``image_path`` is relative to the manifest. Where there is no ``report`` column, the report is
    findings and impression, joined. Messages name studies by position and hash, never by id.

    Args:
        path: The table; columns study_id, patient_id, image_path, split, report (or findings, impression).
        check_images: Refuse a manifest whose images are not all there.

    Raises:
        ValueError: If a column is missing, an id is empty or repeated, a split is unknown, or a patient is in
            two splits.
        FileNotFoundError: If ``check_images`` and an image is missing.
    """
    path = Path(path)
    frame = _read_table(path)
    missing = [name for name in _REQUIRED if name not in frame]
    if not ({"report", *_SECTIONS} & set(frame.columns)):
        missing.append("report (or findings, impression)")
    if missing:
        raise ValueError(
            f"a manifest must have the columns {', '.join(_REQUIRED)} and report, got no {missing}."
        )
    if frame.empty:
        raise ValueError("a manifest must have at least one study, got 0 rows.")
    for name in _REQUIRED:
        _check_filled(name, frame[name])
    frame = frame.assign(**{name: frame[name].astype(str).str.strip() for name in _REQUIRED})
    _check_rows(frame)
    frame["image_path"] = [str(path.parent / image) for image in frame["image_path"]]
    frame["report"] = _reports_of(frame)
    manifest = Manifest(frame)
    absent = manifest.missing_images() if check_images else []
    if absent:
        studies = ", ".join(f"{row} (study {_hash(frame['study_id'][row])})" for row in absent[:5])
        raise FileNotFoundError(
            f"image_path must exist for every study, got {len(absent)} of {len(frame)} missing, "
            f"first at rows {studies}. Paths are relative to the folder of the manifest."
        )
    return manifest


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix != ".csv":
        raise ValueError(f"path must end in .csv or .parquet, got {path.suffix!r}. Convert the table.")
    # As text, and only the empty cell is missing: "007" is not 7, and "NA" is a possible patient.
    return pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])


def _check_filled(name: str, column: pd.Series) -> None:
    is_empty = column.isna() | (column.astype(str).str.strip() == "")
    if is_empty.any():
        raise ValueError(
            f"{name} must be filled in every row, got {int(is_empty.sum())} empty, first at row "
            f"{int(is_empty.to_numpy().argmax())}."
        )


def _check_rows(frame: pd.DataFrame) -> None:
    unknown = sorted(set(frame["split"]) - set(get_args(Split)))
    if unknown:
        raise ValueError(
            f"split must be one of {', '.join(get_args(Split))}, got {unknown}. Rename the split."
        )
    repeated = frame["study_id"].duplicated().to_numpy()
    if repeated.any():
        first = int(repeated.argmax())
        raise ValueError(
            f"study_id must be unique, got {int(repeated.sum())} repeats, first at row {first} "
            f"(study {_hash(frame['study_id'][first])}). Keep one row per study."
        )
    num_splits = frame.groupby("patient_id")["split"].nunique()
    leaking = num_splits[num_splits > 1]
    if len(leaking):
        raise ValueError(
            f"a patient must be in one split, got {len(leaking)} patients in several, first patient "
            f"{_hash(str(leaking.index[0]))}. Split by patient, not by study."
        )


def _reports_of(frame: pd.DataFrame) -> pd.Series:
    if "report" in frame:
        return _text(frame["report"])
    sections = [_text(frame.get(name, pd.Series("", index=frame.index))) for name in _SECTIONS]
    joined = [join_sections(findings, impression) for findings, impression in zip(*sections, strict=True)]
    return pd.Series(joined, index=frame.index, dtype=object)


def _text(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str)


def _hash(identifier: str) -> str:
    return hashlib.sha256(identifier.encode()).hexdigest()[:12]
