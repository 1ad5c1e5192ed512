"""The manifest: one row per volume with its ids, image, report and split. Refuses a patient in two splits.

A study may have several volumes (reconstructions of one acquisition), which share its report.
Axes: N volumes, F findings.
"""

import hashlib
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from radtower.data.csv_table import read_csv_table
from radtower.data.splits import Split as Split
from radtower.data.splits import check_splits
from radtower.data.targets import TargetPolicy
from radtower.labeling.findings import FindingsSet
from radtower.processing.report_text import join_sections
from radtower.processing.scan_reference import ScanReference

_REQUIRED = ("study_id", "patient_id", "image_path", "split")
_SECTIONS = ("findings", "impression")
_RESCALE = ("rescale_slope", "rescale_intercept")
_SPACING = ("spacing_z_mm", "spacing_y_mm", "spacing_x_mm")

_NUMBER_LIKE = re.compile(r"[-+.,\de]{0,10} ?(mm)?|nan|[-+]?inf", re.IGNORECASE)


@dataclass(frozen=True)
class Manifest:
    """Volumes in file order.

    ``frame`` has the columns volume_id, study_id, patient_id, image_path (resolved), report, split, all
    strings, and the further columns of the file as they were.
    """

    frame: pd.DataFrame

    def __len__(self) -> int:
        return len(self.frame)

    def split(self, name: Split) -> "Manifest":
        """Return the volumes of one split.

        Raises:
            ValueError: If the split has no volume.
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
            ValueError: If a finding has two columns, or one holds anything else; -1 is refused.
        """
        doubled = [f.key for f in findings.findings if f.key != f.name and {f.key, f.name} <= set(self.frame)]
        if doubled:
            raise ValueError(
                f"the manifest must have one column per finding, got one by key and one by name for "
                f"{doubled}. Remove one of them."
            )
        columns = {f.key: f.key if f.key in self.frame else f.name for f in findings.findings}
        missing = [key for key, column in columns.items() if column not in self.frame]
        if missing:
            raise KeyError(f"the manifest must have a column per finding, got none for {missing}.")
        return (policy or TargetPolicy()).targets_from_cells(self.frame[list(columns.values())])

    def scans(self) -> dict[str, ScanReference]:
        """Return where each volume is, by volume id, with what the manifest knows and the file may not.

        A row without a series, rescale or spacing leaves that to the file.

        Raises:
            ValueError: If a rescale or spacing is not a number, not positive where it must be, or half there.
        """
        frame = self.frame
        series = frame.get("series_uid", pd.Series(index=frame.index, dtype=object))
        rescales = _numbers_of(frame, _RESCALE, positive=_RESCALE[:1])
        spacings = _numbers_of(frame, _SPACING, positive=_SPACING)
        return {
            volume_id: ScanReference(
                path,
                series_uid=None if pd.isna(uid) or not str(uid).strip() else str(uid).strip(),
                rescale=None if rescale is None else (rescale[0], rescale[1]),
                spacing_mm=None if spacing is None else (spacing[0], spacing[1], spacing[2]),
            )
            for volume_id, path, uid, rescale, spacing in zip(
                frame["volume_id"], frame["image_path"], series, rescales, spacings, strict=True
            )
        }

    def missing_images(self) -> list[int]:
        """Return the positions (0 is the first volume) whose image is neither a file nor a folder."""
        return [row for row, path in enumerate(self.frame["image_path"]) if not Path(path).exists()]


