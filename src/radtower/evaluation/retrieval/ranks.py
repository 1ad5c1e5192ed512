"""Retrieval between two sets of embeddings: ranks of the right answer, recall@k, median rank, MRR.

The similarity matrix is computed in blocks of queries and never held whole.
Axes: Q queries, G gallery, E embedding, R resamples.
"""

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import torch

from radtower.evaluation.bootstrap import Interval, count_bootstrap, percentile_interval
from radtower.evaluation.results import Direction, MetricResult, Provenance, measured
from radtower.evaluation.retrieval.chance import chance_levels
from radtower.evaluation.retrieval.score_ranks import (
    TIE_TOLERANCE,
    Ties,
    flatten_positives,
    rank_metric_names,
    rank_metrics,
    ranks_of_block,
)

Similarity = Literal["cosine", "dot"]
Embeddings = np.ndarray | torch.Tensor
_BLOCK_ELEMENTS = 8_000_000  # similarities in memory at once, 32 MB
_NOTE = "queries resampled, gallery fixed"


@dataclass(frozen=True, kw_only=True)
class RetrievalOptions:
    """How ``measure_retrieval`` compares and resamples; see ``retrieval_ranks`` for the first two."""

    similarity: Similarity = "cosine"
    ties: Ties = "pessimistic"
    num_resamples: int = 2000
    seed: int = 0


def positives_by_key(
    query_keys: Sequence[Hashable] | np.ndarray, gallery_keys: Sequence[Hashable] | np.ndarray
) -> list[np.ndarray]:
    """Return for each query the gallery rows with the same key.

    Keys decide what counts as a hit: the row number (exact row), the study (a sibling reconstruction counts),
    or the hash of the report (identical reports count).

    Raises:
        ValueError: If a query has no row in the gallery.
    """
    rows: dict[Hashable, list[int]] = defaultdict(list)
    for row, key in enumerate(gallery_keys):
        rows[key].append(row)
    missing = [position for position, key in enumerate(query_keys) if key not in rows]
    if missing:
        raise ValueError(
            f"every query must have its key in the gallery, got {len(missing)} without, first at position "
            f"{missing[0]}. Leave these queries out, and say so."
        )
    return [np.array(rows[key]) for key in query_keys]


