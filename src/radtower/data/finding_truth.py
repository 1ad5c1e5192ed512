"""What is true of the volumes of a manifest: labels 0 and 1 from its columns, a label table or another table.

Axes: N volumes, F findings.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from radtower.data.csv_table import read_csv_table
from radtower.data.gold_labels import RELEASED_ID, RELEASED_NAME, side_of
from radtower.data.manifest import Manifest
from radtower.data.model_names import without_machine_path
from radtower.data.targets import MASKED_TARGET, Status, TargetPolicy, numeric_targets
from radtower.labeling.findings import FindingsSet
from radtower.labeling.findings_mapping import FindingsMapping, map_scores, map_statuses
from radtower.labeling.label_table import LabelTable, read_labels
from radtower.processing.report_text import report_sha256

# Column of a label table of the user's -> column of the manifest that holds the same ids.
ID_COLUMNS = {
    "volume_id": "volume_id",
    "VolumeName": "volume_id",  # CT-RATE
    "NoteAcc_DEID": "volume_id",  # RAD-ChestCT
    "study_id": "study_id",
}
RULE = "not mentioned is absent, uncertain is masked"
NOT_GOLD = "output of a model, not gold"
_SUFFIX = ".nii.gz"  # of the names in CT-RATE's tables


@dataclass(frozen=True)
class FindingTruth:
    """Labels in the order of a manifest.

    ``keys``: F findings. ``labels``: ``(N, F)`` float32, 0, 1, or -100 where uncertain or unknown.
    ``left_out``: the reason, by finding, for those that no volume can have a label of; their columns are
    -100. ``unlabeled``: the reason, by volume id, for volumes without any label; their rows are -100.
    ``source`` says where labels are from.
    """

    keys: tuple[str, ...]
    labels: np.ndarray
    left_out: dict[str, str]
    unlabeled: dict[str, str]
    source: str

    @property
    def labeled_keys(self) -> tuple[str, ...]:
        """Findings that have labels, in order."""
        return tuple(key for key in self.keys if key not in self.left_out)


def read_truth(
    manifest: Manifest,
    findings: FindingsSet | FindingsMapping,
    table: str | Path | None = None,
    id_column: str | None = None,
) -> FindingTruth:
    """Read the labels of every volume.

    Cells hold status values, of which not_mentioned is absent and uncertain is masked, or 0 and 1; an empty
    cell is unknown. Where the findings are those of a mapping, a table with a finding that only its source
    has is mapped: a finding is there if one of its sources is.

    Args:
        manifest: Volumes, and labels in columns named by key or by name.
        findings: The columns, in order; of a mapping, its target.
        table: ``labels.parquet`` of ``radtower label``, looked up by report; or CSV or parquet with a column
            of ids and one per finding, such as CT-RATE's. None takes the columns of the manifest.
        id_column: Ids of volumes in such a table; ``study_id`` holds studies. None finds a usual one.

    Raises:
        KeyError: If a label table lacks a finding that is needed.
        ValueError: If the table has no column of ids, an id twice or no volume of the manifest, no finding
            has labels, a finding has two columns, or a cell is neither a status nor 0 or 1.
    """
    if table is None:
        labels, left_out = _labels_of_columns(manifest.frame, findings)
        return FindingTruth(_keys(findings), labels, left_out, {}, "label columns of the manifest")
    table = Path(table)
    if table.suffix == ".parquet" and "report_sha256" in pq.read_schema(table).names:
        return _by_report(manifest, findings, read_labels(table), table.name)
    return _by_id(manifest, findings, table, id_column)


def _by_report(
    manifest: Manifest, findings: FindingsSet | FindingsMapping, labels: LabelTable, name: str
) -> FindingTruth:
    wanted = [report_sha256(report) for report in manifest.frame["report"]]
    rows = pd.Index(labels.frame["report_sha256"]).get_indexer(wanted)
    _check_any(rows, "a report")
    has_error = labels.frame["error"].notna().to_numpy()
    reasons = {
        volume_id: f"its report is not in {name}" if row < 0 else f"its report could not be labeled in {name}"
        for volume_id, row in zip(manifest.frame["volume_id"], rows, strict=True)
        if row < 0 or has_error[row]
    }
    known, mapping = _side_of_labels(labels, findings)
    statuses = labels.status_frame.reindex(columns=list(known.keys)).reset_index(drop=True)
    statuses = (
        statuses.reindex(rows).reset_index(drop=True).astype(object)
    )  # -1 is in no index: a row of None
    statuses = statuses.where(statuses.notna(), None)
    columns = [key for key in known.keys if key in labels.keys]
    values = _from_statuses(statuses, mapping)
    left_out = _left_out(columns, known, mapping)
    who = labels.frame[["labeler", "model_id"]].drop_duplicates().itertuples()
    makers = ", ".join(sorted({f"{row.labeler} {without_machine_path(str(row.model_id))}" for row in who}))
    _check(values, left_out)
    return FindingTruth(_keys(findings), values, left_out, reasons, f"{name} by {makers}; {RULE}")


def _side_of_labels(
    labels: LabelTable, findings: FindingsSet | FindingsMapping
) -> tuple[FindingsSet, FindingsMapping | None]:
    """The set that a label table was made with, and the mapping where that is its source."""
    if isinstance(findings, FindingsSet):
        labels.findings_in(findings)
        return findings, None
    try:
        labels.findings_in(findings.target)
    except (KeyError, ValueError):
        labels.findings_in(findings.source)
        return findings.source, findings
    # Equal keys may mean other things: what is said of the set decides, and the target if nothing is.
    named = set(labels.frame["findings_set"].str.partition("[")[0]) == {findings.source.name}
    return (findings.source, findings) if named else (findings.target, None)


def _by_id(
    manifest: Manifest, findings: FindingsSet | FindingsMapping, path: Path, id_column: str | None
) -> FindingTruth:
    frame = _read_table(path)
    column, key = _id_columns(frame, id_column, path.name)
    ids = frame[column].astype(str).str.strip().str.removesuffix(_SUFFIX)
    repeated = int((ids.duplicated() | (ids == "")).sum())
    if repeated:
        raise ValueError(
            f"{column} must be unique and not empty, got {repeated} cells of {path.name} that are not. Keep "
            "one row each."
        )
    rows = pd.Index(ids).get_indexer(pd.Index(manifest.frame[key].str.removesuffix(_SUFFIX)))
    _check_any(rows, f"a {key.removesuffix('_id')}")
    labels, left_out = _labels_of_columns(frame, findings)
    reasons = {
        volume_id: f"it is not in {path.name}"
        for volume_id, row in zip(manifest.frame["volume_id"], rows, strict=True)
        if row < 0
    }
    # As in gold_labels: all columns of CT-RATE's own tables are the labels of RadBERT.
    known = findings if isinstance(findings, FindingsSet) else findings.target
    is_released = RELEASED_NAME.fullmatch(path.stem) is not None or (
        RELEASED_ID in frame and set(known.names) <= set(frame)
    )
    labels = np.where(rows[:, None] < 0, np.float32(MASKED_TARGET), labels[rows])
    source = f"{path.name}, {NOT_GOLD}" if is_released else path.name
    return FindingTruth(_keys(findings), labels, left_out, reasons, source)


def _labels_of_columns(
    frame: pd.DataFrame, findings: FindingsSet | FindingsMapping
) -> tuple[np.ndarray, dict[str, str]]:
    """``(N, F)`` labels from columns named by key or by name, and the findings that have none."""
    known, mapping = (findings, None) if isinstance(findings, FindingsSet) else side_of(frame, findings)
    doubled = [f.key for f in known.findings if f.key != f.name and {f.key, f.name} <= set(frame)]
    if doubled:
        raise ValueError(
            f"labels must have one column per finding, got one by key and one by name for {doubled}. "
            "Remove one of them."
        )
    columns = {f.key if f.key in frame else f.name: f.key for f in known.findings}
    cells = frame[[name for name in columns if name in frame]].rename(columns=columns)
    left_out = _left_out(list(map(str, cells)), known, mapping)
    stripped = cells.astype(object).map(
        lambda cell: (cell.strip() or None) if isinstance(cell, str) else cell
    )
    cells = stripped.astype(object).where(stripped.notna(), None).reindex(columns=list(known.keys))
    cells = cells.astype(object).where(cells.notna(), None)
    if cells.isin([str(status) for status in Status]).to_numpy().any():
        values = _from_statuses(cells, mapping)
    else:
        values = _from_numbers(cells, mapping)
    _check(values, left_out)
    return values, left_out


def _from_statuses(statuses: pd.DataFrame, mapping: FindingsMapping | None) -> np.ndarray:
    if mapping is not None:
        statuses = map_statuses(statuses, mapping)
    return TargetPolicy().targets_from_status(statuses)


def _from_numbers(cells: pd.DataFrame, mapping: FindingsMapping | None) -> np.ndarray:
    values = TargetPolicy().targets_from_cells(cells)
    if mapping is None:
        return values
    known = pd.DataFrame(np.where(values == MASKED_TARGET, np.nan, values), columns=list(cells))
    return numeric_targets(map_scores(known, mapping))


def _left_out(columns: list[str], known: FindingsSet, mapping: FindingsMapping | None) -> dict[str, str]:
    """Why a finding has no label, for those that have none."""
    if mapping is None:
        return {key: "there is no column of labels" for key in known.keys if key not in columns}
    missing = {
        key: f"there is no column of labels for {', '.join(absent)}"
        for key, found in mapping.findings.items()
        if (absent := [source for source in found.sources if source not in columns])
    }
    return missing | {key: f"unmapped: {why}" for key, why in mapping.unmapped.items()}


def _keys(findings: FindingsSet | FindingsMapping) -> tuple[str, ...]:
    return (findings if isinstance(findings, FindingsSet) else findings.target).keys


def _check(labels: np.ndarray, left_out: dict[str, str]) -> None:
    if len(left_out) == labels.shape[1]:
        raise ValueError(
            f"labels must have a column of at least one finding, got none of {', '.join(left_out)}. Name the "
            "columns by key or by name, or give the table with --labels."
        )
    soft = int((~np.isin(labels, (0.0, 1.0, MASKED_TARGET))).sum())
    if soft:
        raise ValueError(
            f"labels must be 0 or 1 to be measured against, got {soft} between them. Leave a cell empty "
            "where the label is not known."
        )


def _check_any(rows: np.ndarray, what: str) -> None:
    if (rows < 0).all():
        raise ValueError(
            f"the table of labels must have {what} of the manifest, got none of {len(rows)}. Give the table "
            "of this data, or name its column of ids."
        )


def _id_columns(frame: pd.DataFrame, id_column: str | None, file: str) -> tuple[str, str]:
    """The column of ids in the table, and that of the manifest."""
    found = [name for name in ([id_column] if id_column else ID_COLUMNS) if name in frame]
    if not found:
        wanted = repr(id_column) if id_column else f"one of {', '.join(ID_COLUMNS)}"
        raise ValueError(
            f"the table of labels {file} must have the column {wanted}, got none among {frame.shape[1]} "
            "columns. Name the column of its volume ids."
        )
    return found[0], ID_COLUMNS.get(found[0], "volume_id")


def _read_table(path: Path) -> pd.DataFrame:
    if path.suffix not in (".csv", ".parquet"):
        raise ValueError(f"labels must end in .csv or .parquet, got {path.name!r}. Convert the table.")
    frame = pd.read_parquet(path) if path.suffix == ".parquet" else read_csv_table(path)
    if frame.empty:
        raise ValueError(f"the table of labels {path.name} must have rows, got none. Add one per volume.")
    return frame
