"""Which volumes are in a batch together: none of one study, none with one report.

Axes: N volumes, K keys, F findings.
"""

from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch.utils.data import Sampler

LENGTH_POOL = 16  # batches whose volumes are sorted by length together


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
        ValueError: If there are fewer volumes that may meet than fill a batch.
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
        batches, waiting = [], self._order(rng)
        while len(waiting) >= self.batch_size:
            batch, waiting = self._fill(waiting)
            if len(batch) < self.batch_size:
                break
            batches.append(batch)
        return [batches[place] for place in rng.permutation(len(batches))]

    def _fill(self, waiting: list[int]) -> tuple[list[int], list[int]]:
        """The first volumes in order that share no key, and the others in their order."""
        batch: list[int] = []
        postponed: list[int] = []
        seen: set[tuple[int, int]] = set()
        for place, row in enumerate(waiting):
            if len(batch) == self.batch_size:
                return batch, postponed + waiting[place:]
            if self.keys[row] & seen:
                postponed.append(row)
            else:
                batch.append(row)
                seen |= self.keys[row]
        return batch, postponed

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
