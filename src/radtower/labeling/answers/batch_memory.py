"""Which reports are in a batch file whose result was not read yet: once more, they would be paid twice."""

import sqlite3
import threading

from radtower.labeling.answers.ledger_file import transaction

# Noted while the files are written, and gone if that is not finished.
_NOTES = "CREATE TEMP TABLE IF NOT EXISTS noted (report_sha256 TEXT PRIMARY KEY, file TEXT NOT NULL)"


class BatchMemory:
    """Hashes of reports, by generation, and the file that each was written to; made by ``Ledger.batches``.

    What a result was read for is forgotten by ``Ledger.record``, in the step that stores the result.
    """

    def __init__(self, connection: sqlite3.Connection, lock: threading.Lock, generation: str) -> None:
        self._connection = connection
        self._lock = lock
        self._generation = generation

    def file_of(self, sha256: str) -> str | None:
        """Return the file that holds the request about a report; None where there is none."""
        query = "SELECT file FROM batched WHERE generation = ? AND report_sha256 = ?"
        with self._lock:
            row = self._connection.execute(query, (self._generation, sha256)).fetchone()
        return row[0] if row else None

    def begin(self) -> None:
        """Drop what was noted and not kept."""
        with self._lock:
            self._connection.execute(_NOTES)
            self._connection.execute("DELETE FROM noted")

    def note(self, sha256: str, file: str) -> None:
        """Note what is being written; nobody sees it until ``keep``."""
        with self._lock:
            self._connection.execute("INSERT INTO noted VALUES (?, ?)", (sha256, file))

    def keep(self) -> None:
        """Keep all that was noted, for good, in place of what was kept about the same reports."""
        with self._lock, transaction(self._connection) as cursor:
            cursor.execute(
                "INSERT OR REPLACE INTO batched SELECT ?, report_sha256, file FROM noted", (self._generation,)
            )
            cursor.execute("DELETE FROM noted")
