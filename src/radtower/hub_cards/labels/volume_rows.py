"""Which rows a label data set has: one per volume of a table, in its split, with the label row of its report.

Messages name rows by position and hash, never by id.
"""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from radtower.data.csv_table import read_csv_table
from radtower.data.jsonl_table import check_unicode, jsonl_rows
from radtower.data.layouts.ct_rate import VOLUME_NAME
from radtower.data.manifest import identifier_hash
from radtower.data.splits import check_splits
from radtower.labeling.label_table import LabelTable
from radtower.processing.report_text import join_sections, normalize_report, report_sha256

SECTIONS = ("findings", "impression")
_ID_COLUMNS = ("volume_id", "study_id", "report_id")
_NO_ROW = -1


@dataclass(frozen=True)
class VolumeRows:
    """The rows to publish.

    Attributes:
        frame: Columns VolumeName, split, label_row (position in the label table) and report (normalized text,
            ``""`` where the table has none), in the order of the table.
        num_without_labels: Rows of the table whose report is not in the label table; left out.
        num_unused_labels: Rows of the label table that no row of the table has; left out.
        joined_by: The column that led from a row to its labels.
    """

    frame: pd.DataFrame
    num_without_labels: int = 0
    num_unused_labels: int = 0
    joined_by: str = "report_id"

    @property
    def num_in_several_splits(self) -> int:
        """Unique reports whose rows are in more than one split."""
        return int((self.frame.groupby("label_row")["split"].nunique() > 1).sum())


def rows_of_labels(labels: LabelTable) -> VolumeRows:
    """Return one row per unique report, all in the training split: what is known without a table."""
    ids = labels.frame["report_id"].astype(str)
    frame = pd.DataFrame(
        {"VolumeName": ids, "split": "train", "label_row": np.arange(len(ids)), "report": ""}
    )
    return VolumeRows(frame.assign(VolumeName=_volume_names(frame["VolumeName"])))


def rows_of_table(
    labels: LabelTable, path: str | Path, *, id_column: str | None = None, text_column: str = "report"
) -> VolumeRows:
    """Return one row per row of a manifest or report table.

    The text leads to the labels, through its hash, so that all volumes and studies that share a report get
    its labels. Where the table has no text, its column ``report_sha256`` does, and else the id (``study_id``
    where volumes have ids of their own), which finds of several equal reports only the first.

    Args:
        labels: The label table.
        path: CSV, parquet or JSONL. ``split`` is optional: without it all rows are training rows.
        id_column: Column of VolumeName. None takes ``volume_id``, else ``study_id``, else ``report_id``.
        text_column: Column of report texts; ``findings`` and ``impression`` are joined where it is missing.

    Raises:
        ValueError: If the format or a column is unknown, a row has too many or too few fields, an id is
            empty or repeated, a cell has half a character, a split is unknown, a patient is in two splits, or
            no row has labels.
    """
    table = _read_table(Path(path))
    name_column = _id_column(table, id_column)
    ids = table[name_column].str.strip()
    _check_ids(name_column, ids)
    splits = table["split"].str.strip() if "split" in table else pd.Series("train", index=table.index)
    _check_splits(table, splits)
    texts = _texts_of(table, text_column)
    joined_by, keys, column = _join_keys(table, name_column, texts, text_column)
    label_rows = _look_up(labels.frame[column], keys)
    is_known = label_rows != _NO_ROW
    if not is_known.any():
        raise ValueError(
            f"the table must hold labeled reports, got {len(table)} rows and none whose {joined_by} is in "
            "the label table. Give the table that was labeled, and its text column."
        )
    frame = pd.DataFrame(
        {
            "VolumeName": _volume_names(ids),
            "split": splits,
            "label_row": label_rows,
            "report": "" if texts is None else texts,
        }
    )
    return VolumeRows(
        frame[is_known].reset_index(drop=True),
        num_without_labels=int((~is_known).sum()),
        num_unused_labels=len(labels) - len(np.unique(label_rows[is_known])),
        joined_by=joined_by,
    )


