"""Vectors by the hash of their text: in memory, or in files that later runs find again.

Axes: N texts, E width.
"""

import fcntl
import logging
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from radtower.data.preprocessing.cache_lock import CANNOT_LOCK

logger = logging.getLogger(__name__)


class MemoryVectors:
    """Vectors in memory, a tensor per call of :meth:`put`."""

    def __init__(self) -> None:
        self._parts: list[torch.Tensor] = []
        self._place: dict[bytes, tuple[int, int]] = {}

    def __contains__(self, key: bytes) -> bool:
        return key in self._place

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Nobody else fills it."""
        yield

    def put(self, keys: Sequence[bytes], vectors: torch.Tensor) -> None:
        """Store ``(n, E)`` vectors of texts that are not there yet."""
        self._place |= {key: (len(self._parts), row) for row, key in enumerate(keys)}
        self._parts.append(vectors)

    def rows(self, keys: Sequence[bytes], width: int) -> torch.Tensor:
        """Look up ``(N, width)``; a text may come more than once."""
        table = torch.empty(len(keys), width)
        by_part: dict[int, list[tuple[int, int]]] = {}
        for target, key in enumerate(keys):
            part, row = self._place[key]
            by_part.setdefault(part, []).append((target, row))
        for part, pairs in by_part.items():
            targets, rows = torch.tensor(pairs).T
            table[targets] = self._read(part)[rows]
        return table

    def _read(self, part: int) -> torch.Tensor:
        return self._parts[part]


class VectorFiles(MemoryVectors):
    """Vectors in safetensors files of a folder, one file per call of :meth:`put`.

    A file appears complete or not at all, under a name of its own. Memory holds the hashes and one file.

    Args:
        folder: For the vectors of one tower; made if it is not there.

    Raises:
        ValueError: If a file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self._files: list[Path] = []
        folder.mkdir(parents=True, exist_ok=True)
        self._look()

    @contextmanager
    def filling(self) -> Iterator[None]:
        """Fill alone: waits for another run, or another process of this one, and finds what it stored."""
        with (self.folder / "filling.lock").open("a+", encoding="utf-8") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError as error:
                if error.errno not in CANNOT_LOCK:
                    raise
                logger.warning("No locks in %s: runs that start together compute the same.", self.folder)
            self._look()
            yield

    def put(self, keys: Sequence[bytes], vectors: torch.Tensor) -> None:
        """Store ``(n, E)`` vectors of texts that are not there yet, in a new file."""
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        partial = path.with_suffix(".partial")
        hashes = torch.frombuffer(bytearray(b"".join(keys)), dtype=torch.uint8).reshape(len(keys), -1)
        save_file({"sha256": hashes, "vectors": vectors.cpu().float().contiguous()}, partial)
        partial.replace(path)
        self._remember(path, keys)

    def _look(self) -> None:
        """Read the hashes of files that are new."""
        for path in sorted(set(self.folder.glob("*.safetensors")) - set(self._files)):
            try:
                with safe_open(path, framework="pt") as file:
                    hashes = file.get_tensor("sha256")
            except SafetensorError as error:
                raise ValueError(
                    f"a file of features must be whole, got a damaged {path.name} in {self.folder}. "
                    "Delete it: its texts are computed again."
                ) from error
            self._remember(path, [row.tobytes() for row in hashes.numpy()])

    def _remember(self, path: Path, keys: Sequence[bytes]) -> None:
        self._place |= {key: (len(self._files), row) for row, key in enumerate(keys)}
        self._files.append(path)

    def _read(self, part: int) -> torch.Tensor:
        with safe_open(self._files[part], framework="pt") as file:
            vectors: torch.Tensor = file.get_tensor("vectors")
        return vectors
