"""What is on the images of a manifest, so that one is relevant to another: findings, concepts, IRMA codes.

Axes: N images, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, get_args

import numpy as np
import pandas as pd

from radtower.data.finding_truth import FindingTruth
from radtower.evaluation.retrieval.images.irma import (
    LOWER_IS_BETTER,
    chance_of_irma_error,
    check_true_codes,
    irma_errors,
)
from radtower.evaluation.retrieval.images.ranked_gains import PerQuery
from radtower.evaluation.retrieval.images.relevance import ConceptOverlap, FindingOverlap, Relevance, SameCode
from radtower.evaluation.retrieval.images.tied_places import TiedRanking

RelevanceKind = Literal["findings", "concepts", "irma"]
RELEVANCE_KINDS: tuple[RelevanceKind, ...] = get_args(RelevanceKind)
CONCEPT_COLUMN, IRMA_COLUMN = "concepts", "irma_code"
_SEPARATOR = ";"


class ImageLabels(Protocol):
    """Labels of N images.

    ``is_known (N,)`` says which can be judged. ``class_set`` and ``label_source`` go to the results.
    """

    @property
    def is_known(self) -> np.ndarray: ...

    @property
    def class_set(self) -> str: ...

    @property
    def label_source(self) -> str: ...

    def relevance(self, queries: np.ndarray, gallery: np.ndarray) -> Relevance:
        """Return the relevance of these gallery rows to these query rows."""
        ...

    def notes(self, queries: np.ndarray) -> tuple[str, ...]:
        """Return what a reader must know of these queries."""
        ...

    def further(
        self, ranking: TiedRanking, queries: np.ndarray, gallery: np.ndarray, ks: Sequence[int]
    ) -> dict[str, dict[str, PerQuery]]:
        """Return metrics of this kind only, by protocol and name."""
        ...


@dataclass(frozen=True)
class FindingLabels:
    """Labels ``(N, F)`` of 0 and 1; an image with any other, such as -100, is not known."""

    labels: np.ndarray
    class_set: str
    label_source: str

    @property
    def is_known(self) -> np.ndarray:
        """``(N,)``."""
        return np.asarray(np.isin(self.labels, (0, 1)).all(axis=1))

    def relevance(self, queries: np.ndarray, gallery: np.ndarray) -> Relevance:
        """See :class:`ImageLabels`."""
        return FindingOverlap(self.labels[queries], self.labels[gallery])

    def notes(self, queries: np.ndarray) -> tuple[str, ...]:
        """See :class:`ImageLabels`."""
        num_normal = int((self.labels[queries] == 0).all(axis=1).sum())
        return (f"{num_normal} queries have no finding: for them, others without are right",)

    def further(
        self, ranking: TiedRanking, queries: np.ndarray, gallery: np.ndarray, ks: Sequence[int]
    ) -> dict[str, dict[str, PerQuery]]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class ConceptLabels:
    """Sets of concepts; an image without any is not known."""

    concepts: tuple[frozenset[str], ...]
    class_set: str
    label_source: str

    @property
    def is_known(self) -> np.ndarray:
        """``(N,)``."""
        return np.array([bool(concepts) for concepts in self.concepts])

    def relevance(self, queries: np.ndarray, gallery: np.ndarray) -> Relevance:
        """See :class:`ImageLabels`."""
        asked, searched = ([self.concepts[row] for row in rows] for rows in (queries, gallery))
        return ConceptOverlap(asked, searched)

    def notes(self, queries: np.ndarray) -> tuple[str, ...]:
        """See :class:`ImageLabels`."""
        return ()

    def further(
        self, ranking: TiedRanking, queries: np.ndarray, gallery: np.ndarray, ks: Sequence[int]
    ) -> dict[str, dict[str, PerQuery]]:
        """Nothing."""
        return {}


@dataclass(frozen=True)
class IRMALabels:
    """IRMA codes; an image without one is not known."""

    codes: np.ndarray
    class_set: str
    label_source: str

    @property
    def is_known(self) -> np.ndarray:
        """``(N,)``."""
        return np.array([bool(code) for code in self.codes])

    def relevance(self, queries: np.ndarray, gallery: np.ndarray) -> Relevance:
        """See :class:`ImageLabels`."""
        return SameCode(self.codes[queries], self.codes[gallery])

    def notes(self, queries: np.ndarray) -> tuple[str, ...]:
        """See :class:`ImageLabels`."""
        return ()

    def further(
        self, ranking: TiedRanking, queries: np.ndarray, gallery: np.ndarray, ks: Sequence[int]
    ) -> dict[str, dict[str, PerQuery]]:
        """Return the error of the first image, and of the code that most of the first k have, worst first."""
        asked, searched = list(self.codes[queries]), list(self.codes[gallery])
        chance = chance_of_irma_error(asked, searched)
        none = np.full(len(asked), np.nan)  # of a vote
        errors = irma_errors(ranking, asked, searched, ks)
        return {
            LOWER_IS_BETTER: {
                name: PerQuery(values, chance if name == "irma_error_at_1" else none)
                for name, values in errors.items()
            }
        }


def finding_labels(truth: FindingTruth, class_set: str) -> FindingLabels:
    """Take the findings that have labels."""
    columns = [truth.keys.index(key) for key in truth.labeled_keys]
    named = class_set if len(columns) == len(truth.keys) else f"{class_set}, {len(columns)} findings"
    return FindingLabels(truth.labels[:, columns], named, truth.source)


def column_labels(
    frame: pd.DataFrame, kind: str, label_source: str | None = None, ignored: Sequence[str] = ()
) -> ConceptLabels | IRMALabels:
    """Read the column ``concepts``, separated by semicolons, or ``irma_code`` of a manifest.

    Args:
        frame: Of the manifest.
        kind: ``concepts`` or ``irma``.
        label_source: Who gave them; None names the column.
        ignored: Concepts that do not count, such as those of the modality.

    Raises:
        KeyError: If there is no such column.
        ValueError: If a code is not an IRMA code, or holds ``*``.
    """
    column = CONCEPT_COLUMN if kind == "concepts" else IRMA_COLUMN
    if column not in frame:
        raise KeyError(f"the manifest must have a column {column} for --relevance {kind}, got none.")
    cells = [str(cell).strip() if pd.notna(cell) else "" for cell in frame[column]]
    source = label_source or f"column {column} of the manifest"
    if kind == "irma":
        check_true_codes(cells, [f"volume {name}" for name in frame["volume_id"]])
        return IRMALabels(np.array(cells, dtype=object), f"{len(set(cells) - {''})} IRMA codes", source)
    drop = frozenset(ignored)
    sets = tuple(
        frozenset(filter(None, (name.strip() for name in cell.split(_SEPARATOR)))) - drop for cell in cells
    )
    num_different = len(frozenset().union(*sets))
    without = f", {len(drop)} ignored" if drop else ""
    return ConceptLabels(sets, f"{num_different} concepts{without}", source)
