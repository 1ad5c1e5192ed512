"""What a random ranking would get: the level that a recall, a median rank or an MRR is read against.

Axes: Q queries, G gallery.
"""

from collections.abc import Sequence

import numpy as np

_ROUNDING = 1e-9  # a share that is one half but for rounding is one half


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
        if not len(values) or values.min() < 1 or values.max() > num_gallery:
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


def _share_reached(num_positives: int, num_gallery: int) -> np.ndarray:
    """``(G,)``: P(the best right answer is among the first 1, 2, ... G)."""
    places = np.arange(num_gallery)
    still_wrong = np.clip(num_gallery - num_positives - places, 0, None) / (num_gallery - places)
    return 1.0 - np.cumprod(still_wrong)
