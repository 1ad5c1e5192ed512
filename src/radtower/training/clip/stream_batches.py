"""Batches of a stream: no two studies of all processes share a report or an id, as in ``pair_batches.py``.

Each process reads rows of its own, so that nothing is read or sent twice; what they tell each other is the
keys of the rows they have. Axes: W processes, B rows a process lacks of its batch, K keys.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import chain, count, islice
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, IterableDataset

from radtower.data.pair_keys import KEY_COLUMNS
from radtower.data.streams.study_stream import StudyStream, name_of
from radtower.training.clip.stream_tally import StreamTally
from radtower.training.gather import is_distributed

Sample = dict[str, torch.Tensor]
Collate = Callable[[Sequence[Sample]], Sample]
Exchange = Callable[[torch.Tensor], torch.Tensor]


class StreamBatches(IterableDataset[Sample]):
    """Whole batches of this process, pass after pass, without end.

    A row whose like is in a batch waits for the next, first come, first served; as many as fill a batch of
    this process may wait. A pass ends for all processes when one of them has no more rows; what is left is
    left out of this pass, other rows in the next. Read it in the process that trains: it exchanges keys.

    Args:
        stream: Rows of this process.
        batch_size: Of this process.
        collate: Samples to a batch.
        num_workers: Processes that read and decode. 0 reads in this one.
        tally: Counts what is left out. None makes one.
        exchange: From the keys of this process to those of all, ``(W, B, 1 + K)``. None asks
            ``torch.distributed``.
        process: Which of the W this is.
    """

    def __init__(
        self,
        stream: StudyStream,
        batch_size: int,
        collate: Collate,
        num_workers: int = 0,
        tally: StreamTally | None = None,
        exchange: Exchange | None = None,
        process: int = 0,
    ) -> None:
        self.stream = stream
        self.batch_size = batch_size
        self.collate = collate
        self.num_workers = num_workers
        self.tally = tally or StreamTally()
        self.exchange = exchange or exchange_keys
        self.process = process
        self.waiting: list[Sample] = []

    def __iter__(self) -> Iterator[Sample]:
        """Give batches.

        Raises:
            ValueError: If a whole pass does not fill one.
        """
        for number in count():
            num_batches = 0
            for batch in self.one_pass(number):
                num_batches += 1
                yield batch
            if not num_batches:
                raise ValueError(self._why_none())

    def one_pass(self, number: int) -> Iterator[Sample]:
        """Give the batches of one pass over the rows."""
        self.stream.pass_number = number
        self.waiting = []
        rows = self._samples()
        while (batch := self._fill(rows)) is not None:
            yield self.collate(batch)

    @property
    def volume_ids(self) -> "RowNames":
        """What to call rows in a message."""
        return RowNames()

    def _samples(self) -> Iterator[Sample]:
        # With a generator of its own: a new pass must not draw from that of the model's dropout.
        loader = DataLoader(
            self.stream,
            batch_size=None,
            num_workers=self.num_workers,
            collate_fn=_as_it_is,
            generator=torch.Generator(),
        )
        for study in loader:
            self.tally.add(study)
            if study.sample is not None:
                yield study.sample

    def _fill(self, rows: Iterator[Sample]) -> list[Sample] | None:
        """The batch of this process; None where a process has not enough rows for its own."""
        batch: list[Sample] = []
        postponed: list[Sample] = []
        held = iter(self.waiting)
        num_held = len(self.waiting)
        source = chain(held, rows)
        shared: SharedBatch | None = None
        while shared is None or not shared.is_full:
            offered = list(islice(source, self.batch_size - len(batch)))
            offers = self.exchange(self._keys_of(offered))
            shared = shared or SharedBatch(len(offers), self.batch_size)
            if not shared.can_go_on(offers):
                return None
            for sample, is_in in zip(offered, shared.add(offers)[self.process], strict=False):
                num_held -= 1
                if is_in:
                    batch.append(sample)
                elif len(postponed) + max(num_held, 0) < self.batch_size:
                    postponed.append(sample)
                else:
                    self.tally.num_crowded_out += 1
        self.waiting = postponed + list(held)
        return batch

    def _keys_of(self, samples: Sequence[Sample]) -> torch.Tensor:
        """``(B, 1 + K)``: whether there is a row, and its keys."""
        table = torch.zeros(self.batch_size, 1 + len(KEY_COLUMNS), dtype=torch.int64)
        for place, sample in enumerate(samples):
            table[place, 0] = 1
            table[place, 1:] = sample["pair_keys"]
        return table

    def _why_none(self) -> str:
        if self.tally.num_read == self.tally.num_left_out > 0:
            return (
                f"at least one row must be readable, got {self.tally.num_read} that are not. The first says: "
                f"{self.tally.first_reason}"
            )
        return (
            f"a pass must fill a batch of {self.batch_size} different studies and reports in each process, "
            f"got {self.tally.num_read - self.tally.num_left_out} readable rows in this. Make the batches "
            "smaller, or train in fewer processes."
        )


class SharedBatch:
    """Who is in a batch of all processes: each process computes the same from the same keys.

    Args:
        num_processes: W.
        size: Rows per process.
    """

    def __init__(self, num_processes: int, size: int) -> None:
        self.size = size
        self.counts = [0] * num_processes
        self.seen: set[tuple[int, int]] = set()

    @property
    def is_full(self) -> bool:
        """Whether every process has its rows."""
        return min(self.counts) == self.size

    def can_go_on(self, offers: torch.Tensor) -> bool:
        """Whether every process that lacks rows offers some, ``(W, B, 1 + K)``."""
        lacking = [number < self.size for number in self.counts]
        return all(not lacks or bool(own[:, 0].any()) for lacks, own in zip(lacking, offers, strict=True))

    def add(self, offers: torch.Tensor) -> list[list[bool]]:
        """Take what shares no key with what is in, the processes in turn; says what was taken of each."""
        tables = offers.tolist()
        taken: list[list[bool]] = [[] for _ in tables]
        for place in range(offers.shape[1]):
            for process, table in enumerate(tables):
                is_there, *keys = table[place]
                if not is_there:
                    continue
                found = {(number, key) for number, key in enumerate(keys) if key}
                is_in = not found & self.seen
                taken[process].append(is_in)
                if is_in:
                    self.seen |= found
                    self.counts[process] += 1
        return taken


class RowNames:
    """Names of rows by the numbers in their samples."""

    def __getitem__(self, row: int) -> str:
        return name_of(row)


def exchange_keys(own: torch.Tensor) -> torch.Tensor:
    """Return the ``(B, 1 + K)`` tables of all processes, ``(W, B, 1 + K)``; everybody must call it."""
    if not is_distributed():
        return own[None]
    device = torch.device("cuda", torch.cuda.current_device()) if dist.get_backend() == "nccl" else own.device
    tables = torch.zeros(dist.get_world_size(), *own.shape, dtype=own.dtype, device=device)
    tables[dist.get_rank()] = own.to(device)
    dist.all_reduce(tables)
    return tables.cpu()


def _as_it_is(study: Any) -> Any:
    """Collate nothing: a batch is put together later."""
    return study
