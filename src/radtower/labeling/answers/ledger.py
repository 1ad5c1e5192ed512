"""The ledger of a label table: which reports there are, and what was answered. One SQLite file beside it.

A commit per answer: a process that is killed loses only what it was waiting for (a power cut may cost the
last seconds). Answers are kept per generation, so that going back to earlier settings costs nothing. The
file holds evidence quotes, in a folder that only its owner can enter; it never holds a report.
"""

import hashlib
import json
import shutil
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radtower.labeling.answers.batch_memory import BatchMemory
from radtower.labeling.answers.generation import Generation
from radtower.labeling.answers.ledger_file import attached, connect, transaction
from radtower.labeling.answers.notes import merge_notes
from radtower.labeling.findings import Status
from radtower.labeling.report_labels import ReportLabels
from radtower.processing.report_text import report_sha256

SUFFIX = ".ledger"
FILE_NAME = "ledger.sqlite"
PARTS = "parts"  # folder for the ledgers of tasks: RUN/NUMBER.parquet.ledger
_STATUSES = {status.value: status for status in Status}
_EMPTY_SHA256 = report_sha256("")
# What was spent on a report before counts on: tokens and cost are added up, whichever answer stays. A failure
# does not take the place of labels.
_ADD_UP = """
ON CONFLICT DO UPDATE SET
    status = iif(answers.error IS NULL AND excluded.error IS NOT NULL, status, excluded.status),
    score = iif(answers.error IS NULL AND excluded.error IS NOT NULL, score, excluded.score),
    evidence = iif(answers.error IS NULL AND excluded.error IS NOT NULL, evidence, excluded.evidence),
    error = iif(answers.error IS NULL, NULL, excluded.error),
    num_dropped_evidence = iif(answers.error IS NULL AND excluded.error IS NOT NULL,
        num_dropped_evidence, excluded.num_dropped_evidence),
    tokens_in = ifnull(tokens_in + excluded.tokens_in, ifnull(tokens_in, excluded.tokens_in)),
    tokens_out = ifnull(tokens_out + excluded.tokens_out, ifnull(tokens_out, excluded.tokens_out)),
    cost_usd = ifnull(cost_usd + excluded.cost_usd, ifnull(cost_usd, excluded.cost_usd))
"""
_RECORD = "INSERT INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)" + _ADD_UP  # noqa: S608 -- constants
_FORGET_BATCH = "DELETE FROM batched WHERE generation = ? AND report_sha256 = ?"
_ABSORB = (
    "INSERT OR IGNORE INTO generations SELECT hash, parts, 0 FROM part.generations",
    "INSERT INTO stops SELECT * FROM part.stops",
    "CREATE TABLE IF NOT EXISTS part.notes (note TEXT NOT NULL)",  # of an earlier version, there is none
    "INSERT INTO notes SELECT * FROM part.notes",
    "INSERT INTO answers SELECT * FROM part.answers WHERE true"  # noqa: S608 -- constants
    + _ADD_UP,
)
_EMPTY_PART = ("DELETE FROM part.reports", "DELETE FROM part.stops", "DELETE FROM part.answers")
# What the model got wrong was answered and paid for; the rest was not answered.
_TO_ASK = """
FROM reports LEFT JOIN answers ON generation = :generation AND answers.report_sha256 = reports.report_sha256
WHERE position > :after AND reports.report_sha256 != :empty
AND (answers.report_sha256 IS NULL OR (error IS NOT NULL AND (:retry OR error NOT LIKE 'reply:%')))
"""
_SELECT_TO_ASK = "SELECT position, reports.report_sha256" + _TO_ASK + "ORDER BY position LIMIT :limit"
_COUNT_TO_ASK = "SELECT count(*)" + _TO_ASK
_IN_BATCHES = (
    "AND reports.report_sha256 IN (SELECT report_sha256 FROM batched WHERE generation = :generation)"
)
_ROWS = """
SELECT report_id, reports.report_sha256, answers.report_sha256 IS NOT NULL, status, score, evidence,
    tokens_in, tokens_out, cost_usd, error, num_dropped_evidence
FROM reports LEFT JOIN answers ON generation = ? AND answers.report_sha256 = reports.report_sha256
ORDER BY position
"""
_TOTALS = """
SELECT count(status), sum(tokens_in), sum(tokens_out), sum(cost_usd), ifnull(sum(num_dropped_evidence), 0)
FROM reports JOIN answers ON generation = ? AND answers.report_sha256 = reports.report_sha256
"""


