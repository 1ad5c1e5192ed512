"""Image to image retrieval as the script of CT-CLIP computes it, beside the same without its errors.

``volume_to_volume_new.py`` (github.com/ibrahimethemhamamci/CT-CLIP): every volume asks; the gallery is the
volumes with at least one label, the asking one among them; "MAP@k" is the mean Jaccard index of the labels of
the first k, without any weight of rank; and the list that is averaged is not emptied from one k to the next.
A volume without labels asks, too, and gets 0. Research use only, not for diagnosis.

Axes: N volumes, F findings, L labeled volumes, K numbers of items looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.retrieval.images.relevance import FindingOverlap
from radtower.evaluation.retrieval.ranks import Embeddings, Similarity
from radtower.evaluation.retrieval.top_k import top_k

CT_CLIP_KS = (1, 5, 10, 50)
AS_PRINTED = "CT-CLIP script, as printed"
RESET = "CT-CLIP script, list emptied"
WITHOUT_SELF = "CT-CLIP script, list emptied, self excluded"
WITHOUT_STUDY = "CT-CLIP script, list emptied, study excluded"
VARIANTS = (AS_PRINTED, RESET, WITHOUT_SELF, WITHOUT_STUDY)
_BLOCK_ELEMENTS = 4_000_000  # Jaccard indices in memory at once, 16 MB


@dataclass(frozen=True)
class CTCLIPMap:
    """Mean Jaccard index of the first k of every query.

    Args:
        ks: K numbers.
        per_query: By variant, ``(N, K)``. The mean of a column is the "MAP" at that k.
    """

    ks: tuple[int, ...]
    per_query: dict[str, np.ndarray]

    def means(self, variant: str) -> list[float]:
        """Return K means over queries."""
        return [float(value) for value in self.per_query[variant].mean(axis=0)]


def legacy_ct_clip_map(
    embeds: Embeddings,
    labels: np.ndarray,
    study_ids: Sequence[object] | np.ndarray,
    *,
    ks: Sequence[int] = CT_CLIP_KS,
    similarity: Similarity = "cosine",
) -> CTCLIPMap:
    """Return what the script prints for these vectors, and what it would without its errors.

    As in the script, nothing is done about ties: of equal similarities the lower row comes first, so the
    numbers of vectors that are equal depend on the order of the volumes.

    Args:
        embeds: ``(N, E)``, one per volume.
        labels: ``(N, F)`` of 0 and 1.
        study_ids: ``(N,)``.
        ks: Increasing; the script has 1, 5, 10, 50.
        similarity: The script has the cosine.

    Raises:
        ValueError: If a length differs, a label is neither 0 nor 1, the numbers in ``ks`` do not increase, or
            a query has fewer labeled volumes of other studies than the last of them.
    """
    labeled, studies = _checked(labels, study_ids, ks)
    if len(embeds) != len(labels):
        raise ValueError(f"embeds must have a row per volume, got {len(embeds)} for {len(labels)}.")
    relevance = FindingOverlap(labels, labels[labeled])
    found = {}
    for variant, keys in _excluded_keys(studies).items():
        top = top_k(
            embeds,
            embeds[labeled],
            max(ks),
            similarity=similarity,
            query_keys=keys,
            gallery_keys=None if keys is None else keys[labeled],
        )
        gains = np.empty(top.rows.shape)
        for rows in _blocks(len(labels), len(labeled)):
            gains[rows] = np.take_along_axis(_jaccard(relevance, rows), top.rows[rows], axis=1)
        found[variant] = gains
    return _map_of_gains(found, ks)


def ct_clip_map_bounds(
    labels: np.ndarray, study_ids: Sequence[object] | np.ndarray, *, ks: Sequence[int] = CT_CLIP_KS
) -> tuple[CTCLIPMap, CTCLIPMap]:
    """Return what random vectors get on average, and what the labels themselves would.

    The second, the oracle, ranks by the Jaccard index that it is judged by: no model can be above it.

    Args:
        labels: ``(N, F)`` of 0 and 1.
        study_ids: ``(N,)``.
        ks: As for :func:`legacy_ct_clip_map`, and so are the errors.
    """
    labeled, studies = _checked(labels, study_ids, ks)
    relevance = FindingOverlap(labels, labels[labeled])
    largest = max(ks)
    oracle = {variant: np.empty((len(labels), largest)) for variant in VARIANTS[1:]}
    chance = {variant: np.empty((len(labels), largest)) for variant in VARIANTS[1:]}
    for rows in _blocks(len(labels), len(labeled)):
        gains = _jaccard(relevance, rows)
        for variant, keys in _excluded_keys(studies).items():
            is_there = np.ones(gains.shape, dtype=bool) if keys is None else keys[rows, None] != keys[labeled]
            kept = np.where(is_there, gains, 0.0)
            oracle[variant][rows] = -np.sort(np.partition(-kept, largest - 1, axis=1)[:, :largest], axis=1)
            # Of random vectors, too, each is closest to itself; all other places are the same on average.
            is_first = labels[rows].any(axis=1) & (keys is None)
            total = kept.sum(axis=1) - is_first
            chance[variant][rows] = (total / (is_there.sum(axis=1) - is_first))[:, None]
            chance[variant][rows, 0] = np.where(is_first, 1.0, chance[variant][rows, 0])
    return _map_of_gains(chance, ks), _map_of_gains(oracle, ks)


def decoded_ct_clip_map(printed: Sequence[float]) -> list[float]:
    """Return what the list, emptied for each k, would have given: k_i M_i - (i - 1) M_(i-1), i = 1, 2, ...

    Args:
        printed: M_1, M_2, ... of the script, from its first k on: the first is the share of labeled volumes.
    """
    return [
        place * value - (place - 1) * (printed[place - 2] if place > 1 else 0.0)
        for place, value in enumerate(printed, start=1)
    ]


def num_labeled_of_others(labels: np.ndarray, study_ids: Sequence[object] | np.ndarray) -> int:
    """Return how many labeled volumes of other studies every volume has at least: the largest possible k."""
    is_labeled = (labels == 1).any(axis=1)
    studies = np.unique(np.asarray(study_ids), return_inverse=True)[1]
    return int(is_labeled.sum() - np.bincount(studies[is_labeled], minlength=1).max())


def _map_of_gains(gains: dict[str, np.ndarray], ks: Sequence[int]) -> CTCLIPMap:
    """Average gains ``(N, k)`` of the items in the order found; the printed one averages these averages."""
    per_query = {
        variant: np.cumsum(values, axis=1)[:, np.array(ks) - 1] / np.array(ks)
        for variant, values in gains.items()
    }
    printed = np.cumsum(per_query[RESET], axis=1) / np.arange(1, len(ks) + 1)
    return CTCLIPMap(tuple(ks), {AS_PRINTED: printed, **per_query})


def _jaccard(relevance: FindingOverlap, rows: slice) -> np.ndarray:
    return relevance.block(rows)[0].astype(np.float64)


def _excluded_keys(studies: np.ndarray) -> dict[str, np.ndarray | None]:
    return {RESET: None, WITHOUT_SELF: np.arange(len(studies)), WITHOUT_STUDY: studies}


def _blocks(num_queries: int, num_gallery: int) -> list[slice]:
    size = max(1, _BLOCK_ELEMENTS // num_gallery)
    return [slice(start, start + size) for start in range(0, num_queries, size)]


def _checked(
    labels: np.ndarray, study_ids: Sequence[object] | np.ndarray, ks: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Rows of the labeled volumes, and numbers of the studies."""
    if labels.ndim != 2 or len(labels) != len(study_ids):
        raise ValueError(
            f"labels must be (N, F) with one study id per row, got shape {labels.shape} and "
            f"{len(study_ids)} study ids."
        )
    if not len(ks) or min(ks) < 1 or list(ks) != sorted(set(ks)):
        raise ValueError(f"ks must increase from 1 or more, got {list(ks)}. The script has {CT_CLIP_KS}.")
    labeled = np.flatnonzero((labels == 1).any(axis=1))
    studies = np.unique(np.asarray(study_ids), return_inverse=True)[1]
    num_other = num_labeled_of_others(labels, studies)
    if num_other < max(ks):
        raise ValueError(
            f"every volume must have at least {max(ks)} labeled volumes of other studies, the largest k, got "
            f"{num_other}. Name smaller ones."
        )
    return labeled, studies
