"""What a ranking is worth to each query: average precision, nDCG, precision, mean gain; beside chance.

Axes: Q queries, G gallery, K numbers of items looked at; q queries of a block, k the largest of them.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.retrieval.images.relevance import Relevance
from radtower.evaluation.retrieval.images.tied_places import Similarities, TiedPlaces, TiedRanking
from radtower.evaluation.retrieval.precisions import PerQuery, precisions_at
from radtower.evaluation.retrieval.top_k import NO_ROW, TopK


@dataclass(frozen=True)
class RankedGains:
    """Numbers of all queries.

    Args:
        graded: By metric: ``ndcg_at_k``, gains of the items found over those of the best order, discounted by
            log2(1 + place) (Jarvelin and Kekalainen 2002, with the gain itself); ``mean_gain_at_k``.
        hits: By name of what counts as right, and metric: ``map_at_k``, the precision at each right item
            among the first k, summed, over min(k, right items in the gallery); ``precision_at_k``.
    """

    graded: dict[str, PerQuery]
    hits: dict[str, dict[str, PerQuery]]


def ranked_gains(
    found: TopK,
    relevance: Relevance,
    ks: Sequence[int],
    *,
    query_keys: Sequence[Hashable] | np.ndarray | None = None,
    gallery_keys: Sequence[Hashable] | np.ndarray | None = None,
    similarities: Similarities | None = None,
) -> RankedGains:
    """Return what the first items of every query are worth.

    Args:
        found: From :func:`top_k`, with the same keys, for the largest of ``ks`` or more.
        relevance: Of the gallery to the queries.
        ks: Numbers of items looked at.
        query_keys: ``(Q,)``; gallery rows with the key of the query are not there for it.
        gallery_keys: ``(G,)``.
        similarities: By which ``found`` was found. Of items that tie, those of the smaller gain come first.
            None takes the items in the order they were found in.

    Raises:
        ValueError: If a k is below 1, or more than was found for a query.
    """
    num_found = int((found.rows != NO_ROW).sum(axis=1).min())
    if not len(ks) or min(ks) < 1 or max(ks) > num_found:
        raise ValueError(
            f"ks must be between 1 and {num_found}, the items found for every query, got {list(ks)}. "
            "Name smaller ones."
        )
    num_gallery = relevance.block(slice(0, 1))[0].shape[1]
    ranking = TiedRanking(
        found=found, query_keys=query_keys, gallery_keys=gallery_keys, similarities=similarities
    )
    blocks = []
    for inside, is_there, places in ranking.blocks(max(ks), num_gallery):
        gains, hits = relevance.block(inside)
        blocks.append(_of_block(places, gains, hits, is_there, ks))
    return RankedGains(
        {} if relevance.graded_by is None else _joined([block[0] for block in blocks]),
        {name: _joined([block[1][name] for block in blocks]) for name in relevance.hits},
    )


def _of_block(
    places: TiedPlaces,
    gains: np.ndarray,
    hits: dict[str, np.ndarray],
    is_there: np.ndarray,
    ks: Sequence[int],
) -> tuple[dict[str, PerQuery], dict[str, dict[str, PerQuery]]]:
    num_there = is_there.sum(axis=1)
    gains = np.where(is_there, gains, 0)
    graded = _graded(places.worst_first(gains), gains, num_there, ks)
    by_hit = {}
    for name, is_right in hits.items():
        right = is_right & is_there
        by_hit[name] = precisions_at(places.worst_first(right), right.sum(axis=1), num_there, ks)
    return graded, by_hit


def _graded(
    found: np.ndarray, gains: np.ndarray, num_there: np.ndarray, ks: Sequence[int]
) -> dict[str, PerQuery]:
    """NDCG and mean of gains ``found (q, k)`` among ``gains (q, G)``, which are 0 where excluded."""
    largest = found.shape[1]
    ideal = -np.sort(np.partition(-gains, largest - 1, axis=1)[:, :largest], axis=1)
    discounts = 1 / np.log2(np.arange(2, largest + 2))
    mean_gain = gains.sum(axis=1, dtype=np.float64) / num_there
    of_found, of_ideal = (np.cumsum(x * discounts, axis=1) for x in (found, ideal))
    gained = np.cumsum(found, axis=1, dtype=np.float64)
    metrics = {}
    for k in ks:
        best = np.where(of_ideal[:, k - 1] > 0, of_ideal[:, k - 1], np.nan)
        at_random = mean_gain * discounts[:k].sum()
        metrics[f"ndcg_at_{k}"] = PerQuery(of_found[:, k - 1] / best, at_random / best)
        metrics[f"mean_gain_at_{k}"] = PerQuery(gained[:, k - 1] / k, mean_gain)
    return metrics


def _joined(blocks: list[dict[str, PerQuery]]) -> dict[str, PerQuery]:
    return {
        name: PerQuery(
            np.concatenate([block[name].values for block in blocks]),
            np.concatenate([block[name].chance for block in blocks]),
        )
        for name in blocks[0]
    }
