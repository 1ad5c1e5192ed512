"""Pictures of a retrieval: a gallery of what is found, and a map of the vectors.

Needs the extra ``plots``. Neither names a patient, nor shows the text of a report.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs, EmbeddedVolumes
from radtower.evaluation.pairs.pair_retrieval import TITLES, Protocol, hit_keys
from radtower.evaluation.plots import DISPLAY_WINDOW_HU
from radtower.evaluation.reports.figures import Caption, Picture
from radtower.evaluation.reports.pictures.drawing import png_bytes
from radtower.evaluation.reports.pictures.embedding_map import (
    MAX_PANELS,
    EmbeddingMap,
    Method,
    draw_embedding_map,
    map_embeddings,
)
from radtower.evaluation.reports.pictures.retrieval_gallery import (
    GalleryRow,
    best_answers,
    chosen_rows,
    draw_retrieval_gallery,
)
from radtower.evaluation.reports.wording import NOT_FOR_DIAGNOSIS
from radtower.evaluation.retrieval.images.image_labels import ImageLabels
from radtower.evaluation.retrieval.images.image_retrieval import ImageSearch, find_images

Findings = Mapping[str, np.ndarray]


@dataclass(frozen=True, kw_only=True)
class PictureOptions:
    """What is drawn.

    Args:
        num_queries: Lines of the gallery.
        k: Answers in a line, at most; a small set has fewer.
        protocol: Which scans count as right for a report.
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

    @property
    def note(self) -> str:
        """What a picture says about itself."""
        return f"{'Synthetic phantoms. ' if self.is_phantom else ''}{NOT_FOR_DIAGNOSIS}"


def pair_pictures(
    pairs: EmbeddedPairs,
    load_image: Callable[[str], np.ndarray],
    findings: Findings,
    options: PictureOptions | None = None,
) -> list[Picture]:
    """Draw a gallery, reports to scans, and the map of both.

    Args:
        pairs: Vectors and studies; at least three.
        load_image: Volume id -> ``(Z, Y, X)`` in Hounsfield units, or a 2D image.
        findings: Finding -> ``(N,)`` 1, 0, or -100 where unknown. Empty where nobody knows any.
        options: How many queries and answers, and so on.

    Returns:
        Two pictures with their captions, for :func:`write_pictures`.

    Raises:
        ValueError: If there are fewer than three pairs, or a finding has another length.
    """
    options = options or PictureOptions()
    # The map first: it refuses what is too little, before scans are read.
    found = map_embeddings(pairs.images.numpy(), pairs.reports.numpy(), options.method, options.seed)
    embedding_map = _map(found, findings, options)
    num_pairs = len(pairs.studies)
    rows = best_answers(
        pairs.reports.numpy(),
        pairs.images.numpy(),
        chosen_rows(num_pairs, options.num_queries, options.seed),
        hit_keys(pairs.studies, options.protocol),
        min(options.k, num_pairs),
    )
    right = f"{TITLES[options.protocol]}; similarity: {pairs.similarity}"
    gallery = _gallery(rows, _reader(pairs.studies, load_image), findings, "report", right, options)
    return [gallery, embedding_map]


def image_pictures(
    volumes: EmbeddedVolumes,
    search: ImageSearch,
    labels: ImageLabels,
    load_image: Callable[[str], np.ndarray],
    findings: Findings,
    options: PictureOptions | None = None,
) -> list[Picture]:
    """Draw a gallery, scans to scans of other studies, and the map of the scans.

    Args:
        volumes: Vectors and studies; at least three.
        search: Which of them ask, and which are searched.
        labels: Say which answers are right.
        load_image: See :func:`pair_pictures`.
        findings: Of ``volumes``; see :func:`pair_pictures`.
        options: See :func:`pair_pictures`; ``protocol`` has no say.

    Raises:
        ValueError: If there are fewer than three scans, or no query has an answer with known labels.
    """
    options = options or PictureOptions()
    embedding_map = _map(
        map_embeddings(volumes.images.numpy(), None, options.method, options.seed), findings, options
    )
    known = search.of_known(labels.is_known)
    chosen = chosen_rows(len(known.queries), options.num_queries, options.seed)
    asked = ImageSearch(
        images=known.images, frame=known.frame, queries=known.queries[chosen], gallery=known.gallery
    )
    found = find_images(asked, "study-excluded", min(options.k, len(asked.gallery)), volumes.similarity)
    relevance = labels.relevance(asked.queries, asked.gallery)
    is_right = relevance.block(slice(None))[1][relevance.hits[0]]
    rows = [
        _row(query, places[places >= 0], similarities, is_right[number], asked.gallery)
        for number, (query, places, similarities) in enumerate(
            zip(asked.queries, found.rows, found.similarities, strict=True)
        )
    ]
    right = f"{relevance.hits[0]}, of another study; similarity: {volumes.similarity}"
    gallery = _gallery(rows, _reader(volumes.studies, load_image), findings, "scan", right, options)
    return [gallery, embedding_map]


