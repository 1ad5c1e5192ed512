"""The label table (``labels.parquet``): one row per unique report, checked when written and when read.

Columns: report_id, report_sha256, the structs status, score and evidence keyed by finding, labeler, model_id,
prompt_version, findings_set, tokens_in, tokens_out, cost_usd, error. Axes: N rows, F findings.
"""

import glob
import json
import os
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from radtower.labeling.answers.generation import Generation
from radtower.labeling.findings import FindingsSet, Status

_STRUCTS = {"status": pa.string(), "score": pa.float64(), "evidence": pa.string()}
_SCALARS = {
    "report_id": pa.string(),
    "report_sha256": pa.string(),
    "labeler": pa.string(),
    "model_id": pa.string(),
    "prompt_version": pa.string(),
    "findings_set": pa.string(),
    "tokens_in": pa.int64(),
    "tokens_out": pa.int64(),
    "cost_usd": pa.float64(),
    "error": pa.string(),
}
_COLUMNS = (*list(_SCALARS)[:2], *_STRUCTS, *list(_SCALARS)[2:])
_ROWS_PER_GROUP = 1000  # of the file; so many are held while it is written
_DROPPED_EVIDENCE = b"radtower.num_dropped_evidence"
_GENERATION = b"radtower.generation"
Setting = str | int | float | bool | None


@dataclass(frozen=True, kw_only=True)
class LabelRow:
    """The labels of one unique report.

    ``status`` is None for every finding exactly when ``error`` gives a reason. ``score`` is P(present), or
    None where the labeler measured no probability. Tokens and cost are None where unknown.
    ``num_dropped_evidence`` counts quotes that were not in the report; the file keeps its total.
    """

    report_id: str
    report_sha256: str
    status: dict[str, Status | None]
    score: dict[str, float | None]
    evidence: dict[str, str | None]
    labeler: str
    model_id: str
    prompt_version: str | None
    findings_set: str
    tokens_in: int | None = None
    tokens_out: int | None = None
    cost_usd: float | None = None
    error: str | None = None
    num_dropped_evidence: int = 0


@dataclass(frozen=True)
class LabelTable:
    """A label table in memory; every method keeps the row order of the file.

    ``generation`` is what the answers depend on (labeler, model, prompt, findings with their fingerprint, and
    ``settings.NAME`` for each setting); empty where the file does not say.
    """

    frame: pd.DataFrame
    keys: tuple[str, ...]
    num_dropped_evidence: int = 0
    generation: Mapping[str, Setting] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def generation_hash(self) -> str | None:
        """Twelve hex digits that change with prompt, findings and settings; None where nothing is known.

        The model is left out: its id may be a folder, which has another name on another machine.
        """
        parts = {name: value for name, value in self.generation.items() if name != "model_id"}
        return Generation(parts).hash if parts else None

    @property
    def status_frame(self) -> pd.DataFrame:
        """Status values, index report_id, one column per finding; None where labeling failed."""
        return self._spread("status")

    @property
    def evidence_frame(self) -> pd.DataFrame:
        """Verbatim quotes, laid out as ``status_frame``; None where there is none."""
        return self._spread("evidence")

    @property
    def failures(self) -> pd.Series:
        """Reason by report_id, of the reports that have no labels."""
        failed = self.frame[self.frame["error"].notna()]
        return pd.Series(failed["error"].to_numpy(), index=failed["report_id"], name="error")

    def score_matrix(self, keys: Sequence[str] | None = None) -> np.ndarray:
        """Return ``(N, F)`` float64 P(present); NaN where no probability was measured.

        Raises:
            KeyError: If a key is not in the table.
        """
        columns = self._known(self.keys if keys is None else keys)
        scores = [[row[key] for key in columns] for row in self.frame["score"]]
        return np.array(scores, dtype=np.float64).reshape(len(self.frame), len(columns))

    def findings_in(self, findings: FindingsSet) -> FindingsSet:
        """Return the findings of the table, as ``findings`` defines them.

        Raises:
            KeyError: If ``findings`` lacks one of them.
            ValueError: If the table says that it was labeled with another set, or with other wording.
        """
        own = findings.subset(self.keys)
        labeled_with = self.generation.get("findings")
        if labeled_with not in (None, own.identity):
            raise ValueError(
                f"findings must be those that were labeled with, {labeled_with!r}, got {own.identity!r}. "
                "Give the set, or the YAML file, with the wording of then."
            )
        return own

    def rows_of(self, report_sha256s: Sequence[str]) -> np.ndarray:
        """Return the row number of each report by its hash; studies that share a report share a row.

        Raises:
            KeyError: If a report is not in the table.
        """
        position = {sha: row for row, sha in enumerate(self.frame["report_sha256"])}
        unknown = [sha for sha in report_sha256s if sha not in position]
        if unknown:
            raise KeyError(
                f"report_sha256s must be in the label table, got {len(unknown)} that are not, "
                f"first {unknown[0][:12]}. Label these reports first."
            )
        return np.array([position[sha] for sha in report_sha256s], dtype=np.int64)

    def _spread(self, column: str) -> pd.DataFrame:
        rows = [[row[key] for key in self.keys] for row in self.frame[column]]
        index = pd.Index(self.frame["report_id"], name="report_id")
        return pd.DataFrame(rows, index=index, columns=list(self.keys), dtype=object)

    def _known(self, keys: Sequence[str]) -> list[str]:
        unknown = sorted(set(keys) - set(self.keys))
        if unknown:
            raise KeyError(f"keys must be in the label table, got {unknown}. It has {', '.join(self.keys)}.")
        return list(keys)