def read_manifest(path: str | Path, *, check_images: bool = False, needs_reports: bool = True) -> Manifest:
    """Read a manifest from CSV or parquet and check it.

    A relative ``image_path`` is relative to the manifest. Where there is no ``report`` column, the report is
    findings and impression, joined. Without a ``volume_id`` column, a study has one volume, of the same id.
    Messages name rows by position and hash, never by id.

    Args:
        path: The table; columns study_id, patient_id, image_path, split, report (or findings, impression),
            and optionally volume_id, series_uid, rescale_slope and rescale_intercept, spacing_z_mm,
            spacing_y_mm and spacing_x_mm, and one per finding.
        check_images: Refuse a manifest whose images are not all there.
        needs_reports: Refuse a manifest without reports. Some data sets have none, and not every use needs
            them; without, ``report`` is empty in every row.

    Raises:
        ValueError: If a column is missing, a row has too many or too few fields, an id is empty or repeated,
            a split is unknown, a patient is in two splits, or the volumes of a study differ in patient or
            report.
        FileNotFoundError: If ``check_images`` and an image is missing.
    """
    path = Path(path)
    frame = _read_table(path)
    missing = [name for name in _REQUIRED if name not in frame]
    if needs_reports and not ({"report", *_SECTIONS} & set(frame.columns)):
        missing.append("report (or findings, impression)")
    if missing:
        wanted = f"{', '.join(_REQUIRED)}{' and report' if needs_reports else ''}"
        raise ValueError(f"a manifest must have the columns {wanted}, got no {missing}.")
    if frame.empty:
        raise ValueError("a manifest must have at least one study, got 0 rows.")
    has_volumes = "volume_id" in frame
    texts = ("volume_id", *_REQUIRED) if has_volumes else _REQUIRED
    for name in texts:
        _check_filled(name, frame[name])
    frame = frame.assign(**{name: frame[name].astype(str).str.strip() for name in texts})
    _check_unique("volume_id" if has_volumes else "study_id", frame)
    frame["image_path"] = [str(path.parent / image) for image in frame["image_path"]]
    frame["report"] = _reports_of(frame)
    if not has_volumes:
        frame.insert(0, "volume_id", frame["study_id"])
    _check_rows(frame)
    manifest = Manifest(frame)
    absent = manifest.missing_images() if check_images else []
    if absent:
        volumes = ", ".join(
            f"{row} (volume {identifier_hash(frame['volume_id'][row])})" for row in absent[:5]
        )
        raise FileNotFoundError(
            f"image_path must exist for every volume, got {len(absent)} of {len(frame)} missing, "
            f"first at rows {volumes}. Paths are relative to the folder of the manifest."
        )
    return manifest


def write_manifest(manifest: Manifest, path: str | Path) -> None:
    """Write a manifest that ``read_manifest`` reads back.

    Images below the folder of ``path`` are written relative to it, so that the two can move together; others
    are written as absolute paths.

    Args:
        manifest: What to write.
        path: CSV or parquet; its folder is made.

    Raises:
        ValueError: If ``path`` ends in neither ``.csv`` nor ``.parquet``.
    """
    path = Path(path)
    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    folder = os.path.abspath(path.parent)  # noqa: PTH100 -- resolve() would follow links to the images
    images = [os.path.abspath(image) for image in manifest.frame["image_path"]]  # noqa: PTH100 -- as above
    frame = manifest.frame.assign(
        image_path=[
            str(Path(image).relative_to(folder)) if Path(image).is_relative_to(folder) else image
            for image in images
        ]
    )
    if path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False)


def identifier_hash(identifier: str) -> str:
    """Return twelve hex digits that stand for an id where the id itself must not appear, as in a message."""
    return hashlib.sha256(identifier.encode()).hexdigest()[:12]


def hold_out_validation(manifest: Manifest, fraction: float, seed: int) -> Manifest:
    """Move a random part of the training patients, with all their volumes, into the validation split.

    For data sets with two splits, such as CT-RATE: its second split is the test split of every publication,
    and choosing a checkpoint by it would be training on the test set.

    A patient's side depends on its id and the seed alone, so that it stays when patients are added: a model
    that goes on training on a larger download has not seen its validation split. The number held out is
    therefore ``fraction`` of the patients on average only.

    Args:
        manifest: With a train split and no validation split.
        fraction: Of the training patients; in (0, 1). At least one is held out, and at least one stays.
        seed: Decides which; the order of the rows does not.

    Raises:
        ValueError: If ``fraction`` is outside (0, 1), there is a validation split already, or fewer than two
            patients to share out.
    """
    if not 0.0 < fraction < 1.0:
        raise ValueError(
            f"fraction must be in (0, 1), got {fraction!r}. Use 0.05 to hold out a twentieth of the patients."
        )
    frame = manifest.frame
    num_validation = int((frame["split"] == "validation").sum())
    if num_validation:
        raise ValueError(
            f"a manifest must have no validation split yet, got {num_validation} rows. Use it as it is."
        )
    patients = set(frame["patient_id"][frame["split"] == "train"])
    if len(patients) < 2:
        raise ValueError(
            f"the train split must have at least two patients, got {len(patients)}. Add training studies."
        )
    places = {patient: _place_of(patient, seed) for patient in patients}
    ranked = sorted(places, key=places.__getitem__)
    num_below = sum(place < fraction for place in places.values())
    held_out = ranked[: min(len(ranked) - 1, max(1, num_below))]
    # A patient is in one split, so those of the train split are in no other.
    return Manifest(frame.assign(split=frame["split"].mask(frame["patient_id"].isin(held_out), "validation")))


