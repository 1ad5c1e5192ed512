"""A Hub that fails on the way: what is asked again, how long, and what is said in the end."""

import hashlib
import signal
import time

import pytest
from huggingface_hub import close_session, get_session

from radtower.data import hub_requests
from radtower.data.hub_requests import bounded_silence, in_our_words, persist

FILES = {"a.parquet": "first", "b.parquet": "second", "c.md": "text"}
REPO = "tester/new"


def _stored_at(text):
    return f"/lfs/{hashlib.sha256(text.encode()).hexdigest()}"


def test_a_busy_hub_is_asked_again_after_the_pause_it_asks_for(push, hub):
    hub.fail("POST", "/commit/", status=429, headers={"Retry-After": "7"})
    hub.fail("GET", "/tree/", status=500, headers={"Retry-After": "Wed, 21 Oct 2026 07:28:00 GMT"}, times=2)
    hub.fail("POST", "/commit/", is_reset=True)
    done = push(FILES, REPO)
    assert done["waits"] == [1, 2, 7, 2]
    repo = hub.repo("datasets", REPO)
    assert {name: repo.files[name] for name in FILES} == {n: text.encode() for n, text in FILES.items()}
    assert len(repo.commits) == 2


def test_an_upload_that_breaks_goes_on_without_what_is_stored(push, hub):
    hub.fail("PUT", _stored_at("second"), is_reset=True, times=2)
    done = push(FILES, REPO)
    assert done["waits"] == [1, 2]  # the client's own
    assert len(hub.of("PUT", _stored_at("first"))) == 1
    assert hub.repo("datasets", REPO).files["b.parquet"] == b"second"


def test_the_wait_has_an_end_and_the_next_run_goes_on(push, hub):
    busy = hub.fail("POST", "/commit/", status=503, times=None)
    refused = push(FILES, REPO)
    assert refused[0] == "ConnectionError"
    assert f"got HTTP 503 from {hub.url}. Wait, and later push again: what has arrived" in refused[1]
    assert refused[2] == [1, 2, 4]
    assert len(hub.repo("datasets", REPO).commits) == 1
    busy.status, busy.headers = 429, {"Retry-After": "3600"}
    later = push(FILES, REPO)
    assert "Wait, and in 3600 s push again" in later[1]
    assert later[2] == []  # not for an hour
    hub.faults.clear()
    done = push(FILES, REPO)
    assert done["num_changed"] == 3
    assert len(hub.of("PUT", "/lfs/")) == 2  # in all three runs


def test_a_push_that_was_killed_goes_on_where_it_was(push, start_push, hub):
    hub.fail("PUT", _stored_at("second"), delay_s=60)
    process, _ = start_push(hub, FILES, REPO)
    deadline = time.monotonic() + 30
    while not hub.stored and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    repo = hub.repo("datasets", REPO)
    assert len(repo.commits) == 1  # who reads sees nothing of it
    push(FILES, REPO)
    assert {name for name in repo.files if name in FILES} == set(FILES)
    assert len(hub.of("PUT", _stored_at("first"))) == 1


@pytest.mark.parametrize("place", [("PUT", "/lfs/"), ("POST", "/commit/"), ("GET", "/tree/")])
def test_a_hub_that_says_nothing_is_not_waited_for(push, hub, place):
    hub.fail(*place, delay_s=3, is_reset=True)
    assert push(FILES, REPO)["waits"] == [1]
    repo = hub.repo("datasets", REPO)
    assert {name: repo.files[name] for name in FILES} == {n: text.encode() for n, text in FILES.items()}
    assert len(repo.commits) == 2


def test_a_hub_that_stays_silent_is_out_of_reach(push, hub):
    hub.fail("POST", "/repos/create", delay_s=3, is_reset=True, times=None)
    refused = push(FILES, REPO)
    assert refused[0] == "ConnectionError"
    assert f"the Hub must be within reach, got ReadTimeout from {hub.url}." in refused[1]
    assert refused[2] == [1]  # asked twice


def test_what_cannot_heal_is_not_asked_again(push, hub):
    hub.fail("PUT", _stored_at("first"), status=403)
    hub.fail("POST", "/commit/", status=400)
    forbidden, bad = (push(FILES, REPO) for _ in range(2))
    assert forbidden[0] == "PermissionError"
    assert "must be allowed to write to tester/new, got HTTP 403" in forbidden[1]
    assert bad[0] == "OSError"
    assert "must accept the push to tester/new, got HTTP 400 (planted fault). Look at" in bad[1]
    assert forbidden[2] == bad[2] == []


def test_the_answer_of_a_store_of_files_is_not_repeated(push, hub):
    hub.fail("PUT", "/lfs/", status=400, times=None)
    refused = push(FILES, REPO)
    assert refused[0] == "OSError"
    assert "got HTTP 400. Look at" in refused[1]
    assert "/lfs/" not in refused[1]


def test_a_pull_request_is_not_opened_twice(push, hub):
    repo = hub.make_repo("datasets", REPO, is_private=True)
    hub.fail("POST", "/commit/", is_answer_lost=True)
    lost = push(FILES, REPO, target={"is_pull_request": True})
    assert lost[0] == "ConnectionError"
    assert lost[2] == []
    hub.fail("POST", "/commit/", status=429)
    done = push(FILES, REPO, target={"is_pull_request": True})
    assert done["waits"] == [1]
    assert [name for name in repo.branches if name.startswith("refs/")] == ["refs/pr/1", "refs/pr/2"]


def _limits():
    return get_session().event_hooks["request"].count(hub_requests._limit_silence)


def test_two_pushes_at_once_leave_the_client_as_it_was():
    before = list(get_session().event_hooks["request"])
    first, second = bounded_silence(), bounded_silence()
    first.__enter__()
    second.__enter__()
    assert _limits() == 1
    first.__exit__(None, None, None)
    assert persist(_limits) == 1  # the second goes on
    second.__exit__(None, None, None)
    assert get_session().event_hooks["request"] == before


def test_a_client_that_was_made_anew_is_limited_too():
    with bounded_silence():
        close_session()  # as the client does where a connection cannot be made
        assert _limits() == 0
        assert persist(_limits) == 1
    assert _limits() == 0


def test_errors_of_our_own_pass():
    with pytest.raises(RuntimeError, match="ours"), in_our_words("me/new"):
        raise RuntimeError("ours")
