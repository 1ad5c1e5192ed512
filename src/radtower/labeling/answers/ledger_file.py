"""The SQLite file of a ledger: its tables, its lock, and its transactions."""

import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

VERSION = 1
# Exclusive: one process holds the file until it ends. The lock is the kernel's; a kill leaves none behind.
_PRAGMAS = (
    "PRAGMA locking_mode=EXCLUSIVE",
    "PRAGMA journal_mode=WAL",
    "PRAGMA synchronous=NORMAL",
    "PRAGMA wal_autocheckpoint=4000",
)
_SCHEMA = (
    "CREATE TABLE IF NOT EXISTS reports (position INTEGER PRIMARY KEY, report_sha256 TEXT NOT NULL UNIQUE, "
    "report_id TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS generations (hash TEXT PRIMARY KEY, parts TEXT NOT NULL, "
    "last_used INTEGER NOT NULL)",
    "CREATE TABLE IF NOT EXISTS answers (generation TEXT NOT NULL, report_sha256 TEXT NOT NULL, status TEXT, "
    "score TEXT, evidence TEXT, tokens_in INTEGER, tokens_out INTEGER, cost_usd REAL, error TEXT, "
    "num_dropped_evidence INTEGER NOT NULL, UNIQUE (generation, report_sha256))",
    "CREATE TABLE IF NOT EXISTS stops (reason TEXT NOT NULL, message TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS notes (note TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS absorbed (part TEXT PRIMARY KEY)",
    "CREATE TABLE IF NOT EXISTS batched (generation TEXT NOT NULL, report_sha256 TEXT NOT NULL, "
    "file TEXT NOT NULL, UNIQUE (generation, report_sha256))",
)


def connect(path: Path) -> sqlite3.Connection:
    """Open the file, or begin one, and lock it.

    Raises:
        BlockingIOError: If another process has it open.
        ValueError: If it is no ledger of this version.
    """
    connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        for pragma in _PRAGMAS:
            connection.execute(pragma)
        with transaction(connection) as cursor:  # the first write takes the lock
            _check_version(cursor)
            for table in _SCHEMA:
                cursor.execute(table)
    except sqlite3.OperationalError as error:
        connection.close()
        _refuse_if_busy(error, path)
        raise
    except (sqlite3.DatabaseError, ValueError) as error:
        connection.close()
        raise ValueError(
            f"the ledger must be of version {VERSION}, got {path}: {error}. "
            "Move its folder away to label from the start."
        ) from None
    return connection


def _refuse_if_busy(error: sqlite3.OperationalError, path: Path) -> None:
    if error.sqlite_errorcode == sqlite3.SQLITE_BUSY:
        raise BlockingIOError(
            f"one process must write a label table, got another at work on {path.parent}. "
            "Wait until it has ended."
        ) from None


@contextmanager
def attached(connection: sqlite3.Connection, part: Path) -> Iterator[None]:
    """Reach the tables of another ledger as ``part.NAME``, and lock it."""
    try:
        connection.execute("ATTACH ? AS part", (str(part),))
    except sqlite3.OperationalError as error:
        _refuse_if_busy(error, part)
        raise
    try:
        yield
    finally:
        connection.execute("DETACH part")


def _check_version(cursor: sqlite3.Cursor) -> None:
    [(version,)] = cursor.execute("PRAGMA user_version")
    if version not in (0, VERSION):
        raise ValueError(f"version {version}")
    cursor.execute(f"PRAGMA user_version={VERSION}")


@contextmanager
def transaction(connection: sqlite3.Connection) -> Iterator[sqlite3.Cursor]:
    """Do all of the block or, if it raises, nothing."""
    cursor = connection.cursor()
    cursor.execute("BEGIN IMMEDIATE")
    try:
        yield cursor
    except BaseException:
        cursor.execute("ROLLBACK")
        raise
    cursor.execute("COMMIT")