def _place_of(patient_id: str, seed: int) -> float:
    """Return a number in [0, 1) that is uniform over patients."""
    return int.from_bytes(hashlib.sha256(f"{seed}:{patient_id}".encode()).digest()[:6]) / 2**48


def _read_table(path: Path) -> pd.DataFrame:
    _check_suffix(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return read_csv_table(path)


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"path must end in .csv or .parquet, got {path.suffix!r}. Convert the table.")


def _numbers_of(
    frame: pd.DataFrame, columns: tuple[str, ...], positive: tuple[str, ...]
) -> list[tuple[float, ...] | None]:
    """Per row the numbers in ``columns``, or None where all are empty."""
    cells = frame.reindex(columns=list(columns))
    table = cells.apply(pd.to_numeric, errors="coerce").to_numpy(dtype=np.float64)
    is_empty = (cells.isna() | (cells.astype(str).apply(lambda column: column.str.strip()) == "")).to_numpy()
    is_invalid = ~np.isfinite(table) | ((table <= 0) & np.isin(columns, positive))
    is_bad = is_invalid.any(axis=1) & ~is_empty.all(axis=1)
    if is_bad.any():
        row = int(is_bad.argmax())
        raise ValueError(
            f"{', '.join(columns)} must be numbers ({', '.join(positive)} above 0) or all empty, got "
            f"{[_shown(cell) for cell in cells.iloc[row]]} at row {row} (volume "
            f"{identifier_hash(frame['volume_id'].iloc[row])}). Complete the row, or leave it to the file."
        )
    return [None if empty else tuple(row) for row, empty in zip(table.tolist(), is_empty[:, 0], strict=True)]


def _shown(cell: Any) -> Any:
    """A cell, unless it is text that cannot be a number gone wrong: it could be a report."""
    if pd.isna(cell):
        return ""
    return cell if not isinstance(cell, str) or _NUMBER_LIKE.fullmatch(cell) else "text"


def _check_unique(name: str, frame: pd.DataFrame) -> None:
    repeated = frame[name].duplicated().to_numpy()
    if repeated.any():
        first = int(repeated.argmax())
        advice = "Keep one row per study, or name its reconstructions in a column volume_id."
        raise ValueError(
            f"{name} must be unique, got {int(repeated.sum())} repeats, first at row {first} "
            f"({name.removesuffix('_id')} {identifier_hash(frame[name][first])}). "
            f"{advice if name == 'study_id' else 'Give each file its own id.'}"
        )


def _check_filled(name: str, column: pd.Series) -> None:
    is_empty = column.isna() | (column.astype(str).str.strip() == "")
    if is_empty.any():
        raise ValueError(
            f"{name} must be filled in every row, got {int(is_empty.sum())} empty, first at row "
            f"{int(is_empty.to_numpy().argmax())}."
        )


def _check_rows(frame: pd.DataFrame) -> None:
    check_splits(frame["split"])
    num_splits = frame.groupby("patient_id")["split"].nunique()
    leaking = num_splits[num_splits > 1]
    if len(leaking):
        raise ValueError(
            f"a patient must be in one split, got {len(leaking)} patients in several, first patient "
            f"{identifier_hash(str(leaking.index[0]))}. Split by patient, not by study."
        )
    for name in ("patient_id", "report"):
        num_values = frame.groupby("study_id")[name].nunique()
        differing = num_values[num_values > 1]
        if len(differing):
            raise ValueError(
                f"{name} must agree within a study, got {len(differing)} studies with several, first study "
                f"{identifier_hash(str(differing.index[0]))}. Give its volumes one, or other study ids."
            )


def _reports_of(frame: pd.DataFrame) -> pd.Series:
    if "report" in frame:
        return _text(frame["report"])
    sections = [_text(frame.get(name, pd.Series("", index=frame.index))) for name in _SECTIONS]
    joined = [join_sections(findings, impression) for findings, impression in zip(*sections, strict=True)]
    return pd.Series(joined, index=frame.index, dtype=object)


def _text(column: pd.Series) -> pd.Series:
    return column.astype(object).where(column.notna(), "").astype(str)
