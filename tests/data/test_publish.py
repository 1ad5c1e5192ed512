"""Against a Hub on 127.0.0.1: what a push leaves there, and where."""

import json

import pytest

from local_hub import LocalHub
from radtower.data import publish
from radtower.data.publish import PushTarget, check_words, push_folder

ONE, TWO = {"a.parquet": "one", "b.md": "text"}, {"a.parquet": "two", "c.md": "text"}


def _committed(request):
    """Paths of a commit that was sent, and what is done with them."""
    items = [json.loads(line) for line in request.body.decode().splitlines()]
    return {item["value"]["path"]: item["key"] for item in items if item["key"] != "header"}


def test_pushes_in_one_commit_private_and_deletes_what_is_ours_only(push, hub):
    owned = {"owned_files": ["a.parquet", "b.md", "c.md"]}
    first, same = (push(ONE, "tester/new", **owned) for _ in range(2))
    second = push(TWO, "tester/new", **owned)
    public = push(ONE, "tester/open", is_public=True)
    repo = hub.repo("datasets", "tester/new")
    assert [commit.message for commit in repo.commits] == ["initial commit", "say", "say"]
    assert first == {
        "url": f"{hub.url}/datasets/tester/new",
        "commit": repo.commits[1].oid,
        "is_private": True,
        "num_deleted": 0,
        "num_changed": 2,
        "pull_request_url": None,
        "waits": [],
    }
    assert same == first | {"num_changed": 0}  # nothing changed: no commit
    assert (second["commit"], second["num_deleted"], second["num_changed"]) == (repo.commits[2].oid, 1, 2)
    assert set(repo.files) == {".gitattributes", "a.parquet", "c.md"}
    assert repo.files["a.parquet"] == b"two"
    assert repo.is_private
    asked = [request.json for request in hub.of("POST", "/api/repos/create")]
    assert all(body.get("private") or body.get("visibility") == "private" for body in asked[:3])
    assert not hub.repo("datasets", "tester/open").is_private
    assert public["is_private"] is False


def test_only_what_differs_is_sent(push, hub):
    old = {"same.parquet": "large", "same.md": "small", "new.parquet": "1", "sub/new.md": "1"}
    old |= {"shard-1.bin": "", "sub/shard-1.bin": "", "theirs.md": ""}
    new = {"same.parquet": "large", "same.md": "small", "new.parquet": "2", "sub/new.md": "2"}
    (hub.make_repo("models", "tester/new", is_private=True)).add("before", {"empty.md": b""})
    push(old, "tester/new", repo_type="model")
    second = push(new, "tester/new", repo_type="model", owned_files=["shard*.bin", "empty.md"])
    sent = hub.of("POST", "/commit/")[1]
    assert _committed(sent) == {
        "new.parquet": "lfsFile",
        "sub/new.md": "file",
        "shard-1.bin": "deletedFile",
        "empty.md": "deletedFile",
    }
    assert (second["num_changed"], second["num_deleted"]) == (2, 2)
    assert second["url"] == f"{hub.url}/tester/new"
    assert len(hub.of("PUT", "/lfs/")) == 3  # large, 1, 2
    asked = [file["path"] for r in hub.of("POST", "/preupload/")[1:] for file in r.json["files"]]
    assert asked == ["new.parquet", "sub/new.md"]


def test_files_that_the_repository_would_leave_out_are_named_and_nothing_is_committed(push, hub):
    repo = hub.make_repo("datasets", "tester/new", is_private=True)
    repo.add("rules", repo.files | {".gitignore": b"*.parquet\n"})
    error, said, _ = push(ONE, "tester/new")
    assert error == "ValueError"
    assert "got 1 that its .gitignore leaves out: a.parquet. Change .gitignore in tester/new." in said
    assert [commit.message for commit in repo.commits] == ["initial commit", "rules"]
    assert push({"b.md": "text"}, "tester/new")["num_changed"] == 1


