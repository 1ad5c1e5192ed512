"""What the Hub holds: repositories with branches, tags and pull requests, and every request it got."""

import hashlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock
from typing import Any

from .faults import Fault

TOKEN = "hf_local_test_token"
USER = "tester"
PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


@dataclass
class Request:
    """What was asked."""

    method: str
    path: str
    body: bytes
    token: str | None

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Commit:
    """One version of a repository; ``files`` are all its files then."""

    oid: str
    message: str
    files: dict[str, bytes]


@dataclass
class Repo:
    """A repository; the last commit of its main branch is what it holds.

    ``branches`` has pull requests, too, as ``refs/pr/1``.
    """

    type: str
    id: str
    is_private: bool
    branches: dict[str, list[Commit]] = field(default_factory=lambda: {"main": []})
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def commits(self) -> list[Commit]:
        return self.branches["main"]

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files

    def at(self, revision: str) -> Commit | None:
        """Commit of a branch, a pull request, a tag, or an id."""
        if revision in self.branches:
            return self.branches[revision][-1]
        oid = self.tags.get(revision, revision)
        return next((c for commits in self.branches.values() for c in commits if c.oid == oid), None)

    def add(self, message: str, files: dict[str, bytes], branch: str = "main") -> Commit:
        """Commit ``files``, which are all files from now on."""
        commits = self.branches[branch]
        content = f"{self.id}{branch}{len(commits)}{message}{sorted(files)}".encode()
        commits.append(Commit(hashlib.sha1(content).hexdigest(), message, files))
        return commits[-1]

    def open_pull_request(self, base: Commit, message: str, files: dict[str, bytes]) -> tuple[int, Commit]:
        """Number of the pull request and its commit."""
        number = 1 + sum(name.startswith("refs/pr/") for name in self.branches)
        self.branches[f"refs/pr/{number}"] = [base]
        return number, self.add(message, files, f"refs/pr/{number}")


@dataclass
class LocalHub:
    """The state of the server; tests read it, and say what shall go wrong."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    requests: list[Request] = field(default_factory=list)
    refused_tokens: dict[str, int] = field(default_factory=dict)  # token -> HTTP status of what it writes
    faults: list[Fault] = field(default_factory=list)
    lock: Any = field(default_factory=Lock)
    closed: Event = field(default_factory=Event)

    def environment(self, home: Path, token: str | None = TOKEN) -> dict[str, str]:
        """Variables for a process that shall take this for the Hub."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        ours = {
            "HF_ENDPOINT": self.url,
            "HF_HOME": str(home),
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
            "HF_HUB_DISABLE_IMPLICIT_TOKEN": "0",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }
        return kept | ours | ({} if token is None else {"HF_TOKEN": token})

    def forget(self) -> None:
        """Become as new, at the same address."""
        for held in (self.repos, self.stored, self.requests, self.refused_tokens, self.faults):
            held.clear()  # type: ignore[attr-defined]

    def fail(self, method: str, path: str, status: int | None = None, **rest: Any) -> Fault:
        """Let requests of a kind go wrong; see :class:`Fault`. The first fault that fits is taken."""
        self.faults.append(Fault(method, path, status, **rest))
        return self.faults[-1]

    def take_fault(self, method: str, path: str) -> Fault | None:
        """The fault of this request, counted."""
        with self.lock:
            fault = next((fault for fault in self.faults if fault.fits(method, path)), None)
            if fault is not None:
                fault.num_seen += 1
            return fault

    def repo(self, type_: str, id_: str) -> Repo:
        return self.repos[type_, id_]

    def make_repo(self, type_: str, id_: str, *, is_private: bool) -> Repo:
        """Make a repository as the Hub does: with one commit."""
        repo = self.repos[type_, id_] = Repo(type_, id_, is_private)
        repo.add("initial commit", {".gitattributes": b"*.parquet filter=lfs\n"})
        return repo

    def of(self, method: str, pattern: str) -> list[Request]:
        """Requests whose path fits."""
        return [r for r in self.requests if r.method == method and re.search(pattern, r.path)]

    def everything_sent(self) -> bytes:
        """All that clients sent, with file contents as they were: base64 is undone."""
        bodies = [request.body for request in self.requests]
        return b"\n".join([*bodies, *self._files(), *self.stored.values()])

    def _files(self) -> Iterator[bytes]:
        for repo in self.repos.values():
            for commits in repo.branches.values():
                for commit in commits:
                    yield from commit.files.values()
