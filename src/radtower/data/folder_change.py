"""A folder here and a version of it on the Hub -> what a commit must do, and whether two commits collide."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path

from huggingface_hub import RepoFile

_CHUNK_BYTES = 2**20


@dataclass(frozen=True)
class LocalFile:
    """A file of the folder; it is read when somebody must know whether it differs."""

    path: Path

    @cached_property
    def size(self) -> int:
        """In bytes."""
        return self.path.stat().st_size

    @cached_property
    def sha256(self) -> str:
        """What the Hub calls the contents of a large file."""
        return self._digest(hashlib.sha256())

    @cached_property
    def git_sha1(self) -> str:
        """What git calls the contents of a file."""
        return self._digest(hashlib.sha1(b"blob %d\0" % self.size, usedforsecurity=False))

    def equals(self, there: RepoFile) -> bool:
        """Whether a file on the Hub has the same contents."""
        if self.size != there.size:
            return False
        if there.lfs is not None:
            return self.sha256 == there.lfs.sha256
        return self.git_sha1 == there.blob_id

    def _digest(self, digest: "hashlib._Hash") -> str:
        with self.path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
        return digest.hexdigest()


@dataclass(frozen=True)
class Version:
    """A commit and its files by path."""

    commit: str
    files: Mapping[str, RepoFile]

    def blob(self, name: str) -> str | None:
        """What git calls the contents of a file; None if it is not there."""
        return self.files[name].blob_id if name in self.files else None


@dataclass(frozen=True)
class Change:
    """What a commit does: paths that it writes, and paths that it deletes."""

    additions: frozenset[str]
    deletions: frozenset[str]

    def __bool__(self) -> bool:
        return bool(self.additions or self.deletions)

    def left_in(self, version: Version, files: Mapping[str, LocalFile]) -> "Change":
        """What of it a version does not have yet."""
        return Change(
            frozenset(name for name in self.additions if not _is_in(version, name, files)),
            self.deletions & set(version.files),
        )

    def collisions(self, before: Version, after: Version) -> list[str]:
        """Paths of it that somebody else changed between two versions."""
        touched = self.additions | self.deletions
        return sorted(name for name in touched if before.blob(name) != after.blob(name))


def files_of(folder: Path) -> dict[str, LocalFile]:
    """All files of a folder by their path in it, with ``/``.

    Raises:
        FileNotFoundError: If there are none.
    """
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    if not paths:
        raise FileNotFoundError(f"the folder to push must have files, got none in {folder}. Check the path.")
    return {path.relative_to(folder).as_posix(): LocalFile(path) for path in paths}


def change_to(version: Version, files: Mapping[str, LocalFile], owned: Iterable[str]) -> Change:
    """What brings a folder into a version.

    Args:
        version: What is there.
        files: What shall be there.
        owned: Paths, or patterns whose ``*`` stays within a folder: what fits, is there and is not in
            ``files`` is deleted. Everything else that is there stays.
    """
    patterns = tuple(owned)
    stale = {name for name in version.files if any(_fits(name, pattern) for pattern in patterns)}
    additions = frozenset(name for name in files if not _is_in(version, name, files))
    return Change(additions, frozenset(stale - set(files)))


def _is_in(version: Version, name: str, files: Mapping[str, LocalFile]) -> bool:
    return name in version.files and files[name].equals(version.files[name])


def _fits(name: str, pattern: str) -> bool:
    parts, wanted = name.split("/"), pattern.split("/")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))