def write_labels(rows: Sequence[LabelRow], path: str | Path) -> None:
    """Write a label table, atomically: a reader sees the old file or the new one, whole.

    Raises:
        ValueError: If there are no rows, two rows have the same report, or the findings differ between rows.
    """
    if not rows:
        raise ValueError(
            "rows must not be empty, got 0 rows. A label table needs the findings of at least one report."
        )
    for name in ("report_id", "report_sha256"):
        _check_unique(pd.Series([getattr(row, name) for row in rows], name=name))
    stream_labels(rows, path, list(rows[0].status))


def stream_labels(
    rows: Iterable[LabelRow],
    path: str | Path,
    keys: Sequence[str],
    generation: Mapping[str, Setting] | None = None,
) -> None:
    """Write a label table as ``write_labels`` does, without ever holding all rows.

    Args:
        rows: At least one; the caller answers for each report coming once.
        path: File to write.
        keys: Findings, in order.
        generation: What the answers depend on, see ``LabelTable``; None is not known.

    Raises:
        ValueError: If a row has other findings, or a value breaks the contract of its column.
    """
    structs = {name: pa.struct([(key, kind) for key in keys]) for name, kind in _STRUCTS.items()}
    schema = pa.schema([(name, {**_SCALARS, **structs}[name]) for name in _COLUMNS])
    num_rows = num_dropped = 0
    rows = iter(rows)
    with _written_atomically(Path(path)) as temporary, pq.ParquetWriter(temporary, schema) as writer:
        while counts := _write_group(rows, writer, num_rows):
            num_rows += counts[0]
            num_dropped += counts[1]
        writer.add_key_value_metadata(
            {
                _DROPPED_EVIDENCE: str(num_dropped).encode(),
                _GENERATION: json.dumps(dict(generation or {})).encode(),
            }
        )


def _write_group(
    rows: Iterator[LabelRow], writer: pq.ParquetWriter, first_row: int
) -> tuple[int, int] | None:
    """Write some of the rows; gives their number and dropped quotes, None where there are no more."""
    group = list(islice(rows, _ROWS_PER_GROUP))
    if not group:
        return None
    _check_findings(group, [field.name for field in writer.schema.field("status").type], first_row)
    cells = [{name: getattr(row, name) for name in _COLUMNS} for row in group]
    table = pa.Table.from_pylist(cells, schema=writer.schema)
    _check_values(table.to_pandas(), first_row)
    writer.write_table(table)
    return len(group), sum(row.num_dropped_evidence for row in group)


