"""Vectors of a tower -> retrieval of pairs and of images, as a :class:`RetrievalPlan` asks.

Axes: N volumes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch

from radtower.data.manifest import Manifest
from radtower.evaluation.pairs.embedded_pairs import (
    EmbeddedPairs,
    EmbeddedVolumes,
    add_reports,
    embed_pairs,
    embed_volumes,
)
from radtower.evaluation.pairs.image_tower import ImageEncoder
from radtower.evaluation.pairs.pair_retrieval import PAIRING, measure_pairs
from radtower.evaluation.pairs.retrieval_plan import RetrievalPlan
from radtower.evaluation.results import Provenance
from radtower.evaluation.retrieval.images.image_labels import FindingLabels, ImageLabels
from radtower.evaluation.retrieval.images.image_retrieval import (
    ImageSearch,
    check_image_search,
    check_legacy_ct_clip,
    measure_images,
    measure_legacy_ct_clip,
)
from radtower.evaluation.retrieval.query_outcomes import MeasuredQueries, joined
from radtower.evaluation.retrieval.ranks import RetrievalOptions, check_ks
from radtower.modeling.modeling_medclip import MedCLIPModel


@dataclass(frozen=True, kw_only=True)
class RetrievalData:
    """Volumes of a manifest, how to read them, and what is on them.

    Args:
        manifest: The volumes that ask, and those that are searched.
        split: Of those that ask.
        galleries: Splits where images are searched; none is ``split``.
        name: Of the data, in the results.
        read_labels: Labels of the volumes of a manifest, for image to image.
    """

    manifest: Manifest
    split: str
    galleries: tuple[str, ...]
    name: str
    read_labels: Callable[[Manifest], ImageLabels]


@dataclass(frozen=True)
class RetrievalVectors:
    """What was embedded.

    Args:
        pairs: Scans and reports of the split that asks; None if pairs are not measured.
        volumes: Scans of all splits; None if images are not measured.
        failures: Reason by volume id, of those that are left out somewhere.
    """

    pairs: EmbeddedPairs | None
    volumes: EmbeddedVolumes | None
    failures: dict[str, str]


def check_image_data(plan: RetrievalPlan, data: RetrievalData) -> None:
    """Refuse labels and numbers of images that do not fit the plan; ask before the vectors are made.

    Raises:
        KeyError: If the labels are not there.
        ValueError: If they are invalid, or there are too few images.
    """
    if "images" not in plan.tasks:
        return
    labels = data.read_labels(data.manifest)
    volumes = EmbeddedVolumes(torch.zeros(len(data.manifest), 0), data.manifest.frame, "cosine", {})
    search = image_search(volumes, data.split, data.galleries)
    if plan.measures_images:
        check_image_search(search, labels, plan.exclusions, plan.ks or plan.image_ks[:1])
    if plan.is_legacy:
        assert isinstance(labels, FindingLabels)  # the plan refuses others
        check_legacy_ct_clip(search, labels)


def embed_for_retrieval(
    tower: ImageEncoder,
    plan: RetrievalPlan,
    data: RetrievalData,
    load_scan: Callable[[str], torch.Tensor],
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> RetrievalVectors:
    """Embed what the plan needs, every scan once.

    Args:
        tower: A dual tower, where there are pairs.
        plan: What to measure.
        data: The volumes.
        load_scan: Volume id -> ``pixel_values``.
        batch_size: Scans at a time.
        on_progress: Called with the number of volumes done.

    Raises:
        ValueError: If nothing can be read.
    """
    arguments = (load_scan, batch_size, on_progress)
    if "images" not in plan.tasks:
        assert isinstance(tower, MedCLIPModel)
        pairs = embed_pairs(tower, data.manifest.frame, *arguments)
        return RetrievalVectors(pairs, None, pairs.failures)
    volumes = embed_volumes(tower, data.manifest.frame, *arguments)
    if "pairs" not in plan.tasks:
        return RetrievalVectors(None, volumes, volumes.failures)
    assert isinstance(tower, MedCLIPModel)
    asking_rows = np.flatnonzero(volumes.studies["split"] == data.split)
    asking = EmbeddedVolumes(
        volumes.images[asking_rows],
        volumes.studies.iloc[asking_rows].reset_index(drop=True),
        volumes.similarity,
        volumes.failures,
    )
    pairs = add_reports(tower, asking)
    return RetrievalVectors(pairs, volumes, pairs.failures)


def image_search(volumes: EmbeddedVolumes, split: str, galleries: Sequence[str] = ()) -> ImageSearch:
    """Let the volumes of one split ask, and search those of the others, or the same.

    Raises:
        ValueError: If none of them could be read.
    """
    splits = volumes.studies["split"]
    queries = np.flatnonzero(splits == split)
    gallery = np.flatnonzero(splits.isin(tuple(galleries) or (split,)))
    if not len(queries) or not len(gallery):
        raise ValueError(
            f"queries and gallery must have readable scans, got {len(queries)} and {len(gallery)}. "
            "See why the others could not be read."
        )
    return ImageSearch(images=volumes.images, frame=volumes.studies, queries=queries, gallery=gallery)


def measure_retrieval_tasks(
    plan: RetrievalPlan, data: RetrievalData, vectors: RetrievalVectors, options: RetrievalOptions
) -> MeasuredQueries:
    """Measure what the plan asks for; what there is too little data for is named in ``not_measured``.

    Raises:
        ValueError: If there is too little for anything, or labels do not fit.
    """
    parts = []
    if vectors.pairs is not None:
        parts.append(_measure_pairs(vectors.pairs, plan, data.name, options))
    if vectors.volumes is not None:
        search = image_search(vectors.volumes, data.split, data.galleries)
        labels = data.read_labels(Manifest(vectors.volumes.studies))
        options = replace(options, similarity=vectors.volumes.similarity)
        parts.append(_measure_images(search, labels, plan, data.name, options))
    measures = joined(parts)
    if not vectors.failures:
        return measures
    left_out = f"{len(vectors.failures)} of {len(data.manifest)} volumes: they could not be used"
    return replace(measures, not_measured=(*measures.not_measured, left_out))


def _measure_pairs(
    pairs: EmbeddedPairs, plan: RetrievalPlan, dataset: str, options: RetrievalOptions
) -> MeasuredQueries:
    num_pairs = len(pairs.studies)
    possible = [k for k in plan.pair_ks if k < num_pairs]
    check_ks(possible or plan.pair_ks, num_pairs)
    provenance = Provenance(dataset=dataset, class_set="none", label_source=PAIRING)
    measures = measure_pairs(pairs, provenance, plan.pair_protocols, possible, options)
    too_large = tuple(f"recall@{k}: only {num_pairs} pairs" for k in plan.pair_ks if k not in possible)
    return replace(measures, not_measured=(*too_large, *measures.not_measured))


def _measure_images(
    search: ImageSearch, labels: ImageLabels, plan: RetrievalPlan, dataset: str, options: RetrievalOptions
) -> MeasuredQueries:
    parts = []
    if plan.measures_images:
        parts.append(
            measure_images(
                search, labels, dataset, exclusions=plan.exclusions, ks=plan.image_ks, options=options
            )
        )
    if plan.is_legacy:
        assert isinstance(labels, FindingLabels)  # the plan refuses others
        parts.append(measure_legacy_ct_clip(search, labels, dataset, options))
    return joined(parts)
