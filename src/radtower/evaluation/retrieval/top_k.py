"""The k most similar gallery rows of every query: exact, in blocks, without the similarity matrix.

Axes: Q queries, G gallery, E embedding; q and g are those of a block, m candidates of a block.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import get_args

import numpy as np
import torch

from radtower.evaluation.retrieval.ranks import Embeddings, Similarity

_BLOCK_QUERIES = 1024
_BLOCK_GALLERY = 4096  # with 1024 queries 16 MB of similarities at once
_SPARSE_CANDIDATES = (
    4  # above this many times k candidates per query, the block is reduced to its best k first
)
# BLAS multiplies fewer rows by other routines, where equal gallery rows differ by rounding.
_MULTIPLE = 16
NO_ROW = -1


@dataclass(frozen=True)
class TopK:
    """The best gallery rows of each query, the most similar first.

    Args:
        rows: ``(Q, k)`` int64. -1 where fewer than k are left after exclusion, at the end.
        similarities: ``(Q, k)`` float32; minus infinity where ``rows`` is -1.
    """

    rows: np.ndarray
    similarities: np.ndarray


def top_k(
    queries: Embeddings,
    gallery: Embeddings,
    k: int,
    *,
    similarity: Similarity = "cosine",
    query_keys: Sequence[Hashable] | np.ndarray | None = None,
    gallery_keys: Sequence[Hashable] | np.ndarray | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> TopK:
    """Return the k most similar gallery rows of every query.

    Rows of equal similarity come in the order of the gallery. The gallery may be memory-mapped or of half
    precision. Beyond the inputs, memory is a copy of the queries, the answer and one block of similarities.

    Args:
        queries: ``(Q, E)``, normalized or not.
        gallery: ``(G, E)``.
        k: Between 1 and G.
        similarity: ``cosine`` normalizes here, block by block; ``dot`` takes the vectors as they are.
        query_keys: ``(Q,)``. A gallery row with the key of the query is not an answer: its row number
            excludes the query itself, its study the sibling reconstructions, too.
        gallery_keys: ``(G,)``, together with ``query_keys``.
        on_progress: Called with the number of gallery rows done.

    Raises:
        ValueError: If a shape, a value, an option or the number of keys is invalid.
    """
    _check(queries, gallery, k, similarity)
    codes = key_codes(query_keys, gallery_keys, len(queries), len(gallery))
    similarities = np.full((len(queries), k), -np.inf, dtype=np.float32)
    rows = np.full((len(queries), k), NO_ROW, dtype=np.int64)
    query_blocks = [
        (inside, _block("queries", queries, inside, similarity))
        for inside in _slices(len(queries), _BLOCK_QUERIES)
    ]
    for columns in _slices(len(gallery), _BLOCK_GALLERY):
        gallery_block = _block("gallery", gallery, columns, similarity)
        for inside, query_block in query_blocks:
            scores = _scores(query_block, gallery_block)
            if codes is not None:
                scores[codes[0][inside, None] == codes[1][columns]] = -np.inf
            _merge(similarities[inside], rows[inside], scores, columns.start)
        if on_progress is not None:
            on_progress(columns.stop)
    return TopK(rows, similarities)


def _slices(num_rows: int, size: int) -> list[slice]:
    return [slice(first, min(first + size, num_rows)) for first in range(0, num_rows, size)]


def _merge(similarities: np.ndarray, rows: np.ndarray, scores: np.ndarray, first: int) -> None:
    """Merge a block ``(q, g)``, whose gallery begins at row ``first``, into the best ``(q, k)``, in place."""
    num_queries, k = rows.shape
    # Strictly better than the last of the best: of equal ones, the lower row is there already.
    flat = np.flatnonzero(scores > similarities[:, -1:])
    if len(flat) > _SPARSE_CANDIDATES * k * num_queries:
        flat = np.flatnonzero((scores > similarities[:, -1:]) & _is_best_of_block(scores, k))
    if not len(flat):
        return
    query, column = np.divmod(flat, scores.shape[1])
    counts = np.bincount(query, minlength=num_queries)
    place = np.arange(len(flat)) - np.repeat(np.cumsum(counts) - counts, counts)
    new_similarities = np.full((num_queries, counts.max()), -np.inf, dtype=np.float32)
    new_rows = np.full(new_similarities.shape, NO_ROW, dtype=np.int64)
    new_similarities[query, place] = scores.ravel()[flat]
    new_rows[query, place] = column + first
    both = np.concatenate([similarities, new_similarities], axis=1)
    order = np.argsort(-both, axis=1, kind="stable")[:, :k]
    similarities[:] = np.take_along_axis(both, order, axis=1)
    rows[:] = np.take_along_axis(np.concatenate([rows, new_rows], axis=1), order, axis=1)


def _is_best_of_block(scores: np.ndarray, k: int) -> np.ndarray:
    """``(q, g)``: the k best of each query, and what is equal to the last of them."""
    last = torch.topk(torch.from_numpy(scores), min(k, scores.shape[1]), dim=1).values[:, -1:].numpy()
    is_best: np.ndarray = scores >= last
    return is_best


def _scores(queries: torch.Tensor, gallery: torch.Tensor) -> np.ndarray:
    """``(q, g)`` similarities."""
    products = _padded(queries) @ _padded(gallery).T
    scores: np.ndarray = products[: len(queries), : len(gallery)].numpy()
    return scores


def _padded(rows: torch.Tensor) -> torch.Tensor:
    """A multiple of 16 rows; those added repeat the last."""
    missing = -len(rows) % _MULTIPLE
    return torch.cat([rows, rows[-1:].expand(missing, -1)]) if missing > 0 else rows


def _block(name: str, embeds: Embeddings, rows: slice, similarity: Similarity) -> torch.Tensor:
    """Rows as float32, normalized for the cosine."""
    raw = embeds[rows]
    if not isinstance(raw, torch.Tensor):
        raw = torch.from_numpy(np.require(raw, np.float32, "W"))  # memory-mapped rows are copied
    block = raw.detach().to("cpu", torch.float32)
    norms = torch.linalg.vector_norm(block, dim=1, keepdim=True)
    where = f"among rows {rows.start} to {rows.stop - 1}"
    # Of the norms and not of the values: several times as fast, and NaN and infinity show in them.
    num_invalid = int((~torch.isfinite(norms)).sum())
    if num_invalid:
        raise ValueError(
            f"{name} must be finite, got {num_invalid} rows with NaN or infinity {where}. Find their cause."
        )
    if similarity == "dot":
        return block
    num_zero = int((norms == 0).sum())
    if num_zero:
        raise ValueError(
            f"{name} must not hold zero vectors, got {num_zero} {where}. They have no direction."
        )
    return block / norms


def key_codes(
    query_keys: Sequence[Hashable] | np.ndarray | None,
    gallery_keys: Sequence[Hashable] | np.ndarray | None,
    num_queries: int,
    num_gallery: int,
) -> tuple[np.ndarray, np.ndarray] | None:
    """Number the keys, so that blocks of them are compared fast; None where there are none.

    Raises:
        ValueError: If only one side has keys, or their number is not that of the rows.
    """
    if query_keys is None and gallery_keys is None:
        return None
    lengths = tuple(None if keys is None else len(keys) for keys in (query_keys, gallery_keys))
    if query_keys is None or gallery_keys is None or lengths != (num_queries, num_gallery):
        raise ValueError(
            f"query_keys and gallery_keys must have one key per row, {num_queries} and {num_gallery}, got "
            f"{lengths[0]} and {lengths[1]}. Give both, or neither."
        )
    numbers: dict[Hashable, int] = {}
    query_codes, gallery_codes = (
        np.fromiter((numbers.setdefault(key, len(numbers)) for key in keys), np.int32, len(keys))
        for keys in (query_keys, gallery_keys)
    )
    return query_codes, gallery_codes


def _check(queries: Embeddings, gallery: Embeddings, k: int, similarity: str) -> None:
    if similarity not in get_args(Similarity):
        raise ValueError(f"similarity must be one of {', '.join(get_args(Similarity))}, got {similarity!r}.")
    for name, embeds in (("queries", queries), ("gallery", gallery)):
        if embeds.ndim != 2 or not len(embeds):
            raise ValueError(
                f"{name} must be (N, E) with N > 0, got shape {tuple(embeds.shape)}. Stack the embeddings."
            )
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"queries and gallery must have the same width, got {queries.shape[1]} and {gallery.shape[1]}. "
            "Embed both with one model."
        )
    if not 1 <= k <= len(gallery):
        raise ValueError(
            f"k must be between 1 and the {len(gallery)} rows of the gallery, got {k}. Ask for fewer."
        )
