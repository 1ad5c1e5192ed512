"""Pairs -> training samples and the order in which they form batches.

Everything that is drawn at random is drawn from (seed, epoch, row), so that it does not depend on the number
of workers, of processes, or on whether the run was resumed.
"""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass

import numpy as np
import pandas as pd
from torch.utils.data import Dataset, Sampler

COLUMNS = ("query", "positive", "negatives", "instruction", "label_key")

Text = tuple[str | None, str]
"""Instruction, if there is one, and text."""

Place = tuple[int, int]
"""Epoch and row: the hard negatives of a row change from epoch to epoch, in every worker alike."""


@dataclass(frozen=True)
class Pair:
    """A query, the document that belongs to it, and some that do not.

    Args:
        query: A text.
        positive: The text that belongs to it.
        negatives: Texts that do not.
        instruction: Put before the query and not pooled; None for none.
        label_key: Pairs of equal key are no negatives of each other; None equals nothing.
    """

    query: str
    positive: str
    negatives: tuple[str, ...] = ()
    instruction: str | None = None
    label_key: str | None = None


class PairDataset(Dataset[Pair]):
    """Rows of a pairs table; each access draws hard negatives for its epoch.

    Args:
        table: Columns ``query, positive, negatives, source, instruction, label_key``.
        num_negatives: Hard negatives drawn per pair and epoch without replacement, as far as there are.
        seed: Of the draws and the order of the batches.

    Raises:
        ValueError: If there is no row, or ``num_negatives`` is negative.
    """

    def __init__(self, table: pd.DataFrame, num_negatives: int, seed: int) -> None:
        if not len(table) or num_negatives < 0:
            raise ValueError(
                f"pairs must not be empty and num_negatives be >= 0, got {len(table)} pairs and "
                f"{num_negatives}. Check the split of the pairs table."
            )
        self.num_negatives = num_negatives
        self.seed = seed
        self.epoch = 0
        self.sources: list[str] = [str(source) for source in table["source"]]
        self._pairs = [
            Pair(query, positive, tuple(negatives), _text_or_none(instruction), _text_or_none(label_key))
            for query, positive, negatives, instruction, label_key in zip(
                *(table[name] for name in COLUMNS), strict=True
            )
        ]

    def set_epoch(self, epoch: int) -> None:
        """Set which epoch the sampler orders; see :class:`SourceSampler`."""
        self.epoch = epoch

    def texts(self) -> list[Text]:
        """Every text that an epoch may ask for, once, with its instruction."""
        queries = [(pair.instruction, pair.query) for pair in self._pairs]
        documents = [
            (None, text)
            for pair in self._pairs
            for text in (pair.positive, *(pair.negatives if self.num_negatives else ()))
        ]
        return list(dict.fromkeys([*queries, *documents]))

    def sha256(self) -> str:
        """Hash of all rows in order: what a resumed run must go on with."""
        content = [(source, *astuple(pair)) for source, pair in zip(self.sources, self._pairs, strict=True)]
        return hashlib.sha256(json.dumps(content).encode()).hexdigest()

    def is_of_one_text(self) -> bool:
        """Whether every text of some source is its own positive, as in SimCSE; a few are in real reports."""
        others = {
            source
            for source, pair in zip(self.sources, self._pairs, strict=True)
            if pair.query != pair.positive
        }
        return bool(set(self.sources) - others)

    def __len__(self) -> int:
        return len(self._pairs)

    def __getitem__(self, place: Place | int) -> Pair:
        """Return a pair with the hard negatives of an epoch; a plain row number is epoch 0."""
        epoch, row = (0, place) if isinstance(place, int) else place
        pair = self._pairs[row]
        if len(pair.negatives) <= self.num_negatives:
            return pair
        rng = np.random.default_rng((self.seed, epoch, row))
        drawn = rng.choice(len(pair.negatives), self.num_negatives, replace=False)
        negatives = tuple(pair.negatives[index] for index in sorted(drawn))
        return Pair(pair.query, pair.positive, negatives, pair.instruction, pair.label_key)


class SourceSampler(Sampler[Place]):
    """Shuffles pairs so that each batch is of one source.

    What makes a negative hard in one source makes it easy in a mixed batch: the style of the text gives it
    away. A batch is that of all processes together; what does not fill one is left out of the epoch, and
    another part in the next.

    Args:
        dataset: Tells the epoch, the seed and the source of each row.
        batch_size: Pairs per batch, over all processes.

    Raises:
        ValueError: If a source does not fill one batch: it would never be trained on.
    """

    def __init__(self, dataset: PairDataset, batch_size: int) -> None:
        self.dataset = dataset
        self.batch_size = batch_size
        sources = np.array(dataset.sources)
        self._rows = {name: np.flatnonzero(sources == name) for name in sorted(set(dataset.sources))}
        small = {name: len(rows) for name, rows in self._rows.items() if len(rows) < batch_size}
        if small:
            raise ValueError(
                f"every source must fill a batch of {batch_size} pairs, got {small}. "
                "Make the batches smaller, or leave the source out of the table."
            )

    def __len__(self) -> int:
        return sum(len(rows) // self.batch_size for rows in self._rows.values()) * self.batch_size

    def __iter__(self) -> Iterator[Place]:
        epoch = self.dataset.epoch
        rng = np.random.default_rng((self.dataset.seed, epoch))
        batches: list[Sequence[int]] = []
        for rows in self._rows.values():
            shuffled = rng.permutation(rows)
            whole = len(rows) // self.batch_size
            batches += [batch.tolist() for batch in np.split(shuffled[: whole * self.batch_size], whole)]
        for index in rng.permutation(len(batches)):
            yield from ((epoch, row) for row in batches[index])


def _text_or_none(value: object) -> str | None:
    """An empty cell is None, or NaN where pandas read a file."""
    return value if isinstance(value, str) and value else None
