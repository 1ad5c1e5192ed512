"""A Hub on 127.0.0.1 for tests: what clients need to push and to load, and nothing else.

Standard library only. Run what talks to it in a subprocess with ``LocalHub.environment``: huggingface_hub
reads the address when it is imported. No xet; parquet and safetensors go through LFS, the rest is regular.
Every request is kept, with its body, so that a test can say what left the machine.
"""

import base64
import hashlib
import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Lock, Thread
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

TOKEN = "hf_local_test_token"
USER = "tester"
LFS_ENDINGS = (".parquet", ".safetensors", ".bin", ".arrow")
_TYPES = r"(?P<type>models|datasets|spaces)"
_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_PREFIX = {"models": "", "datasets": "datasets/", "spaces": "spaces/"}


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
    """A repository; its last commit is what it holds."""

    type: str
    id: str
    is_private: bool
    commits: list[Commit] = field(default_factory=list)

    @property
    def files(self) -> dict[str, bytes]:
        return self.commits[-1].files

    def at(self, revision: str) -> Commit | None:
        if revision == "main":
            return self.commits[-1]
        return next((commit for commit in self.commits if commit.oid == revision), None)

    def add(self, message: str, files: dict[str, bytes]) -> Commit:
        content = f"{self.id}{len(self.commits)}{message}{sorted(files)}".encode()
        self.commits.append(Commit(hashlib.sha1(content).hexdigest(), message, files))
        return self.commits[-1]


@dataclass
class LocalHub:
    """The state of the server; tests read it."""

    url: str = ""
    repos: dict[tuple[str, str], Repo] = field(default_factory=dict)
    stored: dict[str, bytes] = field(default_factory=dict)  # LFS objects by SHA-256
    requests: list[Request] = field(default_factory=list)
    refused_tokens: dict[str, int] = field(default_factory=dict)  # token -> HTTP status of what it writes
    lock: Any = field(default_factory=Lock)

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
        files = [
            content for repo in self.repos.values() for c in repo.commits for content in c.files.values()
        ]
        return b"\n".join([*bodies, *files, *self.stored.values()])