def _row(
    query: int, places: np.ndarray, similarities: np.ndarray, is_right: np.ndarray, gallery: np.ndarray
) -> GalleryRow:
    return GalleryRow(
        int(query),
        tuple(int(row) for row in gallery[places]),
        tuple(float(value) for value in similarities[: len(places)]),
        tuple(bool(is_right[place]) for place in places),
    )


def _reader(studies: pd.DataFrame, load_image: Callable[[str], np.ndarray]) -> Callable[[int], np.ndarray]:
    ids = list(studies["volume_id"])
    return lambda row: load_image(ids[row])


def _gallery(
    rows: Sequence[GalleryRow],
    load_image: Callable[[int], np.ndarray],
    findings: Findings,
    kind: str,
    right: str,
    options: PictureOptions,
) -> Picture:
    num_rows = 1 + max(max(row.query, *row.answers) for row in rows)
    figure = draw_retrieval_gallery(
        rows, load_image, [_present(findings, row) for row in range(num_rows)], kind, options.note
    )
    k = max(len(row.answers) for row in rows)
    num_found = sum(any(row.are_right) for row in rows)
    low, high = DISPLAY_WINDOW_HU
    labeled = f" Findings: {options.label_source}." if findings else ""
    caption = Caption(
        file=f"gallery-{kind}-to-scan.png",
        title=f"Retrieval gallery, {kind} to scan",
        caption=(
            f"{len(rows)} queries, drawn at random (seed {options.seed}), and the {k} scans that the model "
            f"puts first. Blue: counts as right ({right}). Row numbers count the measured items from 0."
            f"{labeled} Volumes are shown by their middle axial slice, {low:.0f} to {high:.0f} HU, which "
            "need not show the finding."
        ),
        alt=(
            f"{len(rows)} queries with {k} scans each; a right one is among them for {num_found} of "
            f"{len(rows)}."
        ),
    )
    return Picture(caption, png_bytes(figure))


def _present(findings: Findings, row: int) -> list[str] | None:
    """Findings that are there; None where none is known to be or not to be."""
    labels = {key: values[row] for key, values in findings.items()}
    if all(value == MASKED_TARGET for value in labels.values()):
        return None
    return [key for key, value in labels.items() if value == 1]


def _map(found: EmbeddingMap, findings: Findings, options: PictureOptions) -> Picture:
    shown = {key: labels for key, labels in findings.items() if (labels != MASKED_TARGET).any()}
    figure = draw_embedding_map(found, shown, options.note)
    colored = (
        f" Colored by finding, present / known in brackets; labels: {options.label_source}." if shown else ""
    )
    more = f" The first {MAX_PANELS} of {len(shown)} findings." if len(shown) > MAX_PANELS else ""
    kind = "scans" if found.reports is None else "scans and reports"
    items = f"{len(found.images)} scans" + ("" if found.reports is None else " with their reports")
    caption = Caption(
        file=f"map-of-{kind.replace(' ', '-')}.png",
        title=f"Map of {kind}",
        caption=f"n = {items}. {found.describe()}{colored}{more}",
        alt=f"{kind.capitalize()} of {len(found.images)} rows as points in two dimensions.",
    )
    return Picture(caption, png_bytes(figure))
