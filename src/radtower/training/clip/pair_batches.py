"""Which volumes are in a batch together: none of one study, none with one report.

Axes: N volumes, K keys, F findings.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

LENGTH_POOL = 16  # batches whose volumes are sorted by length together

Key = tuple[int, int]  # column and value


class HasEpoch(Protocol):
    """A data set that is told the epoch."""

    @property
    def epoch(self) -> int:
        """From 0 on."""


class PairSampler(Sampler[int]):
    """Shuffles volumes so that no batch of all processes has two that share a key.

    What finds no batch without its like, such as the hundredth copy of one report, and what does not fill a
    batch is left out of an epoch; another part in the next.

    Args:
        dataset: Tells the epoch.
        keys: ``(N, K)`` int64, 0 for none.
        batch_size: Volumes per batch, over all processes.
        seed: Of the order.
        weights: ``(N,)`` > 0; volumes are drawn with replacement in proportion to it. None takes each once.
        lengths: ``(N,)`` tokens of the reports; batches are then of like length. None mixes them.

    Raises:
        ValueError: If there are fewer volumes that may meet than fill a batch, or a batch is to have none.
    """

    def __init__(
        self,
        dataset: HasEpoch,
        keys: torch.Tensor,
        batch_size: int,
        seed: int = 0,
        weights: np.ndarray | None = None,
        lengths: Sequence[int] | None = None,
    ) -> None:
        if batch_size < 1:
            raise ValueError(
                f"batch_size must be at least 1, got {batch_size}. Make per_device_train_batch_size larger."
            )
        self.dataset = dataset
        self.keys = [frozenset((place, key) for place, key in enumerate(row) if key) for row in keys.tolist()]
        self.batch_size = batch_size
        self.seed = seed
        self.weights = None if weights is None else weights / weights.sum()
        self.lengths = None if lengths is None else np.asarray(lengths)
        first = self._batches(0)
        if not first:
            raise ValueError(
                f"a batch must have {batch_size} volumes of different studies and reports, got "
                f"{len(set(self.keys))} different ones of {len(self.keys)}. Make the batches smaller."
            )
        # Epochs could differ by a batch or two, and the schedule needs their length.
        self._num_batches = len(first)

    def __len__(self) -> int:
        return self._num_batches * self.batch_size

    def __iter__(self) -> Iterator[int]:
        batches: list[list[int]] = []
        draw = 0
        while len(batches) < self._num_batches:  # one more draw, where this one has met its likes too often
            batches += self._batches(self.dataset.epoch, draw)
            draw += 1
        for batch in batches[: self._num_batches]:
            yield from batch

    def _batches(self, epoch: int, draw: int = 0) -> list[list[int]]:
        rng = np.random.default_rng((self.seed, epoch, draw))
        batches: list[list[int]] = []
        fresh, waiting = iter(self._order(rng)), dict[Key, deque[int]]()
        while len(batch := self._fill(fresh, waiting)) == self.batch_size:
            batches.append(batch)
        return [batches[place] for place in rng.permutation(len(batches))]

    def _fill(self, fresh: Iterator[int], waiting: dict[Key, deque[int]]) -> list[int]:
        """The next volumes that share no key: those that wait first, then from the order.

        What meets its like waits in the queue of their key. A queue gives a batch one volume at most, so that
        a key of thousands costs as much as one of two.
        """
        batch: list[int] = []
        seen: set[Key] = set()
        held = (row for key in tuple(waiting) for row in self._next_of(key, waiting, seen))
        for source in (held, fresh):
            while len(batch) < self.batch_size and (row := next(source, None)) is not None:
                if shared := self.keys[row] & seen:
                    waiting.setdefault(min(shared), deque()).append(row)
                else:
                    batch.append(row)
                    seen |= self.keys[row]
        return batch

    def _next_of(self, key: Key, waiting: dict[Key, deque[int]], seen: set[Key]) -> Iterator[int]:
        """Volumes of a queue until one of them is in the batch; the queue is gone when it is empty."""
        while key in waiting and key not in seen:
            row = waiting[key].popleft()
            if not waiting[key]:
                del waiting[key]
            yield row

    def _order(self, rng: np.random.Generator) -> list[int]:
        number = len(self.keys)
        if self.weights is None:
            order = rng.permutation(number)
        else:
            order = rng.choice(number, number, p=self.weights)
        if self.lengths is not None:
            pool = LENGTH_POOL * self.batch_size
            pools = [order[start : start + pool] for start in range(0, number, pool)]
            order = np.concatenate([rows[np.argsort(self.lengths[rows], kind="stable")] for rows in pools])
        return [int(row) for row in order]


def balanced_weights(targets: np.ndarray) -> np.ndarray:
    """Weights with which every finding is drawn about as often, and studies without any as often as one.

    Args:
        targets: ``(N, F)``, present from 0.5 on, -100 where unknown.

    Returns:
        ``(N,)``: the mean, over the findings a study has, of one over the number of studies that have it.
    """
    present = np.concatenate([targets >= 0.5, ~(targets >= 0.5).any(axis=1, keepdims=True)], axis=1)
    rarity = 1 / np.maximum(present.sum(axis=0), 1)
    weights: np.ndarray = (present * rarity).sum(axis=1) / present.sum(axis=1)
    return weights
