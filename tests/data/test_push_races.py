"""Two pushes at once against a Hub on 127.0.0.1: both are there, or the later one is refused."""

import json
import subprocess
import sys

FILES = {"a.parquet": "mine", "b.md": "mine"}
REPO = "tester/shared"
TWO_WRITERS = """
import sys
from pathlib import Path
from threading import Thread
from radtower.data import publish
publish.WAITS_S = (0.05, 0.1, 0.2, 0.2)
def write(name):
    for number in range(4):
        folder = Path(sys.argv[1]) / name / str(number)
        folder.mkdir(parents=True)
        (folder / f"{name}{number}.parquet").write_text(f"{name}{number}")
        publish.push_folder(folder, "tester/shared", repo_type="dataset", message="say")
threads = [Thread(target=write, args=(name,)) for name in "xy"]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
"""


def _other_push(hub, files, **rest):
    """Somebody commits just before our commit arrives."""
    repo = hub.make_repo("datasets", REPO, is_private=True)
    repo.add("before", {"b.md": b"old", "old.md": b"old"})
    hub.fail("POST", "/commit/", action=lambda: repo.add("theirs", repo.files | files), **rest)
    return repo


def _parents(hub):
    return [json.loads(r.body.splitlines()[0])["value"]["parentCommit"] for r in hub.of("POST", "/commit/")]


def test_a_commit_is_made_on_top_of_one_of_others_that_touches_none_of_ours(push, hub):
    repo = _other_push(hub, {"theirs.md": b"theirs"})
    done = push(FILES, REPO, owned_files=["old.md"])
    assert [commit.message for commit in repo.commits[2:]] == ["theirs", "say"]
    assert repo.files == {"a.parquet": b"mine", "b.md": b"mine", "theirs.md": b"theirs"}
    assert (done["commit"], done["num_changed"], done["num_deleted"]) == (repo.commits[-1].oid, 2, 1)
    assert _parents(hub) == [repo.commits[1].oid, repo.commits[2].oid]
    assert len(hub.of("PUT", "/lfs/")) == 1
    assert len(done["waits"]) == 1
    assert 0.5 <= done["waits"][0] <= 1


def test_files_that_we_left_alone_stay_as_others_made_them(push, hub):
    repo = _other_push(hub, {"same.md": b"theirs"})
    repo.commits[-1].files["same.md"] = b"same"
    push(FILES | {"same.md": "same"}, REPO)
    assert repo.files["same.md"] == b"theirs"
    assert repo.files["b.md"] == b"mine"


def test_a_file_that_both_change_is_not_overwritten(push, hub):
    for theirs in ({"b.md": b"theirs"}, {"old.md": b"theirs"}):
        hub.forget()
        repo = _other_push(hub, theirs)
        refused = push(FILES, REPO, owned_files=["old.md"])
        (name,) = theirs
        assert refused[0] == "FileExistsError"
        assert (
            f"got another commit, {repo.commits[-1].oid[:8]}, that changes {name}. Look at it" in refused[1]
        )
        assert repo.commits[-1].message == "theirs"


def test_many_files_that_both_change_are_counted(push, hub):
    names = [f"f{number}.md" for number in range(7)]
    _other_push(hub, dict.fromkeys(names, b"theirs"))
    refused = push(dict.fromkeys(names, "mine"), REPO)
    assert "that changes f0.md, f1.md, f2.md, f3.md, f4.md and 2 more. Look at it" in refused[1]


def test_the_same_change_by_others_is_no_collision(push, hub):
    repo = _other_push(hub, {"b.md": b"mine"})
    done = push(FILES, REPO)
    assert repo.commits[-1].message == "say"
    assert repo.files["a.parquet"] == b"mine"
    assert done["commit"] == repo.commits[-1].oid


def test_an_answer_that_is_lost_makes_no_second_commit(push, hub):
    repo = hub.make_repo("datasets", REPO, is_private=True)
    hub.fail("POST", "/commit/", is_answer_lost=True)
    done = push(FILES, REPO)
    assert [commit.message for commit in repo.commits] == ["initial commit", "say"]
    assert (done["commit"], done["num_changed"]) == (repo.commits[1].oid, 2)
    assert len(hub.of("POST", "/commit/")) == 2


def test_an_operation_in_progress_is_waited_for(push, hub):
    repo = hub.make_repo("datasets", REPO, is_private=True)
    hub.fail("POST", "/commit/", status=409, times=3)
    done = push(FILES, REPO)
    assert len(repo.commits) == 2
    assert len(done["waits"]) == 3
    assert 0.5 * 4 <= done["waits"][2] <= 4


def test_a_branch_that_never_stands_still_is_an_error(push, hub):
    repo = _other_push(hub, {}, times=None)
    done = push(FILES, REPO)
    assert done[0] == "ConnectionError"
    assert "got another commit to tester/shared at each of 6 tries" in done[1]
    assert {commit.message for commit in repo.commits[2:]} == {"theirs"}


def test_a_branch_that_is_deleted_meanwhile_is_an_error(push, hub):
    repo = hub.make_repo("datasets", REPO, is_private=True)
    repo.branches["side"] = list(repo.commits)

    def delete():
        del repo.branches["side"]

    hub.fail("POST", "/commit/", status=412, action=delete)
    done = push(FILES, REPO, target={"branch": "side"})
    assert done[0] == "FileNotFoundError"
    assert "the branch must stay while a push goes on, got 'side', which is gone" in done[1]


def test_two_writers_at_once_lose_nothing(hub, tmp_path):
    repo = hub.make_repo("datasets", REPO, is_private=True)
    done = subprocess.run(
        [sys.executable, "-c", TWO_WRITERS, str(tmp_path)],
        env=hub.environment(tmp_path / "home") | {"RADTOWER_DEFER_MODELS": "1"},
        capture_output=True,
        text=True,
    )
    assert "Error" not in done.stderr, done.stderr
    expected = {f"{name}{number}.parquet" for name in "xy" for number in range(4)}
    assert set(repo.files) == {".gitattributes", *expected}
    assert len(repo.commits) == 9
