"""Items that a model cannot tell apart: of those that tie, the worst come first.

So the order of the gallery does not matter, and a collapsed model, all vectors equal, is never credited.

Axes: Q queries, G gallery, E embedding; q queries of a block, m places found, k places looked at, o queries
with more ties than were found.
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.retrieval.ranks import Embeddings, Similarity, checked_embeds
from radtower.evaluation.retrieval.score_ranks import TIE_TOLERANCE
from radtower.evaluation.retrieval.top_k import NO_ROW, TopK, key_codes

_BLOCK_ELEMENTS = 4_000_000  # gains in memory at once, 16 MB
MORE_PLACES = 8  # to find beyond the last place looked at, where a tie mostly ends


class Similarities:
    """Similarities of all gallery rows to some queries, computed when asked for.

    ``margin`` is ``(Q,)``: similarities that differ by no more are ties, as in ``retrieval_ranks``.

    Args:
        queries: ``(Q, E)``.
        gallery: ``(G, E)``.
        similarity: ``cosine`` or ``dot``.

    Raises:
        ValueError: If a vector is invalid.
    """

    def __init__(self, queries: Embeddings, gallery: Embeddings, similarity: Similarity = "cosine") -> None:
        self._queries = checked_embeds("queries", queries, similarity)
        self._gallery = checked_embeds("gallery", gallery, similarity)
        longest = np.linalg.norm(self._gallery, axis=1).max()
        self.margin = TIE_TOLERANCE * np.linalg.norm(self._queries, axis=1).astype(np.float64) * longest

    def rows(self, queries: np.ndarray) -> np.ndarray:
        """Return ``(q, G)`` float32 for the queries of these numbers."""
        similarities: np.ndarray = self._queries[queries] @ self._gallery.T
        return similarities


@dataclass(frozen=True)
class TiedPlaces:
    """The first k places of q queries, and what ties there.

    Args:
        rows: ``(q, m)`` gallery rows, the most similar first.
        groups: ``(q, m)``; places with one number tie.
        k: Places looked at.
        num_before: ``(q,)`` places before the group of place k.
        open_queries: ``(o,)`` queries whose group at place k goes on beyond what was found.
        members: ``(o, G)`` bool, all of that group.
    """

    rows: np.ndarray
    groups: np.ndarray
    k: int
    num_before: np.ndarray
    open_queries: np.ndarray
    members: np.ndarray

    def worst_first(self, gains: np.ndarray) -> np.ndarray:
        """Return the gains of the first k places ``(q, k)``, of all gains ``(q, G)``."""
        found = np.take_along_axis(gains, self.rows, axis=1)
        order = np.lexsort((found, self.groups), axis=1)[:, : self.k]
        placed: np.ndarray = np.take_along_axis(found, order, axis=1)
        for query, is_member in zip(self.open_queries, self.members, strict=True):
            num_before = self.num_before[query]
            placed[query, num_before:] = np.sort(gains[query, is_member])[: self.k - num_before]
        return placed


@dataclass(frozen=True, kw_only=True)
class TiedRanking:
    """What was found for all queries, and what is needed to see the ties in it.

    Args:
        found: From :func:`top_k`, with the same keys.
        query_keys: ``(Q,)``; gallery rows with the key of the query are not there for it.
        gallery_keys: ``(G,)``.
        similarities: By which ``found`` was found; None takes the items in the order they were found in.
    """

    found: TopK
    query_keys: Sequence[Hashable] | np.ndarray | None = None
    gallery_keys: Sequence[Hashable] | np.ndarray | None = None
    similarities: Similarities | None = None

    def blocks(self, k: int, num_gallery: int) -> Iterator[tuple[slice, np.ndarray, TiedPlaces]]:
        """Yield the queries of a block, what is there for them ``(q, G)``, and their first k places."""
        num_queries = len(self.found.rows)
        codes = key_codes(self.query_keys, self.gallery_keys, num_queries, num_gallery)
        size = max(1, _BLOCK_ELEMENTS // num_gallery)
        for start in range(0, num_queries, size):
            inside = slice(start, min(start + size, num_queries))
            is_there = np.ones((inside.stop - start, num_gallery), dtype=bool)
            if codes is not None:
                is_there = codes[0][inside, None] != codes[1]
            yield inside, is_there, tied_places(self.found, inside, k, is_there, self.similarities)


def tied_places(
    found: TopK, inside: slice, k: int, is_there: np.ndarray, similarities: Similarities | None
) -> TiedPlaces:
    """Find the ties among the first k places.

    Within a group no similarity is more than the margin below the first. Groups do not chain, or a dense
    gallery would be one.

    Args:
        found: Of all queries.
        inside: Queries of the block.
        k: Places looked at.
        is_there: ``(q, G)``; what is not there is no answer.
        similarities: Of all queries; None leaves the places as they were found.
    """
    if similarities is None:
        rows = found.rows[inside, :k]
        places = np.broadcast_to(np.arange(k), rows.shape)
        nobody = np.zeros((0, is_there.shape[1]), dtype=bool)
        return TiedPlaces(rows, places, k, np.full(len(rows), k - 1), np.arange(0), nobody)
    rows, values = found.rows[inside], found.similarities[inside].astype(np.float64)
    margin = similarities.margin[inside]
    groups = _groups(values, margin)
    num_before = (groups < groups[:, k - 1 : k]).sum(axis=1)
    goes_on = (groups[:, -1] == groups[:, k - 1]) & (rows[:, -1] != NO_ROW)
    is_open = np.flatnonzero(goes_on & (rows.shape[1] < is_there.sum(axis=1)))
    lowest = values[is_open, num_before[is_open]] - margin[is_open]
    members = similarities.rows(is_open + inside.start) >= lowest[:, None]
    members &= is_there[is_open]
    for is_member, query in zip(members, is_open, strict=True):
        # The product of another block may round otherwise: what was found stays where it was found.
        is_member[rows[query, : num_before[query]]] = False
        is_member[rows[query, num_before[query] :]] = True
    return TiedPlaces(rows, groups, k, num_before, is_open, members)


def _groups(similarities: np.ndarray, margin: np.ndarray) -> np.ndarray:
    """``(q, m)`` numbers of groups, from similarities that do not increase."""
    groups = np.zeros(similarities.shape, dtype=np.int64)
    first = similarities[:, 0]
    for place in range(1, similarities.shape[1]):
        is_lower = similarities[:, place] < first - margin
        groups[:, place] = groups[:, place - 1] + is_lower
        first = np.where(is_lower, similarities[:, place], first)
    return groups