def retrieval_ranks(
    query_embeds: Embeddings,
    gallery_embeds: Embeddings,
    positives: Sequence[np.ndarray | Sequence[int] | int] | np.ndarray,
    *,
    similarity: Similarity = "cosine",
    ties: Ties = "pessimistic",
) -> np.ndarray:
    """Return the rank of the best right answer of each query, 1 for the first place.

    Other right answers never push it back. A wrong item that ties with it stands before it (``pessimistic``)
    or counts half (``average``): a collapsed model, all embeddings equal, is never credited.

    Args:
        query_embeds: ``(Q, E)``, normalized or not.
        gallery_embeds: ``(G, E)``.
        positives: For each query the gallery row or rows that are right.
        similarity: ``cosine`` normalizes here; ``dot`` takes the vectors as they are.
        ties: Who wins a tie.

    Returns:
        ``(Q,)`` float64.

    Raises:
        ValueError: If a shape, a value, an option or a positive is invalid.
    """
    for name, value, kinds in (("similarity", similarity, Similarity), ("ties", ties, Ties)):
        if value not in get_args(kinds):
            raise ValueError(f"{name} must be one of {', '.join(get_args(kinds))}, got {value!r}.")
    queries = checked_embeds("query_embeds", query_embeds, similarity)
    gallery = checked_embeds("gallery_embeds", gallery_embeds, similarity)
    if queries.shape[1] != gallery.shape[1]:
        raise ValueError(
            f"query_embeds and gallery_embeds must have the same width, got {queries.shape[1]} and "
            f"{gallery.shape[1]}. Project both to the joint space."
        )
    rows, columns = flatten_positives(positives, len(queries), len(gallery))
    ranks = np.empty(len(queries))
    block = max(1, _BLOCK_ELEMENTS // len(gallery))
    margin = TIE_TOLERANCE * np.linalg.norm(queries, axis=1) * np.linalg.norm(gallery, axis=1).max()
    for start in range(0, len(queries), block):
        stop = min(start + block, len(queries))
        inside = slice(*np.searchsorted(rows, (start, stop)))
        scores = queries[start:stop] @ gallery.T
        ranks[start:stop] = ranks_of_block(
            scores, rows[inside] - start, columns[inside], margin[start:stop], ties
        )
    return ranks


def measure_retrieval(
    image_embeds: Embeddings,
    report_embeds: Embeddings,
    patient_ids: Sequence[object] | np.ndarray,
    provenance: Provenance,
    *,
    keys: Sequence[Hashable] | np.ndarray | None = None,
    ks: Sequence[int] = (1, 5, 10),
    options: RetrievalOptions = RetrievalOptions(),
) -> list[MetricResult]:
    """Measure both directions on paired embeddings: recall@k, median rank and MRR with intervals and chance.

    The intervals resample the patients of the queries; the gallery stays as it is.

    Args:
        image_embeds: ``(N, E)``; row i is the scan of report i.
        report_embeds: ``(N, E)``.
        patient_ids: ``(N,)``.
        provenance: Data set, class set, label source; ``protocol`` names the kind of keys.
        keys: ``(N,)``; rows with equal keys are right answers of each other (hash of the report: identical
            reports count). None is the exact row.
        ks: Numbers of items looked at, each below N: recall@N is 1 by construction.
        options: Similarity, ties and resampling.

    Chance takes every row of the gallery as an item of its own; for copies see :func:`chance_with_copies`.

    Raises:
        ValueError: If the lengths differ or a k is out of range.
    """
    num_rows = len(image_embeds)
    if not num_rows == len(report_embeds) == len(patient_ids) == (num_rows if keys is None else len(keys)):
        raise ValueError(
            f"image_embeds, report_embeds, patient_ids and keys must pair up row by row, got {num_rows}, "
            f"{len(report_embeds)}, {len(patient_ids)} and {'none' if keys is None else len(keys)}."
        )
    check_ks(ks, num_rows)
    row_keys = np.arange(num_rows) if keys is None else keys
    positives = positives_by_key(row_keys, row_keys)
    chance = chance_levels([len(rows) for rows in positives], num_rows, ks)
    results = []
    directions: list[tuple[Direction, Embeddings, Embeddings]] = [
        ("image_to_report", image_embeds, report_embeds),
        ("report_to_image", report_embeds, image_embeds),
    ]
    for direction, queries, gallery in directions:
        ranks = retrieval_ranks(queries, gallery, positives, similarity=options.similarity, ties=options.ties)
        for metric, (value, interval) in summarize_ranks(ranks, patient_ids, ks, options).items():
            results.append(
                measured(
                    metric,
                    value,
                    interval,
                    provenance,
                    n=num_rows,
                    direction=direction,
                    note=_NOTE,
                    chance=chance[metric],
                )
            )
    return results


def check_ks(ks: Sequence[int], num_rows: int) -> None:
    """Refuse numbers of items looked at that say nothing; ask before the vectors are made.

    Raises:
        ValueError: If there is none, or one is below 1 or not below the number of rows, or there is one row.
    """
    if num_rows < 2:
        raise ValueError(
            f"retrieval must have at least two items to choose from, got {num_rows}. Choose a larger split."
        )
    invalid = [k for k in ks if not 1 <= k < num_rows]
    if invalid or not len(ks):
        raise ValueError(
            f"ks must be between 1 and {num_rows - 1}, got {invalid}. Recall@{num_rows} of {num_rows} rows "
            "is always 1: name smaller ones."
        )


def summarize_ranks(
    ranks: np.ndarray,
    patient_ids: Sequence[object] | np.ndarray,
    ks: Sequence[int],
    options: RetrievalOptions = RetrievalOptions(),
) -> dict[str, tuple[float, Interval]]:
    """Return recall@k, median rank and mean reciprocal rank of ``(Q,)`` ranks, each with its interval."""

    def all_metrics(counts: np.ndarray) -> np.ndarray:
        return rank_metrics(ranks, counts, ks)

    values = all_metrics(np.ones((1, len(ranks)), dtype=np.int64))[0]
    resampled = count_bootstrap(all_metrics, patient_ids, options.num_resamples, options.seed)
    return {
        name: (float(values[column]), percentile_interval(resampled[:, column], patient_ids))
        for column, name in enumerate(rank_metric_names(ks))
    }


def checked_embeds(name: str, embeds: Embeddings, similarity: Similarity) -> np.ndarray:
    """Return ``(N, E)`` float32, normalized for the cosine.

    Raises:
        ValueError: If the shape is another, or a value not finite, or a vector zero for the cosine.
    """
    raw = embeds.detach().to("cpu", torch.float32).numpy() if isinstance(embeds, torch.Tensor) else embeds
    values = np.asarray(raw, dtype=np.float32)
    if values.ndim != 2 or not len(values):
        raise ValueError(f"{name} must be (N, E) with N > 0, got shape {values.shape}. Stack the embeddings.")
    num_invalid = int((~np.isfinite(values)).any(axis=1).sum())
    if num_invalid:
        raise ValueError(
            f"{name} must be finite, got {num_invalid} rows with NaN or infinity. Find their cause."
        )
    if similarity == "dot":
        return values
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError(
            f"{name} must not hold zero vectors, got {int((norms == 0).sum())}. They have no direction."
        )
    return values / norms