@dataclass(frozen=True)
class ReportCounts:
    """What ``Ledger.register`` read: rows, and different texts among them; an empty text is one of them."""

    num_reports: int
    num_unique: int


@dataclass(frozen=True)
class Totals:
    """Sums over the registered reports of one generation; None where nothing was counted."""

    num_labeled: int
    tokens_in: int | None
    tokens_out: int | None
    cost_usd: float | None
    num_dropped_evidence: int


@contextmanager
def open_ledger(output: str | Path) -> Iterator["Ledger"]:
    """Open the ledger of a label table, or begin one; it is locked until the end of the block.

    What tasks of a cluster answered is taken over. One that was opened and never used is removed again.

    Args:
        output: The label table, existing or not; the ledger is the folder ``<output>.ledger`` beside it.

    Raises:
        BlockingIOError: If another process has it open, or a task is at work on a part of it.
        ValueError: If ``output`` is a folder or does not end in .parquet, or its ledger cannot be read.
    """
    output = Path(output)
    if output.suffix != ".parquet" or output.is_dir():
        kind = "a folder" if output.is_dir() else f"{output.name!r}"
        raise ValueError(f"output must be a file that ends in .parquet, got {kind}. Name a file.")
    folder = output.with_name(output.name + SUFFIX)
    output.parent.mkdir(parents=True, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    with closing(connect(folder / FILE_NAME)) as connection:
        ledger = Ledger(connection)
        try:
            _absorb_parts(ledger, folder / PARTS)
            yield ledger
        finally:
            if ledger.last_generation() is None:
                _remove(folder)


class Ledger:
    """Reports and answers; methods may be called from any thread. Made by ``open_ledger``."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._lock = threading.Lock()  # a backend may take reports in a thread of its own

    def register(self, reports: Iterable[tuple[str, str]]) -> ReportCounts:
        """Note the unique reports of this run, in order of first appearance, in place of the last run's.

        Args:
            reports: Pairs of report id and text.

        Raises:
            ValueError: If there are no reports, or an id comes twice; then the reports of the last run stay.
        """
        with self._lock, transaction(self._connection) as cursor:
            cursor.execute("DELETE FROM reports")
            cursor.execute("DELETE FROM stops")
            cursor.execute("DELETE FROM notes")
            cursor.execute("CREATE TABLE ids (id BLOB PRIMARY KEY) WITHOUT ROWID")
            num_reports = 0
            for position, (report_id, text) in enumerate(reports):
                digest = hashlib.blake2b(report_id.encode(), digest_size=16).digest()
                if not cursor.execute("INSERT OR IGNORE INTO ids VALUES (?)", (digest,)).rowcount:
                    raise ValueError(
                        f"report ids must be unique, got one a second time at position {position}. "
                        "Give each report its own id."
                    )
                row = (position, report_sha256(text), report_id)
                cursor.execute("INSERT OR IGNORE INTO reports VALUES (?, ?, ?)", row)
                num_reports = position + 1
            cursor.execute("DROP TABLE ids")
            [(num_unique,)] = cursor.execute("SELECT count(*) FROM reports")
            if not num_reports:
                raise ValueError("reports must not be empty, got 0 reports. Give at least one.")
        return ReportCounts(num_reports, num_unique)

    def assign(self, reports: Iterable[tuple[int, str]]) -> None:
        """Note reports by position and hash alone: those that a part of a run is to ask."""
        with self._lock, transaction(self._connection) as cursor:
            cursor.executemany("INSERT INTO reports VALUES (?, ?, '')", reports)

    def num_registered(self) -> int:
        """Return the number of unique reports of this run."""
        [(count,)] = self._all("SELECT count(*) FROM reports")
        return int(count)

    def note_stop(self, reason: str, message: str) -> None:
        """Note why a backend stopped before it had asked everything; ``register`` forgets it."""
        self._all("INSERT INTO stops VALUES (?, ?)", (reason, message))

    def stop(self) -> tuple[str, str] | None:
        """Return reason and message of the first stop of this run."""
        rows = self._all("SELECT reason, message FROM stops ORDER BY rowid LIMIT 1")
        return rows[0] if rows else None

    def note(self, sentence: str) -> None:
        """Note what the user should know of this run; ``register`` forgets it."""
        self._all("INSERT INTO notes VALUES (?)", (sentence,))

    def notes(self) -> tuple[str, ...]:
        """Return what was noted in this run and its parts, put together."""
        return merge_notes(note for (note,) in self._all("SELECT note FROM notes ORDER BY rowid"))

    def absorb(self, part: Path, name: str) -> None:
        """Take over what is in the ledger of a part, and leave it empty: a task that comes late does nothing.

        Args:
            part: The file.
            name: Of this part among all that there ever were.

        Raises:
            BlockingIOError: If a process is at work on the part.
        """
        with self._lock, attached(self._connection, part), transaction(self._connection) as cursor:
            # Two files are not committed as one: a kill in between must not count the cost twice.
            is_new = cursor.execute("INSERT OR IGNORE INTO absorbed VALUES (?)", (name,)).rowcount
            for statement in (*_ABSORB, *_EMPTY_PART) if is_new else _EMPTY_PART:
                cursor.execute(statement)

    def last_generation(self) -> Generation | None:
        """Return the generation that was used last, None before the first."""
        rows = self._all("SELECT parts FROM generations ORDER BY last_used DESC LIMIT 1")
        return Generation.from_json(rows[0][0]) if rows else None

    def use(self, generation: Generation) -> None:
        """Note that ``generation`` is the one in use."""
        self._all(
            "INSERT INTO generations SELECT ?, ?, ifnull(max(last_used), 0) + 1 FROM generations "
            "WHERE true ON CONFLICT DO UPDATE SET last_used = excluded.last_used",
            (generation.hash, generation.to_json()),
        )

    def to_ask(
        self, generation: str, *, after: int, limit: int, should_retry_failed: bool
    ) -> list[tuple[int, str]]:
        """Return position and hash of the next reports that need an answer, in order; empty ones never do.

        Args:
            generation: Hash of the generation.
            after: Position that the reports come after; -1 for the first.
            limit: Reports at most.
            should_retry_failed: Count what the model got wrong (``reply:``) as unanswered, too.
        """
        return self._all(_SELECT_TO_ASK, _to_ask(generation, should_retry_failed, after=after, limit=limit))

    def num_to_ask(self, generation: str, *, should_retry_failed: bool) -> int:
        """Return how many reports have no answer; see ``to_ask``."""
        [(count,)] = self._all(_COUNT_TO_ASK, _to_ask(generation, should_retry_failed, after=-1))
        return int(count)

    def num_in_batches(self, generation: str, *, should_retry_failed: bool) -> int:
        """Return how many of these are in batch files whose results were not read."""
        values = _to_ask(generation, should_retry_failed, after=-1)
        [(count,)] = self._all(_COUNT_TO_ASK + _IN_BATCHES, values)
        return int(count)

    def is_registered(self, sha256: str) -> bool:
        """Return whether a report of this run has this hash."""
        return bool(self._all("SELECT 1 FROM reports WHERE report_sha256 = ?", (sha256,)))

    def record(self, generation: str, sha256: str, labels: ReportLabels, source: str | None = None) -> None:
        """Store an answer, for good; it takes the place of an earlier failure, whose cost counts on.

        ``source`` names the result of a batch that it was read from: from one source, an answer is stored
        only once, and the report is in no batch file any more.
        """
        row = (
            *(generation, sha256),
            *(_list(labels.status), _list(labels.score), _list(labels.evidence)),
            *(labels.tokens_in, labels.tokens_out, labels.cost_usd, labels.error),
            labels.num_dropped_evidence,
        )
        with self._lock, transaction(self._connection) as cursor:
            if source is not None:
                if not cursor.execute("INSERT OR IGNORE INTO absorbed VALUES (?)", (source,)).rowcount:
                    return
                cursor.execute(_FORGET_BATCH, (generation, sha256))
            cursor.execute(_RECORD, row)

    def batches(self, generation: str) -> BatchMemory:
        """Return which reports of a generation are in batch files."""
        return BatchMemory(self._connection, self._lock, generation)

    def spent_usd(self, generation: str) -> float:
        """Return what the answers of a generation cost, those of reports of earlier runs included."""
        [(cost,)] = self._all("SELECT total(cost_usd) FROM answers WHERE generation = ?", (generation,))
        return float(cost)

    def totals(self, generation: str) -> Totals:
        """Return sums over the reports of this run."""
        return Totals(*self._all(_TOTALS, (generation,))[0])

    def rows(self, generation: str, keys: Sequence[str]) -> Iterator[tuple[str, str, ReportLabels | None]]:
        """Yield id, hash and answer of every report, in order; None where there is no answer.

        Nothing may be recorded meanwhile.
        """
        for report_id, sha256, is_answered, *answer in self._connection.execute(_ROWS, (generation,)):
            yield report_id, sha256, _labels(keys, *answer) if is_answered else None

    def _all(self, statement: str, values: Sequence[object] | Mapping[str, object] = ()) -> list[tuple]:
        with self._lock:
            return self._connection.execute(statement, values).fetchall()


def is_empty_report(sha256: str) -> bool:
    """Return whether this is the hash of a report without text."""
    return sha256 == _EMPTY_SHA256


def _absorb_parts(ledger: Ledger, folder: Path) -> None:
    for part in sorted(folder.glob(f"*/*/{FILE_NAME}")):
        ledger.absorb(part, str(part.parent.relative_to(folder)))
    if folder.exists():
        shutil.rmtree(folder)


def _remove(folder: Path) -> None:
    for file in folder.glob(f"{FILE_NAME}*"):
        file.unlink()
    if not any(folder.iterdir()):  # else the logs of tasks are there
        folder.rmdir()


def _to_ask(generation: str, should_retry_failed: bool, **values: int) -> dict[str, object]:
    return {"generation": generation, "retry": should_retry_failed, "empty": _EMPTY_SHA256, **values}


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


def _list(by_finding: Mapping[str, object]) -> str | None:
    """The values, in the order of the findings set; None where there is none."""
    values = list(by_finding.values())
    return None if all(value is None for value in values) else _json(values)


def _labels(
    keys: Sequence[str],
    status: str | None,
    score: str | None,
    evidence: str | None,
    *rest: Any,
) -> ReportLabels:
    tokens_in, tokens_out, cost_usd, error, num_dropped_evidence = rest
    statuses = None if status is None else [_STATUSES[value] for value in json.loads(status)]
    return ReportLabels(
        status=_by_finding(keys, statuses),
        score=_by_finding(keys, None if score is None else json.loads(score)),
        evidence=_by_finding(keys, None if evidence is None else json.loads(evidence)),
        tokens_in=tokens_in,
        tokens_out=tokens_out,
        cost_usd=cost_usd,
        error=error,
        num_dropped_evidence=num_dropped_evidence,
    )


def _by_finding(keys: Sequence[str], values: list[Any] | None) -> dict[str, Any]:
    return dict(zip(keys, values or [None] * len(keys), strict=True))