def test_a_public_repository_is_not_filled_unless_public_was_said(push, hub):
    repo = hub.make_repo("datasets", "tester/open", is_private=False)
    hub.make_repo("datasets", "tester/shut", is_private=True)
    refused = push(ONE, "tester/open")
    by_request = push(ONE, "tester/open", target={"is_pull_request": True})
    accepted, shut = (push(ONE, f"tester/{name}", is_public=True) for name in ("open", "shut"))
    assert refused[0] == by_request[0] == "ValueError"
    assert "must be private unless public is asked for, got tester/open, which is public" in refused[1]
    assert [len(repo.commits), accepted["is_private"]] == [2, False]
    assert shut["is_private"] is True  # an existing private one is not opened


def test_a_token_that_may_not_make_repositories_fills_one_that_exists(push, hub):
    repo = hub.make_repo("datasets", "tester/new", is_private=True)
    hub.fail("POST", "/repos/create", status=403, times=2)
    done, missing = (push(ONE, f"tester/{name}") for name in ("new", "other"))
    assert done["commit"] == repo.commits[1].oid
    assert missing[0] == "PermissionError"
    assert "must be allowed to write to tester/other, got HTTP 403" in missing[1]


def test_a_branch_is_made_from_main_and_main_stays(push, hub):
    repo = hub.make_repo("datasets", "tester/new", is_private=True)
    started = repo.add("main goes on", {"m.md": b"main"})
    first, second = (push(files, "tester/new", target={"branch": "run/1"}) for files in (ONE, TWO))
    commits = repo.branches["run/1"]
    assert [commit.oid for commit in commits] == [started.oid, first["commit"], second["commit"]]
    assert set(commits[1].files) == {"m.md", "a.parquet", "b.md"}
    assert commits[2].files["a.parquet"] == b"two"
    assert repo.commits[-1] is started


def test_a_tag_names_the_commit_and_is_never_moved(push, hub):
    first, again, moved = (push(files, "tester/new", target={"tag": "v1.0"}) for files in (ONE, ONE, TWO))
    free = push(TWO, "tester/new")
    later = push(TWO, "tester/new", target={"tag": "v1.1"})  # nothing to commit, but to name
    repo = hub.repo("datasets", "tester/new")
    assert again == first | {"num_changed": 0}
    assert moved[0] == "FileExistsError"
    assert f"got 'v1.0', which is at {first['commit'][:8]} of tester/new" in moved[1]
    assert [commit.oid for commit in repo.commits[1:]] == [first["commit"], free["commit"]]
    assert later["commit"] == free["commit"]
    assert repo.tags == {"v1.0": first["commit"], "v1.1": free["commit"]}


def test_a_tag_that_somebody_else_takes_meanwhile_is_said(push, hub):
    repo = hub.make_repo("datasets", "tester/new", is_private=True)
    start = repo.commits[0].oid
    hub.fail("POST", "/tag/", action=lambda: repo.tags.update(v1=start))
    taken = push(ONE, "tester/new", target={"tag": "v1"})
    hub.fail("POST", "/tag/", is_answer_lost=True)
    lost = push(ONE, "tester/other", target={"tag": "v2"})
    assert taken[0] == "FileExistsError"
    assert f"got 'v1', which is at {start[:8]}" in taken[1]
    assert repo.tags == {"v1": start}
    assert hub.repo("datasets", "tester/other").tags == {"v2": lost["commit"]}


def test_a_pull_request_leaves_main_alone(push, hub):
    repo = hub.make_repo("datasets", "tester/new", is_private=True)
    opened, missing = (push(ONE, f"tester/{n}", target={"is_pull_request": True}) for n in ("new", "nowhere"))
    assert len(repo.commits) == 1
    head = repo.branches["refs/pr/1"][-1]
    assert set(head.files) == {".gitattributes", "a.parquet", "b.md"}
    assert opened["commit"] == head.oid
    assert opened["pull_request_url"] == f"{hub.url}/datasets/tester/new/discussions/1"
    assert missing[0] == "FileNotFoundError"
    assert "the repository must exist, got tester/nowhere" in missing[1]
    assert set(hub.repos) == {("datasets", "tester/new")}


