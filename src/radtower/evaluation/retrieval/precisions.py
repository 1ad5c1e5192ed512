"""Average precision and precision of the first items of each query, beside those of a random order.

Axes: q queries, k places, K numbers of items looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class PerQuery:
    """One number per query, and what a random order of the gallery gives on average.

    Args:
        values: ``(Q,)``; NaN where the gallery has nothing right to find.
        chance: ``(Q,)``, likewise.
    """

    values: np.ndarray
    chance: np.ndarray


def average_precision_at_random(num_right: int, num_there: int) -> float:
    """Return the average precision of a random order, on average over all orders.

    It is above the share of right items, most of all where they are few: the first of them may come early.

    Args:
        num_right: Right items, at least 1.
        num_there: All items.
    """
    places = np.arange(1, num_there + 1)
    share = num_right / num_there
    both = share * (num_right - 1) / max(num_there - 1, 1)
    return float(((share + (places - 1) * both) / places).sum() / num_right)


def precisions_at(
    is_right: np.ndarray, num_right: np.ndarray, num_there: np.ndarray, ks: Sequence[int]
) -> dict[str, PerQuery]:
    """Return ``map_at_k`` and ``precision_at_k`` for every k.

    Average precision is the precision at each right item among the first k, summed, over min(k, right items
    in the gallery).

    Args:
        is_right: ``(q, k)`` bool, of the first places, for the largest of ``ks``.
        num_right: ``(q,)`` right items in the gallery.
        num_there: ``(q,)`` items in the gallery.
        ks: K numbers of items looked at.
    """
    places = np.arange(1, is_right.shape[1] + 1)
    num_so_far = np.cumsum(is_right, axis=1)
    summed = np.cumsum(is_right * num_so_far / places, axis=1)
    share = num_right / num_there
    # Of two places of a random order, how likely both are right.
    both = share * np.maximum(num_right - 1, 0) / np.maximum(num_there - 1, 1)
    metrics = {}
    for k in ks:
        most = np.where(num_right > 0, np.minimum(num_right, k), np.nan)
        # Expected sum over the first k places of P(right) (1 + right ones before it) / place.
        at_random = sum((share + (place - 1) * both) / place for place in range(1, k + 1))
        metrics[f"map_at_{k}"] = PerQuery(summed[:, k - 1] / most, at_random / most)
        metrics[f"precision_at_{k}"] = PerQuery(num_so_far[:, k - 1] / k, share)
    return metrics
