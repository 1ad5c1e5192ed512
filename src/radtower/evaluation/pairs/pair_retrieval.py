"""Retrieval between scans and reports under several protocols: which other rows count as right.

Axes: N volumes.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import pandas as pd

from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
from radtower.evaluation.results import MetricResult, Provenance, Results
from radtower.evaluation.retrieval.ranks import RetrievalOptions, measure_retrieval
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.report_text import report_sha256

Protocol = Literal["exact-row", "study", "report"]
PROTOCOLS: tuple[Protocol, ...] = get_args(Protocol)
PAIRING = "pairing of scan and report"  # the label source of retrieval
# As results and tables say it.
TITLES: dict[Protocol, str] = {"exact-row": "exact row", "study": "same study", "report": "same report"}


def hit_keys(studies: pd.DataFrame, protocol: Protocol) -> np.ndarray:
    """Return ``(N,)`` keys: rows of equal key are right answers of each other.

    Args:
        studies: Rows of a manifest.
        protocol: ``exact-row``: nothing but the row itself; ``study``: a sibling reconstruction, too;
            ``report``: every volume whose report reads the same, siblings included.

    Raises:
        ValueError: If the protocol is another.
    """
    if protocol == "exact-row":
        return np.arange(len(studies))
    if protocol == "study":
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

    Each counts all that the one before counts: they are the same where they make as many groups.
    """
    chosen: dict[int, Protocol] = {}
    for protocol in PROTOCOLS:
        chosen.setdefault(len(np.unique(hit_keys(studies, protocol))), protocol)
    return tuple(chosen.values())


def measure_pair_retrieval(
    pairs: EmbeddedPairs,
    provenance: Provenance,
    protocols: Sequence[Protocol] = (),
    ks: Sequence[int] = (1, 5, 10),
    options: RetrievalOptions | None = None,
) -> list[MetricResult]:
    """Measure both directions under each protocol; see :func:`measure_retrieval`.

    Args:
        pairs: Vectors and studies.
        provenance: Data set; ``protocol`` is filled in.
        protocols: None of them takes those that differ.
        ks: Numbers of items looked at, each below N.
        options: Ties and resampling, None for the usual; the similarity is that of the model.

    Raises:
        ValueError: If a k is out of range or a protocol unknown.
    """
    options = replace(options or RetrievalOptions(), similarity=pairs.similarity)
    left_out = f"{len(pairs.failures)} more pairs could not be read" if pairs.failures else None
    results = []
    for protocol in dict.fromkeys(protocols or differing_protocols(pairs.studies)):
        results += measure_retrieval(
            pairs.images,
            pairs.reports,
            pairs.studies["patient_id"].to_numpy(),
            provenance.model_copy(update={"protocol": TITLES.get(protocol, protocol)}),
            keys=hit_keys(pairs.studies, protocol),
            ks=ks,
            options=options,
        )
    return [
        item.model_copy(update={"note": "; ".join(filter(None, [item.note, left_out]))}) for item in results
    ]


def retrieval_results(
    model: MedCLIPModel,
    pairs: EmbeddedPairs,
    dataset: str,
    protocols: Sequence[Protocol] = (),
    ks: Sequence[int] = (1, 5, 10),
    options: RetrievalOptions | None = None,
    *,
    is_phantom: bool = False,
) -> Results:
    """Make ``results.json`` of a dual tower; see :func:`measure_pair_retrieval` for the arguments.

    The folder or Hub id that the model was loaded from is its name, and the commit its revision.
    """
    name = model.name_or_path or type(model).__name__
    provenance = Provenance(dataset=dataset, class_set="none", label_source=PAIRING)
    return Results(
        model_id=Path(name).resolve().name if Path(name).exists() else name,
        model_revision=getattr(model.config, "_commit_hash", None),
        created=datetime.now(UTC),
        phantom=is_phantom,
        metrics=tuple(measure_pair_retrieval(pairs, provenance, protocols, ks, options)),
    )


def _unknown(protocol: str) -> ValueError:
    return ValueError(f"protocol must be one of {', '.join(PROTOCOLS)}, got {protocol!r}. Choose one.")