def test_a_hub_out_of_reach_is_a_clear_error(start_push):
    nobody = LocalHub("http://127.0.0.1:9")  # the discard port
    process, answer = start_push(nobody, ONE, "tester/new")
    unreachable = answer()
    process.communicate()
    assert unreachable[0] == "ConnectionError"
    assert "the Hub must be within reach, got ConnectError from http://127.0.0.1:9." in unreachable[1]
    assert unreachable[2] == []  # told at once


def test_a_token_that_is_missing_or_refused_is_a_clear_error(push, hub):
    hub.refused_tokens = {"hf_reader": 403, "hf_odd": 400}
    tokens = (None, "hf_wrong", "hf_reader", "hf_odd", "hf_\x01cut", "hf_\u00e4")
    missing, wrong, forbidden, other, *broken = (push(ONE, "tester/new", token=token) for token in tokens)
    assert missing[:2] == [
        "PermissionError",
        "a token of the Hub must be set, got none. Run `hf auth login`, or set HF_TOKEN.",
    ]
    assert wrong[0] == forbidden[0] == "PermissionError"
    assert "the token must be allowed to write to tester/new, got HTTP 401 from the Hub" in wrong[1]
    assert "got HTTP 403 from the Hub" in forbidden[1]
    assert other[0] == "OSError"
    for refused in broken:  # the client would print these
        assert refused[0] == "PermissionError"
        assert "must be plain letters and digits, got one with other characters" in refused[1]
    assert "hf_" not in wrong[1] + forbidden[1] + other[1] + str(broken)
    assert hub.repos == {}


def test_what_cannot_be_pushed_is_refused_before_the_hub_is_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(publish, "get_token", lambda: "hf_some")
    with pytest.raises(ValueError, match="repo_id must be OWNER/NAME, got 'alone'"):
        push_folder(tmp_path, "alone", repo_type="model", message="say")
    with pytest.raises(ValueError, match=r"me/\.\.elsewhere"):
        push_folder(tmp_path, "me/..elsewhere", repo_type="model", message="say")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="the folder to push must have files, got none in"):
        push_folder(tmp_path, "me/new", repo_type="model", message="say")


@pytest.mark.parametrize(
    "name", ["", "two words", "a..b", "a/", "/a", "-a", "a.lock", "a.", "a~1", "refs/pr/1", "a//b", "a/.b"]
)
def test_names_that_git_does_not_take_are_refused(name):
    with pytest.raises(ValueError, match=r"branch must be a name of letters, digits, .* got "):
        PushTarget(branch=name)
    with pytest.raises(ValueError, match=r"tag must be a name of letters"):
        PushTarget(tag=name)


def test_words_that_may_identify_a_patient_are_refused_and_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: "hf_any")
    with pytest.raises(ValueError, match="message must hold nothing that may identify a patient"):
        push_folder(tmp_path, "tester/new", repo_type="model", message="Scans of Dr. Miller")
    for words, kind in (("Scans of Dr. Miller", "name"), ("MRN 12345 and 617-555-1212", "phone number")):
        with pytest.raises(ValueError, match=f"message must hold nothing .* looks like a {kind}") as refused:
            check_words("message", words)
        assert "Miller" not in str(refused.value)
        assert "12345" not in str(refused.value)
    check_words("message", "Training: step 1,200,000, as of 2026-11-23, see https://example.org/1")
    with pytest.raises(ValueError, match=r"branch must hold nothing .* looks like a record number"):
        PushTarget(branch="MRN1234567")
    assert PushTarget(tag="v2026.11.23").tag == "v2026.11.23"


def test_a_target_that_contradicts_itself_is_refused():
    for rest in ({"branch": "b"}, {"tag": "t"}):
        with pytest.raises(ValueError, match="a pull request must have no branch and no tag"):
            PushTarget(is_pull_request=True, **rest)
    for rest in ({"tag": "main"}, {"branch": "b", "tag": "b"}):
        with pytest.raises(ValueError, match=r"tag must not be the name of a branch, got '(main|b)'"):
            PushTarget(**rest)
