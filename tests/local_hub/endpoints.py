"""One function per endpoint of the Hub, and the table of their paths."""

import base64
import hashlib
import json
import re
from fnmatch import fnmatch
from typing import Any
from urllib.parse import parse_qs

from .state import PREFIX, TOKEN, USER, Commit, Repo

LFS_ENDINGS = (".parquet", ".safetensors", ".bin", ".arrow")
Groups = dict[str, Any]  # parts of the path, query, token


class HubError(Exception):
    """An answer that is an error."""

    def __init__(self, status: int, code: str = "", commit: str = "", message: str = "") -> None:
        super().__init__(code)
        self.status, self.message = status, message
        self.headers = {"X-Error-Code": code} if code else {}
        if commit:
            self.headers["X-Repo-Commit"] = commit


def _repo(http: Any, groups: Groups) -> Repo:
    type_ = (groups.get("type") or "models").rstrip("/")
    repo: Repo | None = http.hub.repos.get((type_, groups["id"]))
    if repo is None or (repo.is_private and groups["token"] != TOKEN):
        raise HubError(404 if groups["token"] == TOKEN else 401, "RepoNotFound")
    return repo


def _commit(http: Any, groups: Groups) -> tuple[Repo, Commit]:
    repo = _repo(http, groups)
    commit = repo.at(groups.get("rev") or "main")
    if commit is None:
        raise HubError(404, "RevisionNotFound")
    return repo, commit


def _has_flag(groups: Groups, name: str) -> bool:
    return parse_qs(groups["query"]).get(name, ["false"])[0].lower() in ("true", "1")


# One method per endpoint; ``groups`` are the parts of the path.


def whoami(http: Any, groups: Groups, body: bytes) -> None:
    auth = {"accessToken": {"role": "write", "displayName": "test"}}
    http.send_json({"type": "user", "name": USER, "orgs": [], "auth": auth})


def create(http: Any, groups: Groups, body: bytes) -> None:
    asked = json.loads(body)
    type_ = f"{asked.get('type') or 'model'}s"
    id_ = f"{asked.get('organization') or USER}/{asked['name']}"
    # Old clients say private, new ones visibility.
    is_private = bool(asked.get("private")) or asked.get("visibility") == "private"
    exists = (type_, id_) in http.hub.repos
    if not exists:
        http.hub.make_repo(type_, id_, is_private=is_private)
    url = f"{http.hub.url}/{PREFIX[type_]}{id_}"
    http.send_json({"url": url, "name": id_, "id": id_}, 409 if exists else 200)


def validate_yaml(http: Any, groups: Groups, body: bytes) -> None:
    http.send_json({"errors": [], "warnings": []})


def preupload(http: Any, groups: Groups, body: bytes) -> None:
    there = _commit(http, groups)[1].files
    ignored = there.get(".gitignore", b"").decode().split()
    files = []
    for file in json.loads(body)["files"]:
        mode = "lfs" if file["path"].endswith(LFS_ENDINGS) else "regular"
        is_ignored = any(fnmatch(file["path"], pattern) for pattern in ignored)
        answer = {"path": file["path"], "uploadMode": mode, "shouldIgnore": is_ignored}
        if file["path"] in there:
            answer["oid"] = _oid(file["path"], there[file["path"]])
        files.append(answer)
    http.send_json({"files": files})


def lfs_batch(http: Any, groups: Groups, body: bytes) -> None:
    objects = []
    for wanted in json.loads(body)["objects"]:
        answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
        if wanted["oid"] not in http.hub.stored:
            actions = {"upload": f"/lfs/{wanted['oid']}", "verify": f"/lfs-verify/{wanted['oid']}"}
            answer["actions"] = {name: {"href": http.hub.url + path} for name, path in actions.items()}
        objects.append(answer)
    http.send_json({"transfer": "basic", "objects": objects})


def lfs_put(http: Any, groups: Groups, body: bytes) -> None:
    if hashlib.sha256(body).hexdigest() != groups["oid"]:
        raise HubError(400)
    http.hub.stored[groups["oid"]] = body
    http.send_json({})


def lfs_verify(http: Any, groups: Groups, body: bytes) -> None:
    if groups["oid"] not in http.hub.stored:
        raise HubError(404)
    http.send_json({})


def commit(http: Any, groups: Groups, body: bytes) -> None:
    repo, head = _commit(http, groups)
    if groups["rev"] not in repo.branches:
        raise HubError(404, "RevisionNotFound")
    items = [json.loads(line) for line in body.decode().splitlines()]
    header = next(item["value"] for item in items if item["key"] == "header")
    is_pull_request = _has_flag(groups, "create_pr")
    parent = header.get("parentCommit")
    if parent is not None and is_pull_request:
        head = repo.at(parent) or head
    elif parent not in (None, head.oid):
        raise HubError(412, message="A commit has happened since. Please refresh and try again.")
    files = dict(head.files)
    for item in items:
        if item["key"] != "header":
            files = _applied(http.hub.stored, files, item["key"], item["value"])
    page = f"{http.hub.url}/{PREFIX[repo.type]}{repo.id}"
    answer = {"success": True, "hookOutput": ""}
    if is_pull_request:
        number, made = repo.open_pull_request(head, header["summary"], files)
        answer["pullRequestUrl"] = f"{page}/discussions/{number}"
    else:
        made = repo.add(header["summary"], files, groups["rev"])
    http.send_json(answer | {"commitOid": made.oid, "commitUrl": f"{page}/commit/{made.oid}"})


