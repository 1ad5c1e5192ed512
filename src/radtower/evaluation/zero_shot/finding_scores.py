"""Image vectors -> scores of the findings of a protocol, beside their labels, per volume or per study.

Axes: N items (volumes or studies), F findings, P projected embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd
import torch

from radtower.data.findings_catalog import map_scores
from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.results import Provenance
from radtower.evaluation.rows import SCORE_COLUMNS, ScoreRows
from radtower.evaluation.zero_shot.protocol import Protocol, Unit
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_zero_shot import pair_scores


@dataclass(frozen=True)
class FindingScores:
    """What a read-out says of items, and what is true.

    Args:
        scores: ``(N, F)`` float64, higher where the finding is likelier.
        labels: ``(N, F)``, 0, 1, or -100 where unknown.
        item_ids: ``(N,)`` ids of volumes, or of studies.
        patient_ids: ``(N,)``.
        keys: Findings, in column order.
        num_volumes: Volumes behind the items; N, unless these are studies.
        unit: What an item is.
    """

    scores: np.ndarray
    labels: np.ndarray
    item_ids: np.ndarray
    patient_ids: np.ndarray
    keys: tuple[str, ...]
    num_volumes: int
    unit: Unit = "volume"

    @property
    def size(self) -> str:
        """Number of items in words."""
        volumes = f"{self.num_volumes} volume{'s' * (self.num_volumes != 1)}"
        if self.unit == "volume":
            return volumes
        return f"{len(self.item_ids)} stud{'y' if len(self.item_ids) == 1 else 'ies'} of {volumes}"

    def of(self, keys: Sequence[str]) -> "FindingScores":
        """Keep some findings, in the order given."""
        columns = [self.keys.index(key) for key in keys]
        return replace(
            self, scores=self.scores[:, columns], labels=self.labels[:, columns], keys=tuple(keys)
        )

    def rows(self, provenance: Provenance) -> ScoreRows:
        """Return one row per item and finding, as they stand beside the results."""
        num_items, num_findings = self.scores.shape
        frame = pd.DataFrame(
            {
                **provenance.model_dump(include=set(SCORE_COLUMNS)),
                "item_id": np.repeat(self.item_ids, num_findings),
                "patient_id": np.repeat(self.patient_ids, num_findings),
                "finding": np.tile(np.array(self.keys, dtype=object), num_items),
                "score": self.scores.ravel(),
                "label": self.labels.ravel().astype(np.float64),
            }
        )
        return ScoreRows(frame[list(SCORE_COLUMNS)])


@torch.no_grad()
def zero_shot_scores(model: MedCLIPModel, images: torch.Tensor, protocol: Protocol) -> np.ndarray:
    """Score image vectors by the prompts of a protocol.

    Where a finding is made of several that are asked for, it has the largest of their scores. The arithmetic
    is in float64: in float32 a softmax near 1 is 1, and what ties is not ranked.

    Args:
        model: Whose vectors they are.
        images: ``(N, P)``, as the model compares them.
        protocol: What is asked, and how.

    Returns:
        ``(N, F)`` float64, in the order of ``protocol.labels``; NaN for findings without a counterpart.
    """
    directions = model.pair_directions(protocol.asked_phrases, protocol.prompts).cpu().double()
    scale = model.zero_shot_scale().cpu().double()
    scores = pair_scores(images.double(), directions, scale, protocol.score).numpy()
    if protocol.mapping is None:
        return scores
    table = pd.DataFrame(scores, columns=list(protocol.asked_keys))
    return map_scores(table, protocol.mapping).to_numpy()


def per_unit(
    scores: np.ndarray, labels: np.ndarray, studies: pd.DataFrame, keys: Sequence[str], unit: Unit
) -> FindingScores:
    """Take volumes as they are, or average the scores of a study's reconstructions.

    Args:
        scores: ``(N, F)`` of volumes.
        labels: ``(N, F)``, likewise.
        studies: N rows of a manifest.
        keys: Findings, in column order.
        unit: What an item shall be.

    Raises:
        ValueError: If the volumes of a study have different labels.
    """
    if unit == "volume":
        ids, patients = studies["volume_id"].to_numpy(object), studies["patient_id"].to_numpy(object)
        return FindingScores(scores, labels, ids, patients, tuple(keys), len(studies))
    study, first = np.unique(studies["study_id"].to_numpy(str), return_index=True)
    place = {name: row for row, name in enumerate(studies["study_id"].to_numpy(str)[np.sort(first)])}
    rows = np.array([place[name] for name in studies["study_id"].astype(str)])
    first = np.sort(first)
    differing = np.unique(rows[(labels != labels[first][rows]).any(axis=1)])
    if len(differing):
        raise ValueError(
            f"labels must agree within a study to be measured per study, got {len(differing)} of {len(study)} "
            "studies whose reconstructions differ. Measure per volume."
        )
    sums = np.zeros((len(study), scores.shape[1]))
    np.add.at(sums, rows, scores)
    means = sums / np.bincount(rows)[:, None]
    chosen = studies.iloc[first]
    ids, patients = chosen["study_id"].to_numpy(object), chosen["patient_id"].to_numpy(object)
    return FindingScores(means, labels[first], ids, patients, tuple(keys), len(studies), "study")


def num_saturated(scores: np.ndarray) -> int:
    """Return how many of ``(N, F)`` probabilities are rounded to exactly 0 or 1, where they are not ranked."""
    return int(((scores == 0.0) | (scores == 1.0)).sum())


def has_label(labels: np.ndarray) -> np.ndarray:
    """Return ``(N,)``: whether anything is known of an item."""
    return (labels != MASKED_TARGET).any(axis=1)
