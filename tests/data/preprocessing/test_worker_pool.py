import os
import signal
import time

import pytest

from radtower.data.preprocessing.worker_pool import LostItem, available_cores, map_in_processes


class Divide:
    """100 / n and the process; ends or kills the process for two values."""

    def __call__(self, number: int) -> tuple[float, int]:
        if number == 7:
            os.kill(os.getpid(), signal.SIGKILL)
        if number == 8:
            os._exit(3)
        time.sleep(0.05)
        return 100 / number, os.getpid()


@pytest.mark.slow
def test_a_killed_process_loses_its_item_and_nothing_else():
    items = [1, 7, 2, 4, 8, 7, 5, 10, 20]
    results = list(map_in_processes(Divide(), items, num_workers=2))
    assert sorted(item for item, _ in results) == sorted(items)
    lost = [(item, result.exit_code) for item, result in results if isinstance(result, LostItem)]
    assert sorted(lost) == [(7, -9), (7, -9), (8, 3)]
    done = {item: result for item, result in results if not isinstance(result, LostItem)}
    assert {n: value for n, (value, _) in done.items()} == {n: 100 / n for n in (1, 2, 4, 5, 10, 20)}
    processes = {process for _, process in done.values()}
    assert os.getpid() not in processes
    assert len(processes) > 1


@pytest.mark.slow
def test_leaving_early_ends_the_processes():
    results = map_in_processes(Divide(), [1, 2, 4, 5, 10], num_workers=2)
    _, (_, process) = next(results)
    results.close()
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_counts_the_cores_that_it_was_given():
    given = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(given)})
        assert available_cores() == 1
    finally:
        os.sched_setaffinity(0, given)
    assert available_cores() == len(given)


def test_says_why_an_item_was_lost():
    assert "killed (SIGKILL), most likely for want of memory" in LostItem(-9).reason()
    assert "exit code 3" in LostItem(3).reason()
    assert list(map_in_processes(Divide(), [], num_workers=2)) == []


def test_refuses_to_work_without_processes():
    with pytest.raises(ValueError, match="num_workers must be at least 1, got 0"):
        list(map_in_processes(Divide(), [1], num_workers=0))
