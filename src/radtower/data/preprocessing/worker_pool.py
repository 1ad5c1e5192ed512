"""Processes that work through a list, of which one may be killed without taking the others along.

``concurrent.futures`` gives up the whole list when the system kills one worker, and the out-of-memory killer
does that. Here each process holds one item at a time, so that it is known which item was lost.
"""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from typing import Any, Generic, TypeVar

import SimpleITK as sitk
import torch

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True)
class LostItem:
    """In place of a result: the process ended while it worked on the item.

    Args:
        exit_code: Of the process; minus the signal, if one ended it.
    """

    exit_code: int

    def reason(self) -> str:
        """Say what happened."""
        if self.exit_code == -signal.SIGKILL:
            return "the worker was killed (SIGKILL), most likely for want of memory. Use fewer workers."
        return f"the worker ended with exit code {self.exit_code}. Read the scan alone to see why."


def available_cores() -> int:
    """Cores that this process may use: a job of Slurm or a container is given fewer than the machine has."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def map_in_processes(
    function: Callable[[Item], Result], items: Sequence[Item], num_workers: int
) -> Iterator[tuple[Item, Result | LostItem]]:
    """Apply a function to items in other processes; yields in the order of completion.

    Each process computes on one thread. One that ends is replaced. When the caller is killed, the processes
    finish their item and end.

    Args:
        function: Can be pickled, as can items and results; must not raise.
        items: What to work on.
        num_workers: Processes, at least 1.

    Raises:
        ValueError: If ``num_workers`` is below 1.
    """
    if num_workers < 1:
        raise ValueError(f"num_workers must be at least 1, got {num_workers}. Use one per core.")
    # Forked from a server without threads: as safe as spawned, and PyTorch is loaded once for all.
    context = get_context("forkserver")
    context.set_forkserver_preload([__name__, function.__class__.__module__])
    pool = _Pool(context, function, list(reversed(items)))
    try:
        for _ in range(min(num_workers, len(items))):
            pool.start_worker()
        while pool.workers:
            yield from pool.collect()
    finally:
        pool.stop()


@dataclass
class _Worker(Generic[Item]):
    process: ForkServerProcess
    connection: Connection
    item: Item


@dataclass
class _Pool(Generic[Item, Result]):
    context: ForkServerContext
    function: Callable[[Item], Result]
    waiting: list[Item]
    workers: list[_Worker[Item]] = field(default_factory=list)

    def start_worker(self) -> None:
        """Start a process on the next item."""
        ours, theirs = self.context.Pipe()
        process = self.context.Process(target=_serve, args=(theirs, self.function), daemon=True)
        process.start()
        theirs.close()  # the process has its own; else we would not see it end
        worker = _Worker(process, ours, self.waiting.pop())
        self.workers.append(worker)
        self._send(worker)

    def collect(self) -> Iterator[tuple[Item, Result | LostItem]]:
        """Wait for a result or an end, and hand out what is next."""
        ready = set(wait([worker.connection for worker in self.workers]))
        for worker in [worker for worker in self.workers if worker.connection in ready]:
            done = worker.item
            result: Result | LostItem
            try:
                result = worker.connection.recv()
            except (EOFError, OSError):
                worker.process.join()
                result = LostItem(worker.process.exitcode or 0)
                self._remove(worker)
                if self.waiting:
                    self.start_worker()
            else:
                if self.waiting:
                    worker.item = self.waiting.pop()
                    self._send(worker)
                else:
                    self._remove(worker)
            yield done, result

    def stop(self) -> None:
        """End all processes, also in the middle of an item."""
        for worker in list(self.workers):
            worker.process.terminate()
            self._remove(worker)

    def _send(self, worker: _Worker[Item]) -> None:
        with suppress(OSError):  # it has ended already; the next wait says so
            worker.connection.send(worker.item)

    def _remove(self, worker: _Worker[Item]) -> None:
        worker.connection.close()
        worker.process.join()
        self.workers.remove(worker)


def _serve(connection: Any, function: Callable[[Any], Any]) -> None:
    """Work until the other side hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the caller decides what an interrupt means
    torch.set_num_threads(1)
    sitk.ProcessObject.SetGlobalDefaultNumberOfThreads(1)
    while True:
        try:
            item = connection.recv()
        except (EOFError, OSError):
            return
        result = function(item)
        try:
            connection.send(result)
        except OSError:
            return
