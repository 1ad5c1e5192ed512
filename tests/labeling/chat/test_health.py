import pytest

from radtower.labeling.chat.health import ServerHealth
from radtower.labeling.report_labels import StopLabeling


def test_nothing_heard_at_all_stops_with_the_last_try_of_the_first_report():
    health = ServerHealth(8)
    assert not health.has_tried
    health.record_silence("timeout", is_last_try=False)
    assert health.has_tried
    with pytest.raises(StopLabeling, match=r"did not answer 2 requests in a row \(timeout\)"):
        health.record_silence("timeout", is_last_try=True)


def test_an_address_where_nobody_listens_is_given_up_after_three_tries():
    health = ServerHealth(8)
    for _ in range(2):
        health.record_silence("connection", is_last_try=False, is_sent=False)
    with pytest.raises(StopLabeling, match="did not answer 3 requests"):
        health.record_silence("connection", is_last_try=False, is_sent=False)
    health = ServerHealth(8)
    health.record_success()
    for _ in range(15):
        health.record_silence("connection", is_last_try=False, is_sent=False)


def test_a_server_that_answered_once_is_gone_after_twice_what_is_in_flight_and_a_last_try():
    health = ServerHealth(2)
    health.record_success()
    for _ in range(3):
        health.record_silence("connection", is_last_try=True)
    health.record_silence("connection", is_last_try=False)
    with pytest.raises(StopLabeling, match="5 requests in a row"):
        health.record_silence("connection", is_last_try=True)


@pytest.mark.parametrize("answer", ["record_success", "error"])
def test_any_answer_ends_a_silence(answer):
    health = ServerHealth(2)
    for _ in range(10):
        health.record_silence("connection", is_last_try=False)
    health.record_success() if answer == "record_success" else health.record_status(500)
    health.record_silence("connection", is_last_try=True)


@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorized"), (402, "payment"), (404, "not_found")])
def test_a_refusal_stops_at_once_before_a_success_and_later_only_in_a_row(status, reason):
    with pytest.raises(StopLabeling, match=f"HTTP {status}. Check"):
        ServerHealth(4).record_status(status)
    health = ServerHealth(4)
    health.record_success()
    for _ in range(7):
        health.record_status(status)
    with pytest.raises(StopLabeling, match=f"HTTP {status} \\(code_x\\)") as caught:
        health.record_status(status, "code_x")
    assert caught.value.reason == reason


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_redirect_is_a_refusal(status):
    with pytest.raises(StopLabeling, match=f"HTTP {status}. Check --base-url") as caught:
        ServerHealth(4).record_status(status)
    assert caught.value.reason == "redirected"


def test_a_request_that_nobody_accepts_stops_and_one_that_some_do_does_not():
    health = ServerHealth(4)
    for _ in range(7):
        health.record_status(400)
    health.record_success()
    for _ in range(7):
        health.record_status(422)
    with pytest.raises(StopLabeling, match="Check --model and the fields") as caught:
        health.record_status(400)
    assert caught.value.reason == "refused"


def test_a_server_that_fails_report_after_report_stops_the_run():
    health = ServerHealth(4)
    for status in (500, 503, 429) * 3:
        health.record_status(status, is_last_try=True)
        health.record_success()
    for _ in range(7):
        health.record_status(500, is_last_try=True)
        health.record_status(500)
    with pytest.raises(StopLabeling, match=r"every try of 8 reports in a row.*last HTTP 502") as caught:
        health.record_status(502, is_last_try=True)
    assert caught.value.reason == "failing"


def test_answers_that_are_no_completions_stop_the_run_unless_some_were():
    with pytest.raises(StopLabeling, match="not with chat completions"):
        ServerHealth(4).record_status(200, is_last_try=True)
    health = ServerHealth(4)
    health.record_success()
    health.record_status(200, is_last_try=True)


@pytest.mark.parametrize("status", [200, 408, 409, 425, 429, 500, 503])
def test_a_busy_server_never_stops_the_run(status):
    health = ServerHealth(1)
    for _ in range(50):
        health.record_status(status)


def test_a_used_up_quota_stops_at_once():
    health = ServerHealth(4)
    health.record_success()
    with pytest.raises(StopLabeling, match="no quota left"):
        health.record_status(429, "insufficient_quota")
