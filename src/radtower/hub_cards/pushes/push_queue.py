"""A queue of pushes on disk: what is in it survives the process, and is sent once.

``FOLDER/000001/`` is one push: ``files/`` are what goes up, as they were then, ``push.json`` says where to.
A folder whose name begins with a dot is being written, or is done.
"""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from huggingface_hub import get_token

from radtower.data.publish import MAIN, Published, PushTarget, RepoType, check_repo_id, push_folder

RECORD = "push.json"
FILES = "files"
BYTES_PER_GB = 10**9
MAX_GB = 50.0


@dataclass(frozen=True, kw_only=True)
class PushOrder:
    """Where a folder goes, as :func:`push_folder` takes it, and what became of it so far.

    Args:
        repo_id: ``owner/name``.
        repo_type: Kind of repository.
        message: Of the commit.
        is_public: Make a new repository public.
        owned_files: Deleted there where the folder does not have them.
        target: Branch, tag or pull request.
        is_kept: Send it even where a newer state of the branch waits, too. One with a tag always is.
        created: Time in UTC, ISO 8601. Empty until it is in a queue.
        num_attempts: How often it was tried.
        last_error: Why the last attempt failed, without the token. None if there was none.
    """

    repo_id: str
    repo_type: RepoType
    message: str
    is_public: bool = False
    owned_files: tuple[str, ...] = ()
    target: PushTarget = field(default_factory=PushTarget)
    is_kept: bool = False
    created: str = ""
    num_attempts: int = 0
    last_error: str | None = None

    def replaces(self, older: "PushOrder") -> bool:
        """Whether nobody needs the older one any more: this one brings a newer state of the same branch."""
        if older.is_kept or older.target.tag or older.target.is_pull_request or self.target.is_pull_request:
            return False
        return self._place == older._place

    @property
    def _place(self) -> tuple[str, str, str]:
        return self.repo_type, self.repo_id, self.target.branch or MAIN


