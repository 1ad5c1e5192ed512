"""Gold labels in a table of the user's, and the silver label of each of their reports.

Axes: N gold rows, F findings.
"""

import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from radtower.data.csv_table import read_csv_table
from radtower.data.targets import MASKED_TARGET
from radtower.labeling.findings import FindingsSet, Status
from radtower.labeling.findings_mapping import FindingsMapping, map_scores, map_statuses
from radtower.labeling.label_table import LabelTable
from radtower.processing.report_text import report_sha256

RELEASED_NAME = re.compile(r".*_predicted_labels(_\w+)?", re.IGNORECASE)  # of CT-RATE
RELEASED_ID = "VolumeName"
RELEASED_SOURCE = re.compile(r"radbert|predicted|released", re.IGNORECASE)
BY_HAND = re.compile(
    r"manual|by hand|hand-?labeled|radiologist", re.IGNORECASE
)  # that RadBERT learned from, say

# A wrong cell that an error may show: a label gone wrong, not text of a report, a name or a record number.
SHOWN_CELL = re.compile(
    r"[-+]?\d{0,3}([.,]\d{1,4})?|yes|no|true|false|y|n|t|f|x|pos(itive)?|neg(ative)?|present|absent|uncertain"
    r"|not[ _-]?mentioned|unknown|maybe|possible|\?|n/?a|nan|none|null",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class GoldColumns:
    """Columns of a gold table beside those of the findings.

    ``text`` is the report, by which duplicates find their silver row; None joins by ``id``, which must then
    be the id of the label table. ``patient`` groups the rows of a patient; None takes each report for one.
    """

    id: str
    text: str | None = None
    patient: str | None = None


@dataclass(frozen=True)
class GoldLabels:
    """Gold labels, in file order.

    ``statuses``: ``(N, F)`` status values, index the gold id; None where the table has an empty cell.
    ``sha256s``: ``(N,)`` hashes of the reports, or None without a text column. ``patient_ids``: ``(N,)``.
    ``is_mapped``: the table was in the source set of the mapping, and is now in its target.
    ``is_model_output``: the table looks like the labels that CT-RATE released, which RadBERT made.
    """

    statuses: pd.DataFrame
    sha256s: tuple[str, ...] | None
    patient_ids: np.ndarray
    is_mapped: bool
    is_model_output: bool


@dataclass(frozen=True)
class LabelPairs:
    """Silver beside gold: tables ``(N, F)`` with the same index (gold ids) and the same findings.

    ``silver`` rows are None where labeling failed; ``failed`` says why, by gold id. ``scores`` are NaN where
    no probability was measured. ``missing``: gold ids without a row in the label table; they are in none of
    the tables. ``left_out``: the reason, by finding, for each that only one side has.
    """

    silver: pd.DataFrame
    gold: pd.DataFrame
    scores: pd.DataFrame
    patient_ids: np.ndarray
    failed: dict[str, str]
    missing: tuple[str, ...]
    left_out: dict[str, str]


def read_gold(path: str | Path, findings: FindingsSet | FindingsMapping, columns: GoldColumns) -> GoldLabels:
    """Read gold labels from CSV or parquet.

    A finding has a column by its key or by its name; findings without one are left out. Cells hold status
    values or, in the whole table, 0 and 1; an empty cell is unknown, and so is -100, the mask of targets.

    Args:
        path: The table.
        findings: What the columns can be. Where the silver labels are to be mapped, the mapping: a table with
            a finding that only its source has is mapped, too; any other is in the target.
        columns: What the other columns are.

    Raises:
        ValueError: If the format is unknown, there are no rows, a row has too many or too few fields, a
            column is missing or there twice, an id is empty or comes twice, or a cell is neither a status
            nor 0 or 1.
        KeyError: If a table in the source of the mapping lacks findings that the mapping needs.
    """
    path = Path(path)
    frame = _read_table(
        path, [name for name in (columns.id, columns.text, columns.patient) if name is not None]
    )
    ids = frame[columns.id].astype(str)
    num_bad = int((ids.duplicated() | (ids == "")).sum())
    if num_bad:
        raise ValueError(
            f"{columns.id} must be unique and not empty, got {num_bad} cells that are not. Keep one gold row "
            "per report."
        )
    hashes = None if columns.text is None else tuple(map(report_sha256, frame[columns.text].astype(str)))
    known, mapping = (findings, None) if isinstance(findings, FindingsSet) else side_of(frame, findings)
    statuses = _statuses_of(frame, known).set_index(pd.Index(ids, name=columns.id))
    is_released = RELEASED_NAME.fullmatch(path.stem) is not None or (
        RELEASED_ID in frame and set(known.names) <= set(frame)
    )
    return GoldLabels(
        statuses=statuses if mapping is None else map_statuses(statuses, mapping),
        sha256s=hashes,
        patient_ids=_patients_of(frame, columns, hashes),
        is_mapped=mapping is not None,
        is_model_output=is_released,
    )


def is_model_output(label_source: str) -> bool:
    """Return whether the words for a label source name the labels that CT-RATE released."""
    return RELEASED_SOURCE.search(label_source) is not None and BY_HAND.search(label_source) is None


def pair_labels(labels: LabelTable, gold: GoldLabels, mapping: FindingsMapping | None = None) -> LabelPairs:
    """Look up the silver row of each gold row: by the text where gold has it, by the id otherwise.

    Args:
        labels: The label table.
        gold: Findings of the label table, or of the target of ``mapping``.
        mapping: Turns the silver labels into labels of another findings set first.

    Raises:
        ValueError: If no gold row finds a silver one, or no finding is on both sides.
        KeyError: If the table lacks a finding that the mapping starts from.
    """
    wanted = gold.statuses.index if gold.sha256s is None else pd.Index(gold.sha256s)
    column = "report_id" if gold.sha256s is None else "report_sha256"
    rows = pd.Index(labels.frame[column].astype(str)).get_indexer(wanted)
    is_found = rows >= 0
    if not is_found.any():
        raise ValueError(
            f"gold must have reports of the label table, got none of {len(rows)} by {column}. "
            "Name the id column that was labeled, or the text column."
        )
    # The rows that count only: a table of all reports may be much longer than gold.
    frame = labels.frame.iloc[rows[is_found]].reset_index(drop=True)
    table = LabelTable(frame=frame, keys=labels.keys)
    index = gold.statuses.index[is_found]
    has_error = frame["error"].notna().to_numpy()
    silver = table.status_frame.set_axis(index)
    scores = pd.DataFrame(table.score_matrix(), index=index, columns=list(labels.keys))
    if mapping is not None:
        silver, scores = map_statuses(silver, mapping), map_scores(scores, mapping)
    left_out = _left_out(silver.columns.astype(str), gold.statuses.columns.astype(str), mapping)
    shared = [key for key in silver if key not in left_out]
    if not shared:
        raise ValueError(
            f"gold must share a finding with the labels, got {', '.join(gold.statuses.columns)} and "
            f"{', '.join(silver.columns)}. Choose another findings set or mapping."
        )
    return LabelPairs(
        silver=silver[shared],
        gold=gold.statuses.loc[is_found, shared],
        scores=scores[shared],
        patient_ids=gold.patient_ids[is_found],
        failed=dict(zip(index[has_error], frame["error"][has_error], strict=True)),
        missing=tuple(gold.statuses.index[~is_found]),
        left_out=left_out,
    )


def _left_out(silver: pd.Index, gold: pd.Index, mapping: FindingsMapping | None) -> dict[str, str]:
    reasons = {key: "gold has no column" for key in silver if key not in gold}
    reasons |= {key: "the labels do not have it" for key in gold if key not in silver}
    unmapped = {} if mapping is None else mapping.unmapped
    return reasons | {key: f"unmapped: {why}" for key, why in unmapped.items()}


def _statuses_of(frame: pd.DataFrame, findings: FindingsSet) -> pd.DataFrame:
    doubled = [f.key for f in findings.findings if f.key != f.name and {f.key, f.name} <= set(frame)]
    if doubled:
        raise ValueError(
            f"gold must have one column per finding, got one by key and one by name for {doubled}. "
            "Remove one of them."
        )
    columns = {f.key if f.key in frame else f.name: f.key for f in findings.findings}
    table = frame[[name for name in columns if name in frame]].rename(columns=columns)
    if table.shape[1] == 0:
        raise ValueError(
            f"gold must have a column per finding, got none among {frame.shape[1]} columns. "
            f"{findings.name} has {', '.join(findings.keys)}."
        )
    stripped = table.astype(object).map(lambda cell: cell.strip() if isinstance(cell, str) else cell)
    cells = stripped.astype(object).where(stripped != "", None)  # as str, None would become NaN
    is_masked = cells.apply(pd.to_numeric, errors="coerce") == MASKED_TARGET
    cells = cells.where(~is_masked, None)
    has_status = cells.isin([str(status) for status in Status]).any(axis=None)
    return _checked(cells) if has_status else _from_numbers(cells)


def _checked(cells: pd.DataFrame) -> pd.DataFrame:
    is_wrong = cells.notna() & ~cells.isin([str(status) for status in Status])
    if is_wrong.any(axis=None):
        raise ValueError(
            f"gold must hold {', '.join(Status)}, got other cells beside them: "
            f"{_described(cells, is_wrong)}. Write a status into each, or leave it empty where gold is "
            "unknown."
        )
    return cells


def _from_numbers(cells: pd.DataFrame) -> pd.DataFrame:
    numbers = cells.apply(pd.to_numeric, errors="coerce").astype(np.float64)
    if (numbers == -1).any(axis=None):
        raise ValueError(
            "gold must hold 0 and 1, or status values, got -1, which mixes uncertain with not mentioned: "
            f"{_described(cells, numbers == -1)}. Replace it by uncertain or not_mentioned, 1 by present "
            "and 0 by absent; or leave the cell empty."
        )
    is_wrong = cells.notna() & ~numbers.isin([0, 1])
    if is_wrong.any(axis=None):
        raise ValueError(
            f"gold must hold {', '.join(Status)}, or 0 and 1, got other cells: "
            f"{_described(cells, is_wrong)}. Leave a cell empty where gold is unknown."
        )
    words = {1.0: str(Status.PRESENT), 0.0: str(Status.ABSENT)}
    return numbers.map(words.get).astype(object).where(cells.notna(), None)


def _described(cells: pd.DataFrame, is_wrong: pd.DataFrame) -> str:
    """Say where wrong cells are, and what is in the first one unless that could identify somebody."""
    column = is_wrong.columns[is_wrong.any()][0]
    row = int(is_wrong[column].to_numpy().argmax())
    cell = str(cells[column].iloc[row])
    content = repr(cell) if SHOWN_CELL.fullmatch(cell) else "text"
    return f"{int(is_wrong.to_numpy().sum())}, first {content} in the column of {column} at row {row}"


def _read_table(path: Path, named: list[str]) -> pd.DataFrame:
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    elif path.suffix == ".csv":
        frame = read_csv_table(path)
    else:
        raise ValueError(f"gold must end in .csv or .parquet, got {path.suffix!r}. Convert the table.")
    if frame.empty:
        raise ValueError(f"gold {path.name} must have rows, got none. Add reports with labels.")
    # What a column is called stays unsaid: without a header, it is a report.
    missing = [name for name in named if name not in frame]
    if missing:
        raise ValueError(
            f"gold {path.name} must have the columns {', '.join(named)}, got none named {missing} among "
            f"{frame.shape[1]} columns. Name the columns of your table; the first line of a CSV file must "
            "hold their names."
        )
    # One word for an empty cell, whatever the type of its column.
    return frame.astype(object).where(frame.notna(), "")


def side_of(frame: pd.DataFrame, mapping: FindingsMapping) -> tuple[FindingsSet, FindingsMapping | None]:
    """Which set gold is in, and the mapping where that is the source.

    A finding that only the source has tells: names that both sets have may mean different things.
    """
    in_target = {*mapping.target.keys, *mapping.target.names}
    telling = {word for f in mapping.source.findings for word in (f.key, f.name)} - in_target
    return (mapping.source, mapping) if telling & set(frame) else (mapping.target, None)


def _patients_of(frame: pd.DataFrame, columns: GoldColumns, hashes: tuple[str, ...] | None) -> np.ndarray:
    if columns.patient is None:
        # Equal reports are no independent ones.
        return np.array(frame[columns.id].astype(str) if hashes is None else hashes, dtype=object)
    patients = frame[columns.patient].astype(str)
    num_unknown = int((patients == "").sum())
    if num_unknown:
        raise ValueError(
            f"{columns.patient} must name the patient of every row, got {num_unknown} empty cells. Fill them."
        )
    return patients.to_numpy(dtype=object)