def _read_table(path: Path) -> pd.DataFrame:
    """All cells as text, an empty one as "": "007" is not 7, and "NA" is a possible patient."""
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    elif path.suffix == ".jsonl":
        # Not read_json, which turns what looks like a number or a date into one.
        frame = pd.DataFrame(list(_whole(jsonl_rows(path))))
    elif path.suffix == ".csv":
        frame = read_csv_table(path)
    else:
        raise ValueError(
            f"path must end in .csv, .parquet or .jsonl, got {path.suffix!r}. Convert the table."
        )
    if frame.empty:
        raise ValueError(f"the table must have at least one row, got 0 in {path.name}. Give another.")
    return frame.astype(object).where(frame.notna(), "").astype(str)


def _whole(rows: Iterable[Mapping[Any, Any]]) -> Iterator[Mapping[Any, Any]]:
    """The rows, none of which has half a character: pandas would fail with the text in its error."""
    for position, row in enumerate(rows):
        for name, cell in row.items():
            check_unicode("a column name", str(name), position)
            if isinstance(cell, str):
                check_unicode(str(name), cell, position)
        yield row


def _id_column(table: pd.DataFrame, wanted: str | None) -> str:
    names = _ID_COLUMNS if wanted is None else (wanted,)
    for name in names:
        if name in table:
            return name
    # What a column is called stays unsaid: without a header, it is a report.
    raise ValueError(
        f"the table must have an id column {' or '.join(names)}, got none among {table.shape[1]} columns. "
        "Name the column of your ids; the first line of a CSV file must hold the names."
    )


def _check_ids(name: str, ids: pd.Series) -> None:
    is_empty = (ids == "").to_numpy()
    if is_empty.any():
        raise ValueError(
            f"{name} must be filled in every row, got {int(is_empty.sum())} empty, first at row "
            f"{int(is_empty.argmax())}. Fill it."
        )
    is_repeated = ids.duplicated().to_numpy()
    if is_repeated.any():
        row = int(is_repeated.argmax())
        raise ValueError(
            f"{name} must be unique, got {int(is_repeated.sum())} repeats, first at row {row} "
            f"(sha256 {identifier_hash(ids.iloc[row])}). Name volumes in a column volume_id."
        )


def _check_splits(table: pd.DataFrame, splits: pd.Series) -> None:
    check_splits(splits)
    if "patient_id" not in table:
        return
    num_splits = splits.groupby(table["patient_id"].str.strip()).nunique()
    leaking = num_splits[(num_splits > 1) & (num_splits.index != "")]
    if len(leaking):
        raise ValueError(
            f"a patient must be in one split, got {len(leaking)} patients in several, first patient "
            f"{identifier_hash(str(leaking.index[0]))}. Split by patient, not by study."
        )


def _texts_of(table: pd.DataFrame, text_column: str) -> pd.Series | None:
    if text_column in table:
        return table[text_column].map(normalize_report)
    if set(SECTIONS) & set(table):
        parts = [table.get(name, pd.Series("", index=table.index)) for name in SECTIONS]
        joined = [join_sections(first, second) for first, second in zip(*parts, strict=True)]
        return pd.Series(joined, index=table.index, dtype=object)
    return None


def _join_keys(
    table: pd.DataFrame, name_column: str, texts: pd.Series | None, text_column: str
) -> tuple[str, pd.Series, str]:
    """What the join is called, its keys, and the column of the label table that holds them."""
    if texts is not None:
        by = text_column if text_column in table else "findings and impression"
        return by, texts.map(report_sha256), "report_sha256"
    if "report_sha256" in table:
        return "report_sha256", table["report_sha256"], "report_sha256"
    by = "study_id" if name_column == "volume_id" and "study_id" in table else name_column
    return by, table[by].str.strip(), "report_id"


def _look_up(column: pd.Series, keys: pd.Series) -> np.ndarray:
    position = {str(key): row for row, key in enumerate(column)}
    return np.array([position.get(key, _NO_ROW) for key in keys], dtype=np.int64)


def _volume_names(ids: pd.Series) -> pd.Series:
    """Write the volumes of CT-RATE as its own tables do, with the ending, so that they can be joined."""
    if not all(VOLUME_NAME.fullmatch(name) for name in ids):
        return ids
    return ids.str.removesuffix(".nii.gz") + ".nii.gz"