class PushQueue:
    """Pushes that wait in a folder, the oldest first.

    One process or thread sends at a time, and one adds. Neither waits for the other. Of several states of a
    branch that wait only the newest is sent, unless told otherwise.

    Args:
        folder: Made when something is added.
        max_gb: What may lie there, in 10^9 bytes.

    Raises:
        ValueError: If nothing may.
    """

    def __init__(self, folder: str | Path, *, max_gb: float = MAX_GB) -> None:
        if max_gb <= 0:
            raise ValueError(f"max_gb must be above 0, got {max_gb}. Usual is {MAX_GB:.0f}.")
        self.folder, self.max_gb = Path(folder), max_gb

    def add(self, files: str | Path, order: PushOrder) -> str:
        """Take the files as they are now; the push is in the queue completely or not at all.

        Args:
            files: Folder; it may be deleted afterwards.
            order: Where it goes.

        Returns:
            The name of the push in the queue.

        Raises:
            ValueError: If the queue would be larger than it may be, or the id has no owner.
        """
        check_repo_id(order.repo_id)
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._locked("add"):
            self._clear(".new-")  # nobody else is writing: what is there a kill has left
            self._require_place(_size(Path(files)), order)
            partial = self.folder / f".new-{os.getpid()}"
            shutil.copytree(files, partial / FILES, copy_function=_keep)
            self._write(partial, replace(order, created=datetime.now(UTC).isoformat(timespec="seconds")))
            name = f"{self._next_number():06d}"
            partial.rename(self.folder / name)
        with suppress(BlockingIOError), self._locked("send", should_wait=False):
            self._drop_replaced()
        return name

    def waiting(self) -> dict[str, PushOrder]:
        """Name -> order of all that wait, in the order they were added."""
        found = {}
        for path in sorted(self.folder.glob(f"[0-9]*/{RECORD}")):
            with suppress(FileNotFoundError):  # sent meanwhile
                found[path.parent.name] = _read(path)
        return found

    def send(self, name: str) -> Published | None:
        """Push one and take it out; if it fails it stays, and says why.

        Returns:
            Where it went; None if it is not there any more: sent by somebody else, or replaced.

        Raises:
            ConnectionError: If the Hub cannot be reached, or another process is sending: it may heal.
            OSError: As :func:`push_folder`.
            ValueError: As :func:`push_folder`.
        """
        if not self.folder.is_dir():
            return None
        try:
            with self._locked("send", should_wait=False):
                return self._send(name)
        except BlockingIOError:
            raise ConnectionError(
                f"one process must send a queue at a time, got another at {self.folder.name}. Wait for it."
            ) from None

    def _send(self, name: str) -> Published | None:
        self._clear(".done-")
        self._drop_replaced()
        entry = self.folder / name
        if not entry.is_dir():
            return None
        order = _read(entry / RECORD)
        try:
            published = push_folder(
                entry / FILES,
                order.repo_id,
                repo_type=order.repo_type,
                message=order.message,
                is_public=order.is_public,
                owned_files=order.owned_files,
                target=order.target,
            )
        except Exception as error:
            failed = replace(order, num_attempts=order.num_attempts + 1, last_error=without_token(str(error)))
            self._write(entry, failed)
            raise
        self._remove(entry)
        return published

    def _drop_replaced(self) -> None:
        for name in _replaced(list(self.waiting().items())):
            self._remove(self.folder / name)

    def _require_place(self, num_bytes: int, order: PushOrder) -> None:
        waiting = self.waiting()
        gone = _replaced([*waiting.items(), ("new", order)])
        total = num_bytes + sum(_size(self.folder / name) for name in waiting if name not in gone)
        if total > self.max_gb * BYTES_PER_GB:
            raise ValueError(
                f"pushes that wait must be at most {self.max_gb:g} GB, got {total / BYTES_PER_GB:.3g} GB "
                f"with this one and {len(waiting)} in {self.folder.name}. Send them: radtower push --pending."
            )

    def _next_number(self) -> int:
        """Above all that are there or have been: a name must never mean another push."""
        counter = self.folder / ".last_number"
        number = int(counter.read_text(encoding="ascii")) + 1 if counter.exists() else 1
        _write_whole(counter, str(number))
        return number

    def _write(self, entry: Path, order: PushOrder) -> None:
        _write_whole(entry / RECORD, json.dumps(asdict(order), indent=2) + "\n")

    def _remove(self, entry: Path) -> None:
        done = entry.with_name(f".done-{entry.name}")
        entry.rename(done)  # at once: half a folder must not be pushed
        shutil.rmtree(done)

    def _clear(self, prefix: str) -> None:
        for path in self.folder.glob(f"{prefix}*"):
            shutil.rmtree(path)

    @contextmanager
    def _locked(self, name: str, *, should_wait: bool = True) -> Iterator[None]:
        """Keep other processes and threads out; a lock ends with its process.

        Raises:
            BlockingIOError: If somebody else has it and ``should_wait`` is false.
        """
        with (self.folder / f".{name}.lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX if should_wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
            yield


def queue_folder(output: str | Path) -> Path:
    """Return where the pushes of a command wait: within its output folder, or beside its output file."""
    output = Path(output)
    return output.with_name(f"{output.name}.pushes") if output.suffix == ".parquet" else output / "pushes"


def without_token(text: str) -> str:
    """Return the text without the token of this machine."""
    token = get_token()
    return text.replace(token, "[token]") if token else text


def _replaced(orders: list[tuple[str, PushOrder]]) -> set[str]:
    return {
        name
        for row, (name, order) in enumerate(orders)
        if any(newer.replaces(order) for _, newer in orders[row + 1 :])
    }


def _read(path: Path) -> PushOrder:
    fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    target = PushTarget(**fields.pop("target"))
    return PushOrder(**fields | {"target": target, "owned_files": tuple(fields["owned_files"])})


def _size(folder: Path) -> int:
    return sum(_size_of(path) for path in folder.rglob("*"))


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size if path.is_file() else 0
    except FileNotFoundError:  # sent meanwhile
        return 0


def _keep(source: str, target: str) -> None:
    """Link a file that has no other name; one that has may be changed under the other."""
    if Path(source).stat().st_nlink == 1:
        with suppress(OSError):  # another disk, or one without links
            Path(target).hardlink_to(source)
            return
    shutil.copyfile(source, target)


def _write_whole(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.new")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def describe(orders: Iterable[PushOrder]) -> list[str]:
    """Return a sentence for each push that waits."""
    return [
        f"Waiting since {order.created}: {order.repo_id}, {order.message!r}, {order.num_attempts} attempts"
        + ("" if order.last_error is None else f"; {order.last_error}")
        for order in orders
    ]
