"""Ranks where a study is one query and one item, however many reconstructions it has.

Axes: N volumes, S studies, E embedding.
"""

from collections.abc import Hashable, Sequence

import numpy as np

from radtower.evaluation.retrieval.ranks import Embeddings, RetrievalOptions, checked_embeds
from radtower.evaluation.retrieval.score_ranks import TIE_TOLERANCE, ranks_of_block

_BLOCK_ELEMENTS = 8_000_000  # similarities in memory at once, 32 MB


def first_of_each(keys: Sequence[Hashable] | np.ndarray) -> np.ndarray:
    """Return the first row with each key, ascending."""
    rows: dict[Hashable, int] = {}
    for row, key in enumerate(keys):
        rows.setdefault(key, row)
    return np.array(list(rows.values()), dtype=np.int64)


def study_level_ranks(
    image_embeds: Embeddings,
    report_embeds: Embeddings,
    study_ids: Sequence[Hashable] | np.ndarray,
    options: RetrievalOptions | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Return the ranks of image to report and of report to image.

    A study and a report are as similar as the best reconstruction of the study and the report: this is the
    same in both directions, and a study with many reconstructions takes one place.

    Args:
        image_embeds: ``(N, E)``.
        report_embeds: ``(N, E)``; of a study the first one counts, since its volumes share their report.
        study_ids: ``(N,)``.
        options: Similarity and ties; None for the usual.

    Returns:
        Two ``(S,)`` float64, in the order of ``first_of_each(study_ids)``.

    Raises:
        ValueError: If the lengths differ, or a shape or a value is invalid.
    """
    if not len(image_embeds) == len(report_embeds) == len(study_ids):
        raise ValueError(
            f"image_embeds, report_embeds and study_ids must pair up row by row, got {len(image_embeds)}, "
            f"{len(report_embeds)} and {len(study_ids)}."
        )
    options = options or RetrievalOptions()
    first = first_of_each(study_ids)
    numbers = {study_ids[row]: number for number, row in enumerate(first)}
    order = np.argsort([numbers[key] for key in study_ids], kind="stable")
    sizes = np.bincount([numbers[key] for key in study_ids])
    images = checked_embeds("image_embeds", image_embeds, options.similarity)[order]
    reports = checked_embeds("report_embeds", report_embeds, options.similarity)[first]
    volumes, singles = np.cumsum(sizes) - sizes, np.arange(len(first))
    return (
        _ranks_of_groups(images, volumes, reports, singles, options),
        _ranks_of_groups(reports, singles, images, volumes, options),
    )


def _ranks_of_groups(
    queries: np.ndarray,
    query_starts: np.ndarray,
    gallery: np.ndarray,
    gallery_starts: np.ndarray,
    options: RetrievalOptions,
) -> np.ndarray:
    """Rank group i of the gallery for group i of the queries; groups begin at the starts."""
    num_groups = len(query_starts)
    norms = np.maximum.reduceat(np.linalg.norm(queries, axis=1), query_starts)
    margin = TIE_TOLERANCE * norms * np.linalg.norm(gallery, axis=1).max()
    ends = np.append(query_starts, len(queries))
    ranks = np.empty(num_groups)
    size = max(1, _BLOCK_ELEMENTS // len(gallery) * num_groups // len(queries))
    for start in range(0, num_groups, size):
        groups = np.arange(start, min(start + size, num_groups))
        first, last = ends[start], ends[groups[-1] + 1]
        scores = np.maximum.reduceat(queries[first:last] @ gallery.T, gallery_starts, axis=1)
        scores = np.maximum.reduceat(scores, query_starts[groups] - first, axis=0)
        ranks[groups] = ranks_of_block(scores, groups - start, groups, margin[groups], options.ties)
    return ranks
