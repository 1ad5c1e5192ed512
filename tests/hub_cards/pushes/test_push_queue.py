"""What is in the queue, in which order, and what is refused; nothing is sent here."""

import fcntl
import json
from dataclasses import replace

import pytest

from radtower.data.publish import PushTarget
from radtower.hub_cards.pushes.push_callback import PushSettings, RadTowerPushCallback
from radtower.hub_cards.pushes.push_queue import PushOrder, PushQueue, queue_folder, without_token

ORDER = PushOrder(repo_id="tester/tower", repo_type="model", message="First")


@pytest.fixture
def files(tmp_path):
    (tmp_path / "files" / "inner").mkdir(parents=True)
    (tmp_path / "files" / "inner" / "a.txt").write_text("abc")
    return tmp_path / "files"


@pytest.fixture
def queue(tmp_path):
    return PushQueue(tmp_path / "pushes")


def _messages(queue):
    return [order.message for order in queue.waiting().values()]


def test_a_push_waits_with_its_files_as_they_were(queue, files):
    order = replace(ORDER, owned_files=("*.txt",), target=PushTarget(branch="side"))
    name = queue.add(files, order)
    source = files / "inner" / "a.txt"
    source.unlink()
    assert (queue.folder / name / "files" / "inner" / "a.txt").read_text() == "abc"
    found = queue.waiting()[name]
    assert replace(found, created="") == order
    assert found.created.endswith("+00:00")


def test_a_file_with_another_name_is_copied_for_it_may_change_there(queue, files, tmp_path):
    (tmp_path / "other.txt").hardlink_to(files / "inner" / "a.txt")
    name = queue.add(files, ORDER)
    (tmp_path / "other.txt").write_text("changed")
    assert (queue.folder / name / "files" / "inner" / "a.txt").read_text() == "abc"


def test_only_the_newest_state_of_a_branch_waits(queue, files):
    for message in ("one", "two", "three"):
        queue.add(files, replace(ORDER, message=message))
    queue.add(files, replace(ORDER, message="of a branch", target=PushTarget(branch="side")))
    queue.add(files, replace(ORDER, message="of another", repo_id="tester/other"))
    assert _messages(queue) == ["three", "of a branch", "of another"]
    assert [*queue.waiting()] == ["000003", "000004", "000005"]


@pytest.mark.parametrize(
    "kept",
    [{"is_kept": True}, {"target": PushTarget(tag="v1")}, {"target": PushTarget(is_pull_request=True)}],
)
def test_a_tag_a_pull_request_and_what_is_to_be_kept_are_not_replaced(queue, files, kept):
    queue.add(files, replace(ORDER, message="kept", **kept))
    queue.add(files, replace(ORDER, message="newer"))
    assert _messages(queue) == ["kept", "newer"]


def test_what_a_kill_left_half_written_is_no_push_and_goes(queue, files):
    (queue.folder / ".new-1" / "files").mkdir(parents=True)
    assert queue.waiting() == {}
    queue.add(files, ORDER)
    assert _messages(queue) == ["First"]
    assert not list(queue.folder.glob(".new-*"))


def test_a_queue_that_would_be_too_large_is_refused_and_stays(files, tmp_path):
    queue = PushQueue(tmp_path / "pushes", max_gb=1e-6)
    (files / "large.bin").write_bytes(bytes(900))
    queue.add(files, replace(ORDER, message="old"))
    queue.add(files, replace(ORDER, message="new"))  # takes the place of the old one
    with pytest.raises(ValueError, match=r"at most 1e-06 GB, got .* GB with this one and 1 in pushes"):
        queue.add(files, replace(ORDER, message="more", repo_id="tester/other"))
    assert _messages(queue) == ["new"]


def test_a_queue_must_have_place_for_something(tmp_path):
    with pytest.raises(ValueError, match=r"max_gb must be above 0, got 0"):
        PushQueue(tmp_path, max_gb=0)


def test_a_queue_is_sent_by_one_at_a_time(queue, files):
    name = queue.add(files, ORDER)
    with (queue.folder / ".send.lock").open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        with pytest.raises(ConnectionError, match=r"one process must send a queue at a time, got another"):
            queue.send(name)
    assert _messages(queue) == ["First"]


def test_what_is_not_there_any_more_is_not_sent(queue, files):
    assert queue.send("000001") is None
    queue.add(files, ORDER)
    assert queue.send("000007") is None


def test_a_push_that_fails_stays_and_says_why_without_the_token(queue, files, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_secret\u00e9")  # no header can carry it: refused before any request
    name = queue.add(files, ORDER)
    with pytest.raises(PermissionError, match=r"plain letters and digits"):
        queue.send(name)
    record = (queue.folder / name / "push.json").read_text(encoding="utf-8")
    assert json.loads(record)["num_attempts"] == 1
    assert "plain letters and digits" in json.loads(record)["last_error"]
    assert "hf_secret" not in record
    assert without_token("got hf_secret\u00e9 here") == "got [token] here"


def test_a_name_is_refused_before_the_training(queue, files):
    with pytest.raises(ValueError, match=r"repo_id must be OWNER/NAME, got 'tower'"):
        RadTowerPushCallback("tower")
    with pytest.raises(ValueError, match=r"repo_id must be OWNER/NAME, got 'tower'"):
        queue.add(files, replace(ORDER, repo_id="tower"))
    with pytest.raises(ValueError, match=r"tag must be a name of letters"):
        PushSettings(tag="a b")
    with pytest.raises(ValueError, match=r"wait_s must be at least 0, got -1"):
        PushSettings(wait_s=-1)


def test_the_queue_lies_in_the_output_folder_or_beside_the_output_file(tmp_path):
    assert queue_folder(tmp_path / "out") == tmp_path / "out" / "pushes"
    assert queue_folder(tmp_path / "labels.parquet") == tmp_path / "labels.parquet.pushes"
