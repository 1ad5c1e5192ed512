"""Scores of volumes -> scores of items, which are volumes or studies, with ids, labels and patients.

Axes: N volumes or items, F findings.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd

from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.results import Provenance
from radtower.evaluation.rows import SCORE_COLUMNS, ScoreRows
from radtower.evaluation.zero_shot.labeled_volumes import LabeledVolumes, check_labels_agree
from radtower.evaluation.zero_shot.protocol import Unit


@dataclass(frozen=True)
class ScoredItems:
    """Scores and labels with the items that they are of.

    Args:
        sample: N rows.
        item_ids: ``(N,)`` ids of volumes, or of studies.
        num_volumes: Volumes behind the items; N, unless these are studies.
        unit: What an item is.
        note: What was chosen for this model; goes to every result.
    """

    sample: FindingScores
    item_ids: np.ndarray
    num_volumes: int
    unit: Unit
    note: str = ""

    @property
    def size(self) -> str:
        """Number of items in words."""
        num_items, volumes = len(self.item_ids), _counted(self.num_volumes, "volume", "volumes")
        return volumes if self.unit == "volume" else f"{_counted(num_items, 'study', 'studies')} of {volumes}"

    def rows(self, provenance: Provenance) -> ScoreRows:
        """Return one row per item and finding that has a score, as they stand beside the results."""
        sample, columns = self.sample, self.sample.scored_columns
        keys = np.array([sample.keys[column] for column in columns], dtype=object)
        frame = pd.DataFrame(
            {
                **provenance.model_dump(include=set(SCORE_COLUMNS)),
                "item_id": np.repeat(self.item_ids, len(keys)),
                "patient_id": np.repeat(np.asarray(sample.patient_ids, dtype=object), len(keys)),
                "finding": np.tile(keys, len(self.item_ids)),
                "score": sample.scores[:, columns].ravel(),
                "label": sample.labels[:, columns].ravel().astype(np.float64),
            }
        )
        return ScoreRows(frame[list(SCORE_COLUMNS)])


def per_unit(
    scores: np.ndarray,
    volumes: LabeledVolumes,
    unit: Unit,
    undefined: Mapping[str, str] | None = None,
    note: str = "",
) -> ScoredItems:
    """Take volumes as they are, or average the scores of a study's reconstructions.

    Args:
        scores: ``(N, F)`` of the volumes; NaN in the columns of ``undefined``.
        volumes: N volumes with the labels of F findings.
        unit: What an item shall be.
        undefined: Why a finding has no score, by key.
        note: See :class:`ScoredItems`.

    Raises:
        ValueError: If the volumes of a study have different labels.
    """
    studies, labels = volumes.studies, volumes.labels
    ids = studies[f"{unit}_id"].to_numpy(object)
    rows, distinct = pd.factorize(ids)  # in order of appearance
    first = np.unique(rows, return_index=True)[1]
    check_labels_agree(labels, ids)
    sums = np.zeros((len(distinct), scores.shape[1]))
    np.add.at(sums, rows, scores)
    sample = FindingScores(
        scores=sums / np.bincount(rows)[:, None],
        labels=labels[first],
        patient_ids=studies["patient_id"].to_numpy(object)[first],
        keys=volumes.keys,
        undefined=undefined or {},
    )
    return ScoredItems(sample, ids[first], len(studies), unit, note)


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
