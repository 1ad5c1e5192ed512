"""Image vectors -> scores of the findings of a protocol, per volume or per study.

Axes: N volumes or items (volumes, or studies), F findings, P projected embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch

from radtower.data.findings_catalog import map_scores
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.results import Provenance
from radtower.evaluation.rows import SCORE_COLUMNS, ScoreRows
from radtower.evaluation.zero_shot.protocol import Protocol, Unit
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_zero_shot import pair_scores


@dataclass(frozen=True)
class ScoredItems:
    """Scores and labels with the items that they are of.

    Args:
        sample: N rows.
        item_ids: ``(N,)`` ids of volumes, or of studies.
        num_volumes: Volumes behind the items; N, unless these are studies.
        unit: What an item is.
    """

    sample: FindingScores
    item_ids: np.ndarray
    num_volumes: int
    unit: Unit

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
) -> ScoredItems:
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
    ids = studies[f"{unit}_id"].to_numpy(object)
    rows, distinct = pd.factorize(ids)  # in order of appearance
    first = np.unique(rows, return_index=True)[1]
    differing = np.unique(rows[(labels != labels[first][rows]).any(axis=1)])
    if len(differing):
        raise ValueError(
            f"labels must agree within a study to be measured per study, got {len(differing)} of "
            f"{len(distinct)} studies whose reconstructions differ. Measure per volume."
        )
    sums = np.zeros((len(distinct), scores.shape[1]))
    np.add.at(sums, rows, scores)
    sample = FindingScores(
        scores=sums / np.bincount(rows)[:, None],
        labels=labels[first],
        patient_ids=studies["patient_id"].to_numpy(object)[first],
        keys=tuple(keys),
    )
    return ScoredItems(sample, ids[first], len(studies), unit)


def num_saturated(scores: np.ndarray) -> int:
    """Return how many of ``(N, F)`` probabilities are rounded to 0 or 1, where they are not ranked."""
    return int(((scores == 0.0) | (scores == 1.0)).sum())


def _counted(number: int, one: str, several: str) -> str:
    return f"{number} {one if number == 1 else several}"
