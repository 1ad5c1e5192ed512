"""The nearest items of a query among those that pass a filter; no fewer than there are, whatever the backend.

Axes: N items, Q queries, E embedding, c candidates.
"""

from typing import Any, Protocol

import numpy as np
import torch

from radtower.evaluation.retrieval.top_k import NO_ROW, TopK, top_k

_FEW = 10_000  # as many are compared faster than a graph or lists are searched through a filter


class CandidateSource(Protocol):
    """What faiss does here: rows that are likely near."""

    def candidates(self, queries: np.ndarray, k: int, passes: np.ndarray | None) -> np.ndarray:
        """Return ``(Q, c)`` rows, c >= k; -1 where there are fewer."""
        ...


def nearest(
    vectors: torch.Tensor,
    queries: torch.Tensor,
    k: int,
    passes: np.ndarray | None = None,
    source: CandidateSource | None = None,
) -> TopK:
    """Return the k items of highest inner product, of all that pass.

    Args:
        vectors: ``(N, E)`` of the items; may be memory-mapped.
        queries: ``(Q, E)`` float32.
        k: At most the number of items that pass.
        passes: ``(N,)`` bool. None: all.
        source: Where candidates come from; they are compared exactly. None compares all items. Few items that
            pass are compared all, too, and so are those of a query with fewer than k candidates.
    """
    num_passing = len(vectors) if passes is None else int(passes.sum())
    if source is None or (passes is not None and num_passing <= max(_FEW, k)):
        return _exact(vectors, queries, k, passes)
    rows = source.candidates(queries.numpy(), k, passes)
    found = _best_candidates(vectors, queries, rows, k)
    short = np.flatnonzero((found.rows == NO_ROW).any(axis=1))
    if len(short):
        rest = _exact(vectors, queries[torch.from_numpy(short)], k, passes)
        found.rows[short], found.similarities[short] = rest.rows, rest.similarities
    return found


def _exact(vectors: torch.Tensor, queries: torch.Tensor, k: int, passes: np.ndarray | None) -> TopK:
    if passes is None:
        return top_k(queries, vectors, k, similarity="dot")
    gallery: Any = _PassingRows(vectors, np.flatnonzero(passes))
    found = top_k(queries, gallery, k, similarity="dot")
    return TopK(gallery.rows[found.rows], found.similarities)


class _PassingRows:
    """The vectors that pass, gathered a block at a time: a copy of all could be larger than memory."""

    ndim = 2

    def __init__(self, vectors: torch.Tensor, rows: np.ndarray) -> None:
        self.vectors = vectors
        self.rows = rows
        self.shape = (len(rows), vectors.shape[1])

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, block: slice) -> torch.Tensor:
        return self.vectors[torch.from_numpy(self.rows[block])]


def _best_candidates(vectors: torch.Tensor, queries: torch.Tensor, rows: np.ndarray, k: int) -> TopK:
    """The best k of ``(Q, c)`` candidates by their vectors; of equal ones the lower row, as in ``top_k``."""
    # Sorted by row, so that a stable order breaks ties; where there is none, last of all.
    rows = np.sort(np.where(rows < 0, np.iinfo(np.int64).max, rows), axis=1)
    is_there = rows < len(vectors)
    rows[~is_there] = 0
    similarities = np.full(rows.shape, -np.inf, dtype=np.float32)
    for query, (columns, there) in enumerate(zip(rows, is_there, strict=True)):
        near = vectors[torch.from_numpy(columns[there])].to(torch.float32)
        similarities[query, there] = (near @ queries[query]).numpy()
    order = np.argsort(-similarities, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(np.where(is_there, rows, NO_ROW), order, axis=1)
    return TopK(best, np.take_along_axis(similarities, order, axis=1))