@contextmanager
def run_local_hub() -> Iterator[LocalHub]:
    """Serve until the block ends."""
    hub = LocalHub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Error(Exception):
    def __init__(self, status: int, code: str = "", commit: str = "") -> None:
        super().__init__(code)
        self.status, self.code, self.commit = status, code, commit


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: LocalHub

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def handle(self) -> None:
        with suppress(ConnectionError):  # a client that was done early
            super().handle()

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        body = self._read_body()
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        parts = urlsplit(self.path)
        path = unquote(parts.path)
        with self.hub.lock:
            self.hub.requests.append(Request(method, path, body, token))
            try:
                self._route(method, path, parts.query, body, token)
            except _Error as error:
                headers = {"X-Error-Code": error.code} if error.code else {}
                if error.commit:
                    headers["X-Repo-Commit"] = error.commit
                self._send(error.status, b"{}", headers)

    def _read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(self, method: str, path: str, query: str, body: bytes, token: str | None) -> None:
        for verbs, pattern, needs_token, action in _ROUTES:
            match = re.fullmatch(pattern, path)
            if match and method in verbs:
                if needs_token and token != TOKEN:
                    raise _Error(self.hub.refused_tokens.get(token or "", 401))
                action(self, {**match.groupdict(), "query": query, "token": token}, body)
                return
        raise _Error(404)

    def _send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def _send_json(self, content: Any, status: int = 200) -> None:
        self._send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _repo(self, groups: dict[str, Any]) -> Repo:
        type_ = (groups.get("type") or "models").rstrip("/")
        repo = self.hub.repos.get((type_, groups["id"]))
        if repo is None or (repo.is_private and groups["token"] != TOKEN):
            raise _Error(404 if groups["token"] == TOKEN else 401, "RepoNotFound")
        return repo

    def _commit(self, groups: dict[str, Any]) -> tuple[Repo, Commit]:
        repo = self._repo(groups)
        commit = repo.at(groups.get("rev") or "main")
        if commit is None:
            raise _Error(404, "RevisionNotFound")
        return repo, commit

    # One method per endpoint; ``groups`` are the parts of the path.

    def whoami(self, groups: dict[str, Any], body: bytes) -> None:
        auth = {"accessToken": {"role": "write", "displayName": "test"}}
        self._send_json({"type": "user", "name": USER, "orgs": [], "auth": auth})

    def create(self, groups: dict[str, Any], body: bytes) -> None:
        asked = json.loads(body)
        type_ = f"{asked.get('type') or 'model'}s"
        id_ = f"{asked.get('organization') or USER}/{asked['name']}"
        # Old clients say private, new ones visibility.
        is_private = bool(asked.get("private")) or asked.get("visibility") == "private"
        exists = (type_, id_) in self.hub.repos
        if not exists:
            self.hub.make_repo(type_, id_, is_private=is_private)
        url = f"{self.hub.url}/{_PREFIX[type_]}{id_}"
        self._send_json({"url": url, "name": id_, "id": id_}, 409 if exists else 200)

    def validate_yaml(self, groups: dict[str, Any], body: bytes) -> None:
        self._send_json({"errors": [], "warnings": []})

    def preupload(self, groups: dict[str, Any], body: bytes) -> None:
        repo = self._repo(groups)
        files = []
        for file in json.loads(body)["files"]:
            mode = "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular"
            answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
            if file["path"] in repo.files:
                answer["oid"] = _oid(file["path"], repo.files[file["path"]])
            files.append(answer)
        self._send_json({"files": files})

    def lfs_batch(self, groups: dict[str, Any], body: bytes) -> None:
        objects = []
        for wanted in json.loads(body)["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.stored:
                actions = {"upload": f"/lfs/{wanted['oid']}", "verify": f"/lfs-verify/{wanted['oid']}"}
                answer["actions"] = {name: {"href": self.hub.url + path} for name, path in actions.items()}
            objects.append(answer)
        self._send_json({"transfer": "basic", "objects": objects})

    def lfs_put(self, groups: dict[str, Any], body: bytes) -> None:
        if hashlib.sha256(body).hexdigest() != groups["oid"]:
            raise _Error(400)
        self.hub.stored[groups["oid"]] = body
        self._send_json({})

    def lfs_verify(self, groups: dict[str, Any], body: bytes) -> None:
        if groups["oid"] not in self.hub.stored:
            raise _Error(404)
        self._send_json({})

    def commit(self, groups: dict[str, Any], body: bytes) -> None:
        repo = self._repo(groups)
        files, message = dict(repo.files), ""
        for line in body.decode().splitlines():
            item = json.loads(line)
            value = item["value"]
            if item["key"] == "header":
                message = value["summary"]
            elif item["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif item["key"] == "lfsFile":
                files[value["path"]] = self.hub.stored[value["oid"]]
            elif item["key"] == "deletedFile":
                del files[value["path"]]
            elif item["key"] == "deletedFolder":
                files = {name: c for name, c in files.items() if not name.startswith(value["path"])}
            else:
                raise _Error(400)
        oid = repo.add(message, files).oid
        url = f"{self.hub.url}/{_PREFIX[repo.type]}{repo.id}/commit/{oid}"
        self._send_json({"success": True, "commitOid": oid, "commitUrl": url, "hookOutput": ""})

    def info(self, groups: dict[str, Any], body: bytes) -> None:
        repo, commit = self._commit(groups)
        self._send_json(
            {
                "id": repo.id,
                "author": USER,
                "sha": commit.oid,
                "siblings": [{"rfilename": name} for name in sorted(commit.files)],
                "private": repo.is_private,
                "gated": False,
                "disabled": False,
                "downloads": 0,
                "likes": 0,
                "tags": [],
                "createdAt": "2026-01-01T00:00:00.000Z",
                "lastModified": "2026-01-01T00:00:00.000Z",
            }
        )

    def tree(self, groups: dict[str, Any], body: bytes) -> None:
        _, commit = self._commit(groups)
        folder = (groups.get("path") or "").strip("/")
        is_recursive = parse_qs(groups["query"]).get("recursive", ["false"])[0].lower() in ("true", "1")
        prefix = f"{folder}/" if folder else ""
        entries: dict[str, dict[str, Any]] = {}
        for name, content in sorted(commit.files.items()):
            if not name.startswith(prefix):
                continue
            parents = name[len(prefix) :].split("/")[:-1]
            for depth in range(1, len(parents) + 1 if is_recursive else min(len(parents), 1) + 1):
                path = prefix + "/".join(parents[:depth])
                entries[path] = {"type": "directory", "path": path, "size": 0, "oid": "0" * 40}
            if is_recursive or not parents:
                entries[name] = _entry(name, content)
        if folder and not entries:
            raise _Error(404, "EntryNotFound", commit.oid)
        self._send_json(list(entries.values()))

    def paths_info(self, groups: dict[str, Any], body: bytes) -> None:
        _, commit = self._commit(groups)
        is_json = "json" in (self.headers.get("Content-Type") or "")
        asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
        entries = [_entry(name, commit.files[name]) for name in asked if name in commit.files]
        for name in asked:
            if any(file.startswith(f"{name}/") for file in commit.files):
                entries.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
        self._send_json(entries)

    def refs(self, groups: dict[str, Any], body: bytes) -> None:
        repo = self._repo(groups)
        branch = {"name": "main", "ref": "refs/heads/main", "targetCommit": repo.commits[-1].oid}
        self._send_json({"branches": [branch], "tags": [], "converts": []})

    def resolve(self, groups: dict[str, Any], body: bytes) -> None:
        _, commit = self._commit(groups)
        name = groups["path"]
        if name not in commit.files:
            raise _Error(404, "EntryNotFound", commit.oid)
        content = commit.files[name]
        headers = {
            "ETag": f'"{_oid(name, content)}"',
            "X-Repo-Commit": commit.oid,
            "Accept-Ranges": "bytes",
            "Content-Type": "application/octet-stream",
        }
        wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if not wanted:
            self._send(200, content, headers)
            return
        start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
        part = content[start : end + 1]
        headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
        self._send(206, part, headers)


def _oid(name: str, content: bytes) -> str:
    """What git calls a file: SHA-256 of an LFS object, SHA-1 of a blob."""
    if name.endswith(LFS_ENDINGS):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(f"blob {len(content)}\0".encode() + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, Any]:
    entry: dict[str, Any] = {"type": "file", "path": name, "size": len(content), "oid": _oid(name, content)}
    if name.endswith(LFS_ENDINGS):
        entry["lfs"] = {"oid": _oid(name, content), "size": len(content), "pointerSize": 130}
    return entry


_REPO = rf"/api/{_TYPES}/{_ID}"
_FILE_REPO = rf"/(?:(?P<type>datasets|spaces)/)?{_ID}"
_ROUTES: tuple[tuple[tuple[str, ...], str, bool, Any], ...] = (
    (("GET",), r"/api/whoami-v2", True, _Handler.whoami),
    (("POST",), r"/api/repos/create", True, _Handler.create),
    (("POST",), r"/api/validate-yaml", False, _Handler.validate_yaml),
    (("POST",), rf"{_REPO}/preupload/(?P<rev>[^/]+)", True, _Handler.preupload),
    (("POST",), rf"{_FILE_REPO}\.git/info/lfs/objects/batch", True, _Handler.lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", False, _Handler.lfs_put),
    (("POST",), r"/lfs-verify/(?P<oid>[0-9a-f]{64})", False, _Handler.lfs_verify),
    (("POST",), rf"{_REPO}/commit/(?P<rev>[^/]+)", True, _Handler.commit),
    (("GET",), rf"{_REPO}/refs", False, _Handler.refs),
    (("GET",), rf"{_REPO}/tree/(?P<rev>[^/]+)(?P<path>/.*)?", False, _Handler.tree),
    (("POST",), rf"{_REPO}/paths-info/(?P<rev>[^/]+)", False, _Handler.paths_info),
    (("GET",), rf"{_REPO}(?:/revision/(?P<rev>[^/]+))?", False, _Handler.info),
    (("GET", "HEAD"), rf"{_FILE_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", False, _Handler.resolve),
)
