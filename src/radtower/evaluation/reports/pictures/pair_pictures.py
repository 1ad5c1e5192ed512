"""Pictures of embedded scans and reports: a gallery of what is found, and a map.

Needs the extra ``plots``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
from radtower.evaluation.pairs.pair_retrieval import TITLES, Protocol, hit_keys
from radtower.evaluation.plots import DISPLAY_WINDOW_HU
from radtower.evaluation.reports.figures import Caption, Picture
from radtower.evaluation.reports.pictures.drawing import png_bytes
from radtower.evaluation.reports.pictures.embedding_map import (
    MAX_PANELS,
    Method,
    draw_embedding_map,
    map_embeddings,
)
from radtower.evaluation.reports.pictures.retrieval_gallery import (
    best_answers,
    chosen_rows,
    draw_retrieval_gallery,
)
from radtower.evaluation.reports.wording import NOT_FOR_DIAGNOSIS


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is drawn.

    Args:
        num_queries: Lines of the gallery.
        k: Answers in a line, at most; a small set has fewer.
        protocol: Which answers count as right.
        method: Of the map.
        seed: Of the choice of queries, and of t-SNE.
        label_source: Who says which findings are there.
        is_phantom: Whether the scans are synthetic, which the pictures then say.
    """

    num_queries: int = 5
    k: int = 5
    protocol: Protocol = "exact-row"
    method: Method = "pca"
    seed: int = 0
    label_source: str = "columns of the manifest"
    is_phantom: bool = False


def pair_pictures(
    pairs: EmbeddedPairs,
    load_image: Callable[[str], np.ndarray],
    findings: Mapping[str, np.ndarray],
    options: PictureOptions | None = None,
) -> list[Picture]:
    """Draw the gallery, reports to scans, and the map.

    Args:
        pairs: Vectors and studies; at least three.
        load_image: Volume id -> ``(Z, Y, X)`` in Hounsfield units, or a 2D image.
        findings: Finding -> ``(N,)`` 1, 0, or -100 where unknown. May be empty.
        options: How many queries and answers, and so on.

    Returns:
        Two pictures with their captions, for :func:`write_pictures`.

    Raises:
        ValueError: If there are fewer than three pairs, or a finding has another length.
    """
    options = options or PictureOptions()
    note = f"{'Synthetic phantoms. ' if options.is_phantom else ''}{NOT_FOR_DIAGNOSIS}"
    # The map first: it refuses what is too little, before scans are read.
    embedding_map = _map(pairs, findings, options, note)
    return [_gallery(pairs, load_image, findings, options, note), embedding_map]


def _gallery(
    pairs: EmbeddedPairs,
    load_image: Callable[[str], np.ndarray],
    findings: Mapping[str, np.ndarray],
    options: PictureOptions,
    note: str,
) -> Picture:
    num_pairs = len(pairs.studies)
    chosen = chosen_rows(num_pairs, options.num_queries, options.seed)
    k = min(options.k, num_pairs)
    keys = hit_keys(pairs.studies, options.protocol)
    rows = best_answers(pairs.reports.numpy(), pairs.images.numpy(), chosen, keys, k)
    names = [[key for key, labels in findings.items() if labels[row] == 1] for row in range(num_pairs)]
    ids = list(pairs.studies["volume_id"])
    figure = draw_retrieval_gallery(rows, lambda row: load_image(ids[row]), names, "report", note)
    num_found = sum(any(row.are_right) for row in rows)
    low, high = DISPLAY_WINDOW_HU
    caption = Caption(
        file="gallery.png",
        title="Retrieval gallery, report to scan",
        caption=(
            f"{len(rows)} of {num_pairs} reports, drawn at random (seed {options.seed}), and the {k} scans "
            f"that the model puts first. Blue: counts as right ({TITLES[options.protocol]}). Numbers are "
            f"similarities ({pairs.similarity}); row numbers count the measured pairs from 0. Findings: "
            f"{options.label_source}. Volumes are shown by their middle axial slice, {low:.0f} to "
            f"{high:.0f} HU, which need not show the finding."
        ),
        alt=(
            f"{len(rows)} reports with {k} scans each; a right scan is among them for {num_found} of "
            f"{len(rows)}."
        ),
    )
    return Picture(caption, png_bytes(figure))


def _map(
    pairs: EmbeddedPairs, findings: Mapping[str, np.ndarray], options: PictureOptions, note: str
) -> Picture:
    found = map_embeddings(pairs.images.numpy(), pairs.reports.numpy(), options.method, options.seed)
    shown = {key: labels for key, labels in findings.items() if (labels != MASKED_TARGET).any()}
    figure = draw_embedding_map(found, shown, note)
    colored = (
        f" Colored by finding, present / known in brackets; labels: {options.label_source}." if shown else ""
    )
    more = f" The first {MAX_PANELS} of {len(shown)} findings." if len(shown) > MAX_PANELS else ""
    caption = Caption(
        file="embedding-map.png",
        title="Map of scans and reports",
        caption=f"n = {len(pairs.studies)} scans with their reports. {found.describe()}{colored}{more}",
        alt=f"Scans and reports of {len(pairs.studies)} studies as points in two dimensions.",
    )
    return Picture(caption, png_bytes(figure))
