from datetime import UTC, datetime

import pytest

from radtower.labeling.chat.retry import RetryPolicy, is_retried, retry_after_s

NOW = datetime(2026, 11, 22, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"Retry-After": "7"}, 7.0),
        ({"Retry-After": "0.25"}, 0.25),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": "-3"}, 0.0),
        ({"Retry-After": "86400"}, 86400.0),
        ({"Retry-After": "Sun, 22 Nov 2026 12:00:20 GMT"}, 20.0),
        ({"Retry-After": "Sun, 22 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "Sun, 22 Nov 2026 12:00:20 -0000"}, 20.0),
        ({"Retry-After": "Mon, 23 Nov 2026 12:00:00 GMT"}, 86400.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "x", "Retry-After": "2"}, 2.0),
    ],
)
def test_a_server_says_how_long_to_wait_in_seconds_milliseconds_or_as_a_date(headers, seconds):
    assert retry_after_s(headers, NOW) == seconds


def test_busy_servers_are_asked_again_and_refusals_are_not():
    assert [code for code in range(200, 600) if is_retried(code)] == [408, 409, 425, 429, *range(500, 600)]


def test_the_wait_is_spread_from_zero_to_a_bound_that_doubles_up_to_a_cap():
    policy = RetryPolicy(base_s=0.5, cap_s=3.0)
    for attempt, bound in enumerate([0.5, 1.0, 2.0, 3.0, 3.0]):
        waits = [policy.backoff_s(attempt) for _ in range(400)]
        assert 0 <= min(waits) < 0.1 * bound
        assert 0.9 * bound < max(waits) <= bound


def test_a_backoff_has_no_end():
    assert 0 <= RetryPolicy(cap_s=0.5).backoff_s(10**6) <= 0.5


def test_a_rate_limit_of_a_minute_is_waited_out_and_nothing_else():
    policy = RetryPolicy()
    assert policy.rate_limit_s >= 120
    assert [policy.is_used_up(6, 429, waited_s) for waited_s in (0, 61, 119, 121)] == [False] * 3 + [True]
    assert not policy.is_used_up(5, 429, 500)  # at least the retries
    assert [policy.is_used_up(6, status, 0) for status in (None, 500, 503, 408)] == [True] * 4
    assert [policy.is_used_up(5, status, 0) for status in (None, 500)] == [False] * 2
    assert RetryPolicy(max_retries=0).is_used_up(0, 429, 0)


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="base_s must not be negative, got -1"):
        RetryPolicy(base_s=-1)
