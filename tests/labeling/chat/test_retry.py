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
        ({"Retry-After": "86400"}, 300.0),
        ({"Retry-After": "Sun, 22 Nov 2026 12:00:20 GMT"}, 20.0),
        ({"Retry-After": "Sun, 22 Nov 2026 11:00:00 GMT"}, 0.0),
        ({"Retry-After": "Sun, 22 Nov 2026 12:00:20 -0000"}, 20.0),
        ({"Retry-After": "Mon, 23 Nov 2026 12:00:00 GMT"}, 300.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"retry-after-ms": "1500", "Retry-After": "2"}, 1.5),
        ({"retry-after-ms": "x", "Retry-After": "2"}, 2.0),
    ],
)
def test_a_server_says_how_long_to_wait_in_seconds_milliseconds_or_as_a_date(headers, seconds):
    assert retry_after_s(headers, 300.0, NOW) == seconds


def test_busy_servers_are_asked_again_and_refusals_are_not():
    assert [code for code in range(200, 600) if is_retried(code)] == [408, 409, 425, 429, *range(500, 600)]


def test_the_wait_is_spread_from_zero_to_a_bound_that_doubles_up_to_a_cap():
    policy = RetryPolicy(base_s=0.5, cap_s=3.0)
    for attempt, bound in enumerate([0.5, 1.0, 2.0, 3.0, 3.0]):
        waits = [policy.backoff_s(attempt) for _ in range(400)]
        assert 0 <= min(waits) < 0.1 * bound
        assert 0.9 * bound < max(waits) <= bound


def test_a_negative_number_is_refused():
    with pytest.raises(ValueError, match="base_s must not be negative, got -1"):
        RetryPolicy(base_s=-1)
