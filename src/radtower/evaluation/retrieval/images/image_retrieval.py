"""Image to image retrieval: does an image find others that show the same?

Axes: N images, Q queries, G gallery, E embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd

from radtower.evaluation.results import MetricResult, Provenance
from radtower.evaluation.retrieval.images.image_labels import FindingLabels, ImageLabels
from radtower.evaluation.retrieval.images.legacy_ct_clip import (
    AS_PRINTED,
    CT_CLIP_KS,
    VARIANTS,
    ct_clip_map_bounds,
    legacy_ct_clip_map,
    num_labeled_of_others,
)
from radtower.evaluation.retrieval.images.ranked_gains import PerQuery, RankedGains, ranked_gains
from radtower.evaluation.retrieval.images.tied_places import MORE_PLACES, Similarities, TiedRanking
from radtower.evaluation.retrieval.query_outcomes import MeasuredQueries, QueryOutcomes, joined
from radtower.evaluation.retrieval.ranks import Embeddings, RetrievalOptions, Similarity
from radtower.evaluation.retrieval.top_k import TopK, top_k

Exclusion = Literal["self-excluded", "study-excluded", "patient-excluded"]
EXCLUSIONS: tuple[Exclusion, ...] = get_args(Exclusion)
LEGACY_CT_CLIP = "legacy-ct-clip"
LEGACY_MAP, ORACLE = "legacy_ct_clip_map_at_{}", "_oracle_baseline"  # names of metrics
_KEY_COLUMNS: dict[Exclusion, str] = {
    "self-excluded": "volume_id",
    "study-excluded": "study_id",
    "patient-excluded": "patient_id",
}
_NOTHING_RIGHT = "the gallery has nothing right for them"


@dataclass(frozen=True, kw_only=True)
class ImageSearch:
    """Images that ask, and images that are searched; one image can be both.

    Args:
        images: ``(N, E)``.
        frame: N rows of a manifest.
        queries: ``(Q,)`` rows that ask.
        gallery: ``(G,)`` rows that are searched.
    """

    images: Embeddings
    frame: pd.DataFrame
    queries: np.ndarray
    gallery: np.ndarray

    def keys(self, exclusion: Exclusion) -> tuple[np.ndarray, np.ndarray]:
        """Return the keys of queries and gallery; what has the key of the query is excluded."""
        column = self.frame[_KEY_COLUMNS[exclusion]].to_numpy()
        return column[self.queries], column[self.gallery]

    def num_left(self, exclusion: Exclusion) -> np.ndarray:
        """Return how many gallery images each query has, ``(Q,)``."""
        asked, searched = self.keys(exclusion)
        counts = pd.Series(searched).value_counts()
        excluded: np.ndarray = counts.reindex(asked).fillna(0).to_numpy(dtype=np.int64)
        return len(searched) - excluded

    def of_known(self, is_known: np.ndarray) -> "ImageSearch":
        """Return the search among the images whose labels are known.

        Raises:
            ValueError: If no query or no gallery image is left.
        """
        queries, gallery = self.queries[is_known[self.queries]], self.gallery[is_known[self.gallery]]
        if not len(queries) or not len(gallery):
            raise ValueError(
                f"queries and gallery must have images with known labels, got {len(queries)} and "
                f"{len(gallery)}. Label them, or choose another split."
            )
        return ImageSearch(images=self.images, frame=self.frame, queries=queries, gallery=gallery)


def differing_exclusions(search: ImageSearch) -> tuple[Exclusion, ...]:
    """Return the exclusions that differ for this search, without that of the patient."""
    self_left, study_left = (search.num_left(name) for name in EXCLUSIONS[:2])
    return EXCLUSIONS[:1] if np.array_equal(self_left, study_left) else EXCLUSIONS[:2]


def possible_image_ks(search: ImageSearch, exclusion: Exclusion, ks: Sequence[int]) -> list[int]:
    """Return the ks that every query has items for."""
    return [k for k in ks if k <= search.num_left(exclusion).min()]


def measure_images(
    search: ImageSearch,
    labels: ImageLabels,
    dataset: str,
    *,
    exclusions: Sequence[Exclusion] = (),
    ks: Sequence[int] = (1, 5, 10, 50),
    options: RetrievalOptions | None = None,
) -> MeasuredQueries:
    """Measure mAP@k and precision@k of what counts as right, nDCG@k and the mean gain, and more by kind.

    Images whose labels are not known neither ask nor are searched; notes say how many. Of images that tie,
    those of the smaller gain come first, whatever the order of the gallery.

    Args:
        search: Who asks and what is searched.
        labels: Of the N images.
        dataset: Name of the data.
        exclusions: None of them takes self and study, where they differ.
        ks: Numbers of items looked at. Those that a query has too few items for are left out, and named.
        options: Similarity and resampling, None for the usual.

    Raises:
        ValueError: If nothing is known, or no k is left.
    """
    known = search.of_known(labels.is_known)
    options = options or RetrievalOptions()
    parts, left_out = [], []
    images = known.images
    similarities = Similarities(images[known.queries], images[known.gallery], options.similarity)
    for exclusion in dict.fromkeys(exclusions or differing_exclusions(known)):
        possible = possible_image_ks(known, exclusion, ks)
        left_out += [
            f"image to image at {k}, {_title(exclusion)}: a query has fewer images"
            for k in ks
            if k not in possible
        ]
        if not possible:
            continue
        asked, searched = known.keys(exclusion)
        num_places = min(max(possible) + MORE_PLACES, len(known.gallery))
        found = find_images(known, exclusion, num_places, options.similarity)
        relevance = labels.relevance(known.queries, known.gallery)
        gains = ranked_gains(
            found,
            relevance,
            possible,
            query_keys=asked,
            gallery_keys=searched,
            similarities=similarities,
        )
        groups = _groups(gains, relevance.graded_by)
        ranking = TiedRanking(found=found, query_keys=asked, gallery_keys=searched, similarities=similarities)
        groups |= labels.further(ranking, known.queries, known.gallery, possible)
        for protocol, metrics in groups.items():
            outcomes = _outcomes(search, known, labels, dataset, f"{_title(exclusion)}; {protocol}")
            parts.append(_measured(outcomes, metrics, options))
    if not parts:
        raise ValueError(
            f"ks must be at most the number of images that every query has, got {list(ks)}. "
            "Name smaller ones."
        )
    measures = joined(parts)
    return replace(measures, not_measured=tuple(left_out))


def check_image_search(
    search: ImageSearch, labels: ImageLabels, exclusions: Sequence[Exclusion], ks: Sequence[int]
) -> None:
    """Refuse what :func:`measure_images` has too few images for; vectors are not looked at.

    Args:
        search: As for :func:`measure_images`.
        labels: Of the N images.
        exclusions: None of them takes those that differ.
        ks: Each must be possible by one of the exclusions.

    Raises:
        ValueError: If nothing is known, or a k is larger than the gallery of a query by all exclusions.
    """
    known = search.of_known(labels.is_known)
    largest = max(int(known.num_left(name).min()) for name in exclusions or differing_exclusions(known))
    invalid = [k for k in ks if k > largest]
    if invalid:
        raise ValueError(
            f"ks must be at most {largest}, the images that every query can find, got {invalid}. "
            "Name smaller ones, or search more images."
        )


def check_legacy_ct_clip(search: ImageSearch, labels: FindingLabels) -> None:
    """Refuse what :func:`measure_legacy_ct_clip` has too few images for; vectors are not looked at.

    Raises:
        ValueError: If a volume has no labeled volume of another study.
    """
    known = search.of_known(labels.is_known)
    studies = known.frame["study_id"].to_numpy()[known.queries]
    if num_labeled_of_others(labels.labels[known.queries], studies) < CT_CLIP_KS[0]:
        raise ValueError(
            "the protocol legacy-ct-clip must have volumes with a finding in at least two studies, got fewer "
            f"of {len(np.unique(studies))}. Choose a larger split."
        )


def find_images(search: ImageSearch, exclusion: Exclusion, k: int, similarity: Similarity = "cosine") -> TopK:
    """Return the first k images of every query; rows count in ``search.gallery``."""
    asked, searched = search.keys(exclusion)
    return top_k(
        search.images[search.queries],
        search.images[search.gallery],
        k,
        similarity=similarity,
        query_keys=asked,
        gallery_keys=searched,
    )


def measure_legacy_ct_clip(
    search: ImageSearch, labels: FindingLabels, dataset: str, options: RetrievalOptions | None = None
) -> MeasuredQueries:
    """Measure what the script of CT-CLIP prints, beside the same without its errors and beside its bounds.

    ``chance`` is what random vectors get. The oracle, ``..._oracle_baseline``, ranks by the labels.
    Of the script's 1, 5, 10 and 50 those are measured that there are enough labeled images for.

    Args:
        search: The same images ask and are searched.
        labels: Of the N images.
        dataset: Name of the data.
        options: Similarity and resampling, None for the usual.

    Raises:
        ValueError: If another gallery is searched, or there are too few labeled images.
    """
    if not np.array_equal(search.queries, search.gallery):
        raise ValueError(
            "the protocol legacy-ct-clip must search the split that asks, got another gallery. "
            "Leave --gallery-split out."
        )
    known = search.of_known(labels.is_known)
    options = options or RetrievalOptions()
    values = labels.labels[known.queries]
    studies = known.frame["study_id"].to_numpy()[known.queries]
    ks = [k for k in CT_CLIP_KS if k <= num_labeled_of_others(values, studies)] or CT_CLIP_KS[:1]
    chance, oracle = ct_clip_map_bounds(values, studies, ks=ks)
    found = legacy_ct_clip_map(
        known.images[known.queries], values, studies, ks=ks, similarity=options.similarity
    )
    parts = []
    for variant in VARIANTS:
        name = LEGACY_MAP if variant == AS_PRINTED else "mean_jaccard_at_{}"
        metrics: dict[str, PerQuery] = {}
        for column, k in enumerate(ks):
            mine, random, best = (item.per_query[variant][:, column] for item in (found, chance, oracle))
            metrics[name.format(k)] = PerQuery(mine, random)
            metrics[name.format(k) + ORACLE] = PerQuery(best, random)
        outcomes = _outcomes(search, known, labels, dataset, variant, "queries without a finding count as 0")
        parts.append(_measured(outcomes, metrics, options))
    left_out = tuple(f"CT-CLIP's script at {k}: too few labeled images" for k in CT_CLIP_KS if k not in ks)
    return replace(joined(parts), not_measured=left_out)


def _groups(gains: RankedGains, graded_by: str | None) -> dict[str, dict[str, PerQuery]]:
    """Metrics by what the protocol says."""
    groups = {name: dict(metrics) for name, metrics in gains.hits.items()}
    if graded_by is not None:
        graded = {name.replace("mean_gain", "mean_jaccard"): item for name, item in gains.graded.items()}
        return {f"graded by {graded_by}": graded, **groups}
    return groups


def _outcomes(
    search: ImageSearch, known: ImageSearch, labels: ImageLabels, dataset: str, protocol: str, *notes: str
) -> QueryOutcomes:
    num_queries, num_gallery = (
        len(everything) - len(kept)
        for everything, kept in ((search.queries, known.queries), (search.gallery, known.gallery))
    )
    unknown = f"labels of {num_queries} more queries and {num_gallery} more gallery images are not known"
    asking = known.frame.iloc[known.queries]
    return QueryOutcomes(
        provenance=Provenance(
            dataset=dataset, class_set=labels.class_set, label_source=labels.label_source, protocol=protocol
        ),
        direction="image_to_image",
        query_ids=asking["volume_id"].to_numpy(),
        patient_ids=asking["patient_id"].to_numpy(),
        notes=(
            f"gallery of {len(known.gallery)} images",
            *(notes or labels.notes(known.queries)),
            *([unknown] if num_queries or num_gallery else []),
        ),
    )


def _measured(
    outcomes: QueryOutcomes, metrics: dict[str, PerQuery], options: RetrievalOptions
) -> MeasuredQueries:
    results: list[MetricResult] = outcomes.mean_results(metrics, options, _NOTHING_RIGHT)
    rows = outcomes.rows({name: item.values for name, item in metrics.items()})
    return MeasuredQueries(tuple(results), (), rows)


def _title(exclusion: Exclusion) -> str:
    return exclusion.replace("-", " ")
