"""How relevant a gallery item is to a query: overlap of findings or concepts, or the same code.

Axes: Q queries, G gallery, F findings or concepts; q queries of a block.
"""

from collections.abc import Sequence
from typing import Protocol

import numpy as np

SHARES_FINDING, SAME_FINDINGS = "shares a finding", "same findings"
SHARES_CONCEPT, SHARES_HALF = "shares a concept", "shares half of the concepts"
SAME_CODE = "same code"


class Relevance(Protocol):
    """Relevance of all gallery items to some of the queries.

    ``graded_by`` says what the gain is, and is None where it is 0 or 1. ``hits`` names what counts as right.
    """

    graded_by: str | None
    hits: tuple[str, ...]

    def block(self, queries: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """Return gains ``(q, G)`` float32 in [0, 1], and by name of a hit what is right, ``(q, G)`` bool."""
        ...


class FindingOverlap:
    """Jaccard index of the findings; two scans without any finding are alike (1).

    Right is what shares a finding, or has the same findings; for a scan without any, the others without.

    Args:
        query_labels: ``(Q, F)`` of 0 and 1.
        gallery_labels: ``(G, F)``.

    Raises:
        ValueError: If a label is neither 0 nor 1, or the numbers of findings differ.
    """

    graded_by: str | None = "Jaccard index of the findings"
    hits: tuple[str, ...] = (SHARES_FINDING, SAME_FINDINGS)

    def __init__(self, query_labels: np.ndarray, gallery_labels: np.ndarray) -> None:
        if query_labels.shape[1] != gallery_labels.shape[1]:
            raise ValueError(
                "queries and gallery must have labels for the same findings, got "
                f"{query_labels.shape[1]} and {gallery_labels.shape[1]}. Label both with one set."
            )
        self._queries, self._gallery = _of_labels(query_labels), _of_labels(gallery_labels)

    def block(self, queries: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :class:`Relevance`."""
        _, gains = self._queries.overlap(self._gallery, queries)
        gains[(self._queries.sizes[queries, None] == 0) & (self._gallery.sizes == 0)] = 1.0
        return gains, {SHARES_FINDING: gains > 0, SAME_FINDINGS: gains == 1}


class ConceptOverlap:
    """Jaccard index of sets of concepts, such as the CUIs of ROCOv2.

    Right is what shares a concept, or has at least half of those of the query.

    Args:
        query_concepts: Q sets, none of them empty.
        gallery_concepts: G sets, none of them empty.

    Raises:
        ValueError: If a set is empty: nobody knows what is on such an image.
    """

    graded_by: str | None = "Jaccard index of the concepts"
    hits: tuple[str, ...] = (SHARES_CONCEPT, SHARES_HALF)

    def __init__(
        self, query_concepts: Sequence[frozenset[str]], gallery_concepts: Sequence[frozenset[str]]
    ) -> None:
        num_empty = sum(not concepts for concepts in (*query_concepts, *gallery_concepts))
        if num_empty:
            raise ValueError(
                f"every image must have a concept, got {num_empty} without. Leave these out, and say so."
            )
        names = sorted(set().union(*query_concepts, *gallery_concepts))
        columns = {name: number for number, name in enumerate(names)}
        self._queries, self._gallery = (
            _Sets([np.array([columns[name] for name in concepts]) for concepts in sets], len(names))
            for sets in (query_concepts, gallery_concepts)
        )

    def block(self, queries: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :class:`Relevance`."""
        shared, gains = self._queries.overlap(self._gallery, queries)
        half = 2 * shared >= self._queries.sizes[queries, None]
        return gains, {SHARES_CONCEPT: shared > 0, SHARES_HALF: half}


class SameCode:
    """1 for the same code, 0 for another.

    Args:
        query_codes: ``(Q,)``.
        gallery_codes: ``(G,)``.
    """

    graded_by: str | None = None
    hits: tuple[str, ...] = (SAME_CODE,)

    def __init__(
        self, query_codes: Sequence[str] | np.ndarray, gallery_codes: Sequence[str] | np.ndarray
    ) -> None:
        _, numbers = np.unique([*query_codes, *gallery_codes], return_inverse=True)
        self._queries, self._gallery = numbers[: len(query_codes)], numbers[len(query_codes) :]

    def block(self, queries: slice) -> tuple[np.ndarray, dict[str, np.ndarray]]:
        """See :class:`Relevance`."""
        is_same = self._queries[queries, None] == self._gallery
        return is_same.astype(np.float32), {SAME_CODE: is_same}


class _Sets:
    """N sets of column numbers.

    ``sizes`` is ``(N,)``; ``holders`` has, per column, the rows with it.
    """

    def __init__(self, members: list[np.ndarray], num_columns: int) -> None:
        self.members, self.num_columns = members, num_columns
        self.sizes = np.array([len(columns) for columns in members])
        rows, columns = np.repeat(np.arange(len(members)), self.sizes), np.concatenate(members)
        order = np.argsort(columns, kind="stable")
        self.holders = np.split(rows[order], np.searchsorted(columns[order], np.arange(1, num_columns)))

    def overlap(self, gallery: "_Sets", queries: slice) -> tuple[np.ndarray, np.ndarray]:
        """Size of the intersection and Jaccard index, ``(q, G)`` float32 each; 0 for two empty sets."""
        members = self.members[queries]
        shared = np.zeros((len(members), len(gallery.members)), dtype=np.float32)
        for row, columns in enumerate(members):
            for column in columns:
                shared[row, gallery.holders[column]] += 1
        union = self.sizes[queries, None] + gallery.sizes - shared
        return shared, (shared / np.maximum(union, 1)).astype(np.float32)


def _of_labels(labels: np.ndarray) -> _Sets:
    is_invalid = ~np.isin(labels, (0, 1)).all(axis=1)
    if is_invalid.any():
        raise ValueError(
            f"labels must be 0 or 1, got {int(is_invalid.sum())} rows with others, such as -100 for unknown. "
            "Leave these rows out, and say so."
        )
    return _Sets([np.flatnonzero(row) for row in labels], labels.shape[1])
