"""What a random ranking would get: the level that a recall, a median rank or an MRR is read against.

Axes: Q queries, G gallery, B groups of copies.
"""

from collections.abc import Hashable, Iterator, Sequence
from itertools import permutations

import numpy as np

from radtower.evaluation.retrieval.score_ranks import Ties

_ROUNDING = 1e-9  # a share that is one half but for rounding is one half
_ALL_ORDERS_UP_TO = 7  # groups: 5,040 orders
_NUM_ORDERS = (200, 2000)
_BLOCKS_ORDERED = 50_000_000  # groups put in order in all, about three seconds


def chance_levels(
    num_positives: Sequence[int] | np.ndarray, num_gallery: int, ks: Sequence[int]
) -> dict[str, float]:
    """Return what all orders of the gallery give on average, by the names of ``summarize_ranks``.

    Where several gallery rows are right, the best of them counts, which lifts the level above k / G. The
    median rank is that of all queries in all orders.

    Args:
        num_positives: ``(Q,)``, right answers of each query, between 1 and G.
        num_gallery: G.
        ks: Numbers of items looked at, between 1 and G.

    Raises:
        ValueError: If there is no query, or a number is out of range.
    """
    counts, num_queries = np.unique(np.asarray(num_positives, dtype=np.int64), return_counts=True)
    for name, values in (("num_positives", counts), ("ks", np.asarray(ks, dtype=np.int64))):
        is_missing = name == "num_positives" and not len(values)
        if is_missing or (values < 1).any() or (values > num_gallery).any():
            raise ValueError(
                f"{name} must be between 1 and the {num_gallery} rows of the gallery, got "
                f"{values.tolist()[:5]}. Count what the queries have."
            )
    reached = sum(
        share * _share_reached(int(count), num_gallery)
        for count, share in zip(counts, num_queries / num_queries.sum(), strict=True)
    )
    assert isinstance(reached, np.ndarray)
    first = [int((reached < 0.5 + shift).sum()) + 1 for shift in (-_ROUNDING, _ROUNDING)]
    return {
        **{f"recall_at_{k}": float(reached[k - 1]) for k in ks},
        "median_rank": sum(first) / 2,
        "mrr": float((np.diff(reached, prepend=0.0) / np.arange(1, num_gallery + 1)).sum()),
    }


def chance_with_copies(
    copies: Sequence[Hashable] | np.ndarray,
    positives: Sequence[np.ndarray],
    ks: Sequence[int],
    ties: Ties = "pessimistic",
) -> dict[str, float]:
    """Return what a gallery with copies gives, where copies tie and so stand together in every order.

    Right answers are copies of each other. The copies that are not right stand before them (``pessimistic``)
    or around them (``average``), as in ``retrieval_ranks``. Without copies this is ``chance_levels``; with
    them it is the mean over random orders of the B groups, which are enough for three digits.

    Args:
        copies: ``(G,)``; equal for rows that are copies, such as the hash of the report.
        positives: For each query the gallery rows that are right.
        ks: Numbers of items looked at, between 1 and G.
        ties: Who wins a tie.

    Raises:
        ValueError: If there is no query, a number is out of range, or the right answers of a query are no
            copies of each other.
    """
    num_positives = np.array([len(rows) for rows in positives])
    exact = chance_levels(num_positives, len(copies), ks)
    numbers: dict[Hashable, int] = {}
    groups = np.array([numbers.setdefault(key, len(numbers)) for key in copies])
    sizes = np.bincount(groups)
    if len(sizes) == len(copies):
        return exact
    apart = sum(len(set(groups[rows])) > 1 for rows in positives)
    if apart:
        raise ValueError(
            f"the right answers of a query must be copies of each other, got {apart} queries with others. "
            "Use chance_levels for a gallery without copies."
        )
    group = groups[[rows[0] for rows in positives]]
    wrong_copies = (sizes[group] - num_positives) * (1.0 if ties == "pessimistic" else 0.5)
    return _of_histogram(_rank_histogram(sizes, group, wrong_copies), ks)


def _rank_histogram(sizes: np.ndarray, group: np.ndarray, wrong_copies: np.ndarray) -> np.ndarray:
    """How often 2 x rank is 0, 1, ... over random orders of the groups: ranks may be halves."""
    places, counts = np.unique(np.column_stack([group, 2 * wrong_copies]), axis=0, return_counts=True)
    group, doubled = places.T.astype(np.int64)
    histogram = np.zeros(2 * sizes.sum() + 1)
    for order in _orders(len(sizes)):
        num_before = np.empty(len(sizes), dtype=np.int64)
        num_before[order] = np.cumsum(sizes[order]) - sizes[order]
        histogram += np.bincount(2 + 2 * num_before[group] + doubled, counts, len(histogram))
    return histogram / histogram.sum()


def _orders(num_groups: int) -> Iterator[np.ndarray]:
    """All orders of a few groups, random ones of many."""
    if num_groups <= _ALL_ORDERS_UP_TO:
        yield from map(np.array, permutations(range(num_groups)))
        return
    rng = np.random.default_rng(0)
    for _ in range(int(np.clip(_BLOCKS_ORDERED // num_groups, *_NUM_ORDERS))):
        yield rng.permutation(num_groups)


def _of_histogram(histogram: np.ndarray, ks: Sequence[int]) -> dict[str, float]:
    """Numbers of ranks of which ``histogram[r]`` is the share with 2 x rank = r."""
    reached = np.cumsum(histogram)
    first = [int((reached < 0.5 + shift).sum()) / 2 for shift in (-_ROUNDING, _ROUNDING)]
    return {
        **{f"recall_at_{k}": float(reached[2 * k]) for k in ks},
        "median_rank": sum(first) / 2,
        "mrr": float((histogram[2:] * 2 / np.arange(2, len(histogram))).sum()),
    }


def _share_reached(num_positives: int, num_gallery: int) -> np.ndarray:
    """``(G,)``: P(the best right answer is among the first 1, 2, ... G)."""
    places = np.arange(num_gallery)
    still_wrong = np.clip(num_gallery - num_positives - places, 0, None) / (num_gallery - places)
    return 1.0 - np.cumprod(still_wrong)
