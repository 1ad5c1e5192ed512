"""Against a Hub on 127.0.0.1, in processes of their own: the client reads its settings when imported."""

import json
import subprocess
import sys

import pytest

SCRIPT = """
import json, os, sys
from pathlib import Path
from radtower.data.publish import push_folder

folder = Path(sys.argv[1])
def push(files, repo_id, token="hf_local_test_token", **options):
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    for path in folder.iterdir():
        path.unlink()
    for name, text in files.items():
        (folder / name).write_text(text)
    try:
        done = push_folder(folder, repo_id, repo_type="dataset", message="say", **options)
    except Exception as error:
        return [type(error).__name__, str(error)]
    return [done.url, done.commit, done.is_private, done.num_deleted]
print(json.dumps([push(*arguments, **options) for arguments, options in json.loads(sys.argv[2])]))
"""


@pytest.fixture
def push(local_hub, tmp_path):
    def run(*calls):
        (tmp_path / "folder").mkdir(exist_ok=True)
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, str(tmp_path / "folder"), json.dumps(calls)],
            env=local_hub.environment(tmp_path / "home") | {"RADTOWER_DEFER_MODELS": "1"},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "hf_local_test_token" not in done.stdout + done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


ONE, TWO = {"a.parquet": "one", "b.md": "text"}, {"a.parquet": "two", "c.md": "text"}


def test_pushes_in_one_commit_private_and_deletes_what_is_ours_only(push, local_hub):
    owned = {"owned_files": ["a.parquet", "b.md", "c.md"]}
    first, same, second, public = push(
        ([ONE, "tester/new"], owned),
        ([ONE, "tester/new"], owned),
        ([TWO, "tester/new"], owned),
        ([ONE, "tester/open"], {"is_public": True}),
    )
    repo = local_hub.repo("datasets", "tester/new")
    assert [commit.message for commit in repo.commits] == ["initial commit", "say", "say"]
    assert first == [f"{local_hub.url}/datasets/tester/new", repo.commits[1].oid, True, 0]
    assert same == first  # nothing changed: no commit
    assert second[1:] == [repo.commits[2].oid, True, 1]
    assert set(repo.files) == {".gitattributes", "a.parquet", "c.md"}
    assert repo.files["a.parquet"] == b"two"
    assert repo.is_private
    asked = [request.json for request in local_hub.of("POST", "/api/repos/create")]
    assert all(body.get("private") or body.get("visibility") == "private" for body in asked[:3])
    assert not local_hub.repo("datasets", "tester/open").is_private
    assert public[2] is False


def test_a_public_repository_is_not_filled_unless_public_was_said(push, local_hub):
    repo = local_hub.make_repo("datasets", "tester/open", is_private=False)
    local_hub.make_repo("datasets", "tester/shut", is_private=True)
    refused, accepted, shut = push(
        ([ONE, "tester/open"], {}),
        ([ONE, "tester/open"], {"is_public": True}),
        ([ONE, "tester/shut"], {"is_public": True}),
    )
    assert refused[0] == "ValueError"
    assert "must be private unless public is asked for, got tester/open, which is public" in refused[1]
    assert [len(repo.commits), accepted[2]] == [2, False]
    assert shut[2] is True  # an existing private one is not opened


def test_a_hub_out_of_reach_is_a_clear_error(push, local_hub):
    local_hub.url = "http://127.0.0.1:9"  # the discard port: nobody listens
    (unreachable,) = push(([ONE, "tester/new"], {}))
    assert unreachable[0] == "ConnectionError"
    assert "the Hub must be within reach, got ConnectError from http://127.0.0.1:9." in unreachable[1]


def test_a_token_that_is_missing_or_refused_is_a_clear_error(push, local_hub):
    local_hub.refused_tokens = {"hf_reader": 403, "hf_odd": 400}
    missing, wrong, forbidden, other = push(
        *(([ONE, "tester/new"], {"token": token}) for token in (None, "hf_wrong", "hf_reader", "hf_odd"))
    )
    assert missing == [
        "PermissionError",
        "a token of the Hub must be set, got none. Run `hf auth login`, or set HF_TOKEN.",
    ]
    assert wrong[0] == forbidden[0] == "PermissionError"
    assert "the token must be allowed to write to tester/new, got HTTP 401 from the Hub" in wrong[1]
    assert "got HTTP 403 from the Hub" in forbidden[1]
    assert other[0] != "PermissionError"
    assert "hf_" not in wrong[1] + forbidden[1] + other[1]
    assert local_hub.repos == {}
