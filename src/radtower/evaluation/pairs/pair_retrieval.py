"""Retrieval between scans and reports under several protocols: which other rows count as right.

Axes: N volumes.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Literal, get_args

import numpy as np
import pandas as pd

from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs, model_identity
from radtower.evaluation.pairs.image_tower import ImageEncoder
from radtower.evaluation.results import Direction, MetricResult, Provenance, Results
from radtower.evaluation.retrieval.chance import chance_levels, chance_with_copies
from radtower.evaluation.retrieval.query_outcomes import MeasuredQueries, Measures, QueryOutcomes, joined
from radtower.evaluation.retrieval.ranks import (
    RetrievalOptions,
    check_ks,
    positives_by_key,
    retrieval_ranks,
)
from radtower.evaluation.retrieval.study_ranks import first_of_each, study_level_ranks
from radtower.processing.report_text import report_sha256

Protocol = Literal["exact-row", "study", "study-level", "report"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
PAIRING = "pairing of scan and report"  # the label source of retrieval
# As results and tables say it.
TITLES: dict[Protocol, str] = {
    "exact-row": "exact row",
    "study": "same study",
    "study-level": "study level",
    "report": "same report",
}
DIRECTIONS: tuple[Direction, ...] = ("image_to_report", "report_to_image")


def hit_keys(studies: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    """Return ``(N,)`` keys: rows of equal key are right answers of each other.

    Args:
        studies: Rows of a manifest.
        protocol: ``exact-row``: nothing but the row itself; ``study`` and ``study-level``: a sibling
            reconstruction, too; ``report``: every volume whose report reads the same, siblings included.

    Raises:
        ValueError: If the protocol is another.
    """
    if protocol == "exact-row":
        return np.arange(len(studies))
    if protocol in ("study", "study-level"):
        return studies["study_id"].to_numpy()
    if protocol == "report":
        return np.array([report_sha256(report) for report in studies["report"]])
    raise _unknown(protocol)


def checked_protocols(names: Sequence[str]) -> tuple[Protocol, ...]:
    """Return the protocols of these names; ask before the vectors are made.

    Raises:
        ValueError: If there is no such protocol.
    """
    for name in names:
        if name not in PROTOCOLS:
            raise _unknown(name)
    return tuple(protocol for protocol in PROTOCOLS if protocol in names)


def differing_protocols(studies: pd.DataFrame) -> tuple[Protocol, ...]:
    """Return the protocols that differ on these studies, the strictest first.

    Each counts all that the one before counts: they are the same where they make as many groups. Study level
    differs from the same study by who asks and who takes a place.
    """
    chosen: dict[int, tuple[Protocol, ...]] = {}
    ladder: tuple[tuple[Protocol, ...], ...] = (("exact-row",), ("study", "study-level"), ("report",))
    for protocols in ladder:
        chosen.setdefault(len(np.unique(hit_keys(studies, protocols[0]))), protocols)
    return tuple(protocol for protocols in chosen.values() for protocol in protocols)


def measure_pair_retrieval(
    pairs: EmbeddedPairs,
    provenance: Provenance,
    protocols: Sequence[Protocol] = (),
    ks: Sequence[int] = (1, 5, 10),
    options: RetrievalOptions | None = None,
) -> list[MetricResult]:
    """Return the metrics of :func:`measure_pairs`."""
    return list(measure_pairs(pairs, provenance, protocols, ks, options).metrics)


def measure_pairs(
    pairs: EmbeddedPairs,
    provenance: Provenance,
    protocols: Sequence[Protocol] = (),
    ks: Sequence[int] = (1, 5, 10),
    options: RetrievalOptions | None = None,
) -> MeasuredQueries:
    """Measure both directions under each protocol: recall@k, median rank, MRR, and the rank of every query.

    A volume is a query and a place of the gallery, as published, so that a study with two reconstructions
    takes two. ``study-level`` is otherwise: a study asks once and takes one place, see
    :func:`study_level_ranks`. Chance knows that copies of a report stand together.

    Args:
        pairs: Vectors and studies.
        provenance: Data set; ``protocol`` is filled in.
        protocols: None of them takes those that differ.
        ks: Numbers of items looked at, each below N. Those that are not below the number of studies are left
            out at study level.
        options: Ties and resampling, None for the usual; the similarity is that of the model.

    Raises:
        ValueError: If a k is out of range or a protocol unknown.
    """
    check_ks(ks, len(pairs.studies))
    options = replace(options or RetrievalOptions(), similarity=pairs.similarity)
    measures = [
        _measure_protocol(pairs, provenance, protocol, ks, options)
        for protocol in dict.fromkeys(protocols or differing_protocols(pairs.studies))
    ]
    return joined(measures)


def _measure_protocol(
    pairs: EmbeddedPairs,
    provenance: Provenance,
    protocol: Protocol,
    ks: Sequence[int],
    options: RetrievalOptions,
) -> MeasuredQueries:
    asking, positives, ranks = _ranks(pairs, protocol, options)
    possible = [k for k in ks if k < len(asking)]
    reports = [report_sha256(report) for report in asking["report"]]
    chances = {
        "image_to_report": chance_with_copies(reports, positives, possible, options.ties),
        "report_to_image": chance_levels([len(rows) for rows in positives], len(asking), possible),
    }
    num_failed = len(pairs.failures)
    metrics, rows = [], []
    for direction in DIRECTIONS:
        outcomes = QueryOutcomes(
            provenance=provenance.model_copy(update={"protocol": TITLES[protocol]}),
            direction=direction,
            query_ids=asking["study_id" if protocol == "study-level" else "volume_id"].to_numpy(),
            patient_ids=asking["patient_id"].to_numpy(),
            notes=(f"{num_failed} more pairs could not be read",) if num_failed else (),
        )
        metrics += outcomes.rank_results(ranks[direction], chances[direction], possible, options)
        rows.append(outcomes.rows({"rank": ranks[direction]}))
    left_out = [
        f"recall@{k}, {TITLES[protocol]}: only {len(asking)} studies" for k in ks if k not in possible
    ]
    return MeasuredQueries(tuple(metrics), tuple(left_out), pd.concat(rows, ignore_index=True))


def _ranks(
    pairs: EmbeddedPairs, protocol: Protocol, options: RetrievalOptions
) -> tuple[pd.DataFrame, list[np.ndarray], dict[Direction, np.ndarray]]:
    """Who asks, which rows of it are right, and the ranks of both directions."""
    if protocol == "study-level":
        ids = pairs.studies["study_id"].to_numpy()
        asking = pairs.studies.iloc[first_of_each(ids)]
        found = study_level_ranks(pairs.images, pairs.reports, ids, options)
        return (
            asking,
            [np.array([row]) for row in range(len(asking))],
            dict(zip(DIRECTIONS, found, strict=True)),
        )
    keys = hit_keys(pairs.studies, protocol)
    positives = positives_by_key(keys, keys)
    sides = {"image": pairs.images, "report": pairs.reports}
    ranks = {
        direction: retrieval_ranks(
            sides[direction.split("_to_")[0]],
            sides[direction.split("_to_")[1]],
            positives,
            similarity=options.similarity,
            ties=options.ties,
        )
        for direction in DIRECTIONS
    }
    return pairs.studies, positives, ranks


def retrieval_results(model: ImageEncoder, measures: Measures, *, is_phantom: bool = False) -> Results:
    """Make ``results.json`` of what was measured.

    The folder or Hub id that the model was loaded from is its name, and the commit its revision.
    """
    name, revision = model_identity(model)
    return Results(
        model_id=name,
        model_revision=revision,
        created=datetime.now(UTC),
        phantom=is_phantom,
        metrics=tuple(measures.metrics),
        not_measured=tuple(measures.not_measured),
    )


def _unknown(protocol: str) -> ValueError:
    return ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}. Choose one.")
