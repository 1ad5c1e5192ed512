import asyncio
import time

import pytest

from radtower.labeling.chat.pacing import Pacer


def seconds_of(pacer, turns):
    async def run():
        await asyncio.gather(*(pacer.wait_turn(tokens) for tokens in turns))

    start = time.perf_counter()
    asyncio.run(run())
    return time.perf_counter() - start


def test_requests_are_spread_over_the_minute():
    assert seconds_of(Pacer(requests_per_minute=600), [1] * 4) >= 0.3


def test_tokens_are_spread_over_the_minute():
    # 100 tokens take 0.1 s; the last request need not wait for its own.
    assert 0.3 <= seconds_of(Pacer(tokens_per_minute=60_000), [100, 200, 50_000]) < 30


def test_what_was_estimated_too_high_is_given_back():
    pacer = Pacer(tokens_per_minute=60_000)
    asyncio.run(pacer.wait_turn(10_000))
    pacer.correct(10_000, 200)
    assert 0.1 <= seconds_of(pacer, [1]) < 5  # not the ten seconds of the estimate


def test_a_pause_holds_everybody_and_a_shorter_one_does_not_end_it():
    pacer = Pacer()
    pacer.pause(0.3)
    pacer.pause(0.01)
    assert seconds_of(pacer, [1] * 20) >= 0.25
    assert seconds_of(pacer, [1] * 20) < 0.25


@pytest.mark.parametrize("name", ["requests_per_minute", "tokens_per_minute"])
def test_a_limit_that_is_not_positive_is_refused(name):
    with pytest.raises(ValueError, match=f"{name} must be positive, got 0"):
        Pacer(**{name: 0})