def _applied(stored: dict[str, bytes], files: dict[str, bytes], key: str, value: Any) -> dict[str, bytes]:
    """The files after one operation."""
    path = value["path"]
    if key == "file":
        return files | {path: base64.b64decode(value["content"])}
    if key == "lfsFile":
        return files | {path: stored[value["oid"]]}
    if key == "deletedFile" and path in files:
        return {name: content for name, content in files.items() if name != path}
    if key == "deletedFolder":
        return {name: content for name, content in files.items() if not name.startswith(path)}
    raise HubError(400)


def make_branch(http: Any, groups: Groups, body: bytes) -> None:
    repo = _repo(http, groups)
    start = repo.at(json.loads(body).get("startingPoint") or "main")
    if groups["branch"] in repo.branches:
        raise HubError(409, message="Reference already exists")
    if start is None:
        raise HubError(404, "RevisionNotFound")
    repo.branches[groups["branch"]] = [start]
    http.send_json({})


def make_tag(http: Any, groups: Groups, body: bytes) -> None:
    repo, tagged = _commit(http, groups)
    name = json.loads(body)["tag"]
    if name in repo.tags:
        raise HubError(409, message="Tag reference exists already")
    repo.tags[name] = tagged.oid
    http.send_json({})


def info(http: Any, groups: Groups, body: bytes) -> None:
    repo, commit = _commit(http, groups)
    http.send_json(
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


def tree(http: Any, groups: Groups, body: bytes) -> None:
    _, commit = _commit(http, groups)
    folder = (groups.get("path") or "").strip("/")
    is_recursive = _has_flag(groups, "recursive")
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
        raise HubError(404, "EntryNotFound", commit.oid)
    http.send_json(list(entries.values()))


def paths_info(http: Any, groups: Groups, body: bytes) -> None:
    _, commit = _commit(http, groups)
    is_json = "json" in (http.headers.get("Content-Type") or "")
    asked = json.loads(body)["paths"] if is_json else parse_qs(body.decode()).get("paths", [])
    entries = [_entry(name, commit.files[name]) for name in asked if name in commit.files]
    for name in asked:
        if any(file.startswith(f"{name}/") for file in commit.files):
            entries.append({"type": "directory", "path": name, "size": 0, "oid": "0" * 40})
    http.send_json(entries)


def refs(http: Any, groups: Groups, body: bytes) -> None:
    repo = _repo(http, groups)
    heads = {name: commits[-1].oid for name, commits in repo.branches.items()}
    answer = {
        "branches": [
            _ref(f"refs/heads/{n}", n, oid) for n, oid in heads.items() if not n.startswith("refs/")
        ],
        "tags": [_ref(f"refs/tags/{name}", name, oid) for name, oid in repo.tags.items()],
        "converts": [],
    }
    if _has_flag(groups, "include_prs"):
        answer["pullRequests"] = [_ref(n, n[5:], oid) for n, oid in heads.items() if n.startswith("refs/")]
    http.send_json(answer)


def _ref(ref: str, name: str, oid: str) -> dict[str, str]:
    return {"name": name, "ref": ref, "targetCommit": oid}


def resolve(http: Any, groups: Groups, body: bytes) -> None:
    _, commit = _commit(http, groups)
    name = groups["path"]
    if name not in commit.files:
        raise HubError(404, "EntryNotFound", commit.oid)
    content = commit.files[name]
    headers = {
        "ETag": f'"{_oid(name, content)}"',
        "X-Repo-Commit": commit.oid,
        "Accept-Ranges": "bytes",
        "Content-Type": "application/octet-stream",
    }
    wanted = re.fullmatch(r"bytes=(\d+)-(\d*)", http.headers.get("Range") or "")
    if not wanted:
        http.send(200, content, headers)
        return
    start, end = int(wanted[1]), int(wanted[2] or len(content) - 1)
    part = content[start : end + 1]
    headers["Content-Range"] = f"bytes {start}-{start + len(part) - 1}/{len(content)}"
    http.send(206, part, headers)


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


_TYPES = r"(?P<type>models|datasets|spaces)"
_ID = r"(?P<id>[\w.-]+/[\w.-]+)"
_REPO = rf"/api/{_TYPES}/{_ID}"
_FILE_REPO = rf"/(?:(?P<type>datasets|spaces)/)?{_ID}"
ROUTES: tuple[tuple[tuple[str, ...], str, bool, Any], ...] = (
    (("GET",), r"/api/whoami-v2", True, whoami),
    (("POST",), r"/api/repos/create", True, create),
    (("POST",), r"/api/validate-yaml", False, validate_yaml),
    (("POST",), rf"{_REPO}/preupload/(?P<rev>[^/]+)", True, preupload),
    (("POST",), rf"{_FILE_REPO}\.git/info/lfs/objects/batch", True, lfs_batch),
    (("PUT",), r"/lfs/(?P<oid>[0-9a-f]{64})", False, lfs_put),
    (("POST",), r"/lfs-verify/(?P<oid>[0-9a-f]{64})", False, lfs_verify),
    (("POST",), rf"{_REPO}/commit/(?P<rev>[^/]+)", True, commit),
    (("POST",), rf"{_REPO}/branch/(?P<branch>[^/]+)", True, make_branch),
    (("POST",), rf"{_REPO}/tag/(?P<rev>[^/]+)", True, make_tag),
    (("GET",), rf"{_REPO}/refs", False, refs),
    (("GET",), rf"{_REPO}/tree/(?P<rev>[^/]+)(?P<path>/.*)?", False, tree),
    (("POST",), rf"{_REPO}/paths-info/(?P<rev>[^/]+)", False, paths_info),
    (("GET",), rf"{_REPO}(?:/revision/(?P<rev>[^/]+))?", False, info),
    (("GET", "HEAD"), rf"{_FILE_REPO}/resolve/(?P<rev>[^/]+)/(?P<path>.+)", False, resolve),
)
