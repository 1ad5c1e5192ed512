"""An event loop that moves in steps, so that a generator can yield while requests are in flight."""

import asyncio
from collections.abc import Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

T = TypeVar("T")


class SteppedLoop:
    """A loop of its own, which moves only inside ``run``; tasks started in between wait for the next step.

    Ctrl-C cancels what ``run`` waits for, and comes out of it as KeyboardInterrupt: no task is cut off
    between a reply and its record. A second one does not wait.

    In a thread that already runs a loop, as in a notebook, the steps are taken in a thread beside it.
    """

    def __init__(self) -> None:
        self._runner = asyncio.Runner(loop_factory=asyncio.new_event_loop)
        self._loop = self._runner.get_loop()
        self._thread = ThreadPoolExecutor(1) if _runs_a_loop() else None

    def start(self, coroutine: Coroutine[Any, Any, None]) -> "asyncio.Task[None]":
        """Start a task; it moves in the next ``run``."""
        return self._loop.create_task(coroutine)

    def run(self, coroutine: Coroutine[Any, Any, T]) -> T:
        """Let everything move until ``coroutine`` is done."""
        if self._thread is None:
            return self._runner.run(coroutine)
        return self._thread.submit(self._runner.run, coroutine).result()

    def cancel(self) -> None:
        """Cancel what still runs."""
        tasks = asyncio.all_tasks(self._loop)
        for task in tasks:
            task.cancel()
        if tasks:
            self.run(_finished(tasks))

    def close(self) -> None:
        """Close the loop; nothing may still run."""
        self.run(self._loop.shutdown_asyncgens())
        self._loop.close()
        if self._thread is not None:
            self._thread.shutdown()


async def _finished(tasks: "set[asyncio.Task[Any]]") -> None:
    await asyncio.gather(*tasks, return_exceptions=True)


def _runs_a_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
