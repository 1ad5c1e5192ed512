import asyncio

import pytest

from radtower.labeling.chat.event_loop import SteppedLoop


async def answer(value, log=None):
    try:
        await asyncio.sleep(0.01 if value else 60)
    except asyncio.CancelledError:
        log.append("cancelled")
        raise
    return value


def step_through():
    loop, log = SteppedLoop(), []
    loop.start(answer(0, log))
    assert loop.run(answer(3)) == 3
    assert log == []
    loop.cancel()
    loop.close()
    return log


def test_tasks_move_in_steps_and_are_cancelled_at_the_end():
    assert step_through() == ["cancelled"]


def test_it_steps_in_a_thread_beside_a_loop_that_runs():
    async def cell():
        return step_through()

    assert asyncio.run(cell()) == ["cancelled"]


def test_an_exception_comes_out_of_the_step():
    async def fail():
        raise KeyError("x")

    loop = SteppedLoop()
    with pytest.raises(KeyError, match="x"):
        loop.run(fail())
    loop.close()