def read_labels(path: str | Path) -> LabelTable:
    """Read a label table and check it.

    Raises:
        ValueError: If a column is missing or of another type, or a value breaks the contract of its column.
    """
    table = pq.read_table(path)
    missing = [name for name in _COLUMNS if name not in table.schema.names]
    if missing:
        raise ValueError(
            f"the label table {Path(path).name} must have the columns {', '.join(_COLUMNS)}, got none named "
            f"{missing}. Label the reports again, or name another table."
        )
    for name, kind in _SCALARS.items():
        if table.schema.field(name).type != kind:
            raise ValueError(
                f"{name} of the label table {Path(path).name} must be a column of type {kind}, got "
                f"{table.schema.field(name).type}. Label the reports again, or name another table."
            )
    status_type = table.schema.field("status").type
    keys = tuple(field.name for field in status_type) if pa.types.is_struct(status_type) else ()
    for name, kind in _STRUCTS.items():
        if table.schema.field(name).type != pa.struct([(key, kind) for key in keys]) or not keys:
            raise ValueError(
                f"{name} of the label table {Path(path).name} must be a struct of {kind} keyed by finding, "
                "the same findings in status, score and evidence, got "
                f"{table.schema.field(name).type}. Label the reports again, or name another table."
            )
    frame = table.select(list(_COLUMNS)).to_pandas()
    for name in ("report_id", "report_sha256"):
        _check_unique(frame[name])
    _check_values(frame)
    notes = pq.read_metadata(path).metadata or {}
    return LabelTable(
        frame=frame,
        keys=keys,
        num_dropped_evidence=int(notes.get(_DROPPED_EVIDENCE, b"0")),
        generation=json.loads(notes.get(_GENERATION, b"{}")),
    )


def _check_unique(column: pd.Series) -> None:
    repeated = column.duplicated()
    if repeated.any():
        raise ValueError(
            f"{column.name} must be unique, got {int(repeated.sum())} repeats, first at row "
            f"{int(repeated.argmax())}. Keep one row per unique report."
        )


def _check_findings(rows: Sequence[LabelRow], keys: list[str], first_row: int) -> None:
    for position, row in enumerate(rows, first_row):
        if not list(row.status) == list(row.score) == list(row.evidence) == keys:
            raise ValueError(
                f"rows must share the findings {keys}, got {list(row.status)} at row {position}. "
                "Write one table per findings set."
            )


def _check_values(frame: pd.DataFrame, first_row: int = 0) -> None:
    for position, (statuses, scores, error) in enumerate(
        zip(frame["status"], frame["score"], frame["error"], strict=True), first_row
    ):
        allowed = {None} if isinstance(error, str) else set(Status)
        invalid = sorted(f"{key}={value}" for key, value in statuses.items() if value not in allowed)
        if invalid:
            raise ValueError(
                f"status must be one of {', '.join(Status)}, or null for all findings of a row with an "
                f"error, got {', '.join(invalid[:3])} at row {position}."
            )
        outside = [f"{key}={v}" for key, v in scores.items() if v is not None and not 0.0 <= v <= 1.0]
        if outside:
            raise ValueError(
                f"score must be in [0, 1] or null, got {', '.join(outside[:3])} at row {position}."
            )


@contextmanager
def _written_atomically(path: Path) -> Iterator[Path]:
    path.parent.mkdir(parents=True, exist_ok=True)
    # In the folder of the target: a rename is atomic within one file system only. Not by tempfile, whose
    # files nobody else can read.
    for left_by_a_kill in path.parent.glob(f".{glob.escape(path.name)}.*.tmp"):
        left_by_a_kill.unlink(missing_ok=True)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
