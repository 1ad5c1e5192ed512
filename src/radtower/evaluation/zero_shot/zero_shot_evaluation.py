"""A dual tower measured by a zero-shot protocol, and by what else reads its vectors: results and their rows.

Axes: N volumes, F findings.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import numpy as np
import pandas as pd

from radtower.evaluation.pairs.embedded_pairs import model_identity
from radtower.evaluation.results import MetricResult, Provenance, Results
from radtower.evaluation.rows import ScoreRows
from radtower.evaluation.zero_shot.finding_measures import MeasureOptions, measure_items
from radtower.evaluation.zero_shot.labeled_volumes import LabeledVolumes
from radtower.evaluation.zero_shot.protocol import Protocol, class_set_name
from radtower.evaluation.zero_shot.scored_items import ScoredItems, num_saturated, per_unit, zero_shot_scores
from radtower.evaluation.zero_shot.threshold_choice import ThresholdChoice
from radtower.modeling.modeling_medclip import MedCLIPModel


@dataclass(frozen=True)
class ReadOut:
    """Something that scores findings by the vectors of volumes.

    Args:
        description: What it does, as results say it.
        score: Volumes -> ``(N, F)``, findings in the order of their ``keys``.
    """

    description: str
    score: Callable[[LabeledVolumes], np.ndarray]


@dataclass(frozen=True, kw_only=True)
class EvaluationData:
    """What a model is measured on.

    Args:
        test: Volumes under test.
        validation: Volumes to choose thresholds on; None where none are chosen there.
        dataset: Name of the data.
        label_source: Who gave the labels.
        not_measured: What the data have no labels for, and why.
        is_phantom: Whether the scans are synthetic.
    """

    test: LabeledVolumes
    dataset: str
    label_source: str
    validation: LabeledVolumes | None = None
    not_measured: Sequence[str] = ()
    is_phantom: bool = False


@dataclass(frozen=True)
class ZeroShotEvaluation:
    """Results, and the scores of every read-out behind them.

    ``size`` is the number of items in words. ``num_saturated`` zero-shot scores are rounded to 0 or 1.
    """

    results: Results
    rows: ScoreRows
    size: str
    num_saturated: int = 0
    failures: dict[str, str] = field(default_factory=dict)


def zero_shot_read_out(model: MedCLIPModel, protocol: Protocol) -> ReadOut:
    """Return the read-out by prompts."""

    def score(volumes: LabeledVolumes) -> np.ndarray:
        columns = [protocol.labels.keys.index(key) for key in volumes.keys]
        return zero_shot_scores(model, volumes.volumes.images, protocol)[:, columns]

    return ReadOut(protocol.description, score)


def evaluate_zero_shot(
    model: MedCLIPModel,
    protocol: Protocol,
    data: EvaluationData,
    choices: Sequence[ThresholdChoice] = (),
    options: MeasureOptions | None = None,
    read_outs: Sequence[ReadOut] = (),
) -> ZeroShotEvaluation:
    """Measure the prompts of a protocol, and further read-outs of the same vectors.

    Args:
        model: Its vectors are in ``data``.
        protocol: What is asked, and what an item is.
        data: Volumes with labels.
        choices: Thresholds of decisions.
        options: None for the usual.
        read_outs: Measured in the same way, behind the prompts.
    """
    metrics: list[MetricResult] = []
    frames = []
    everything = [zero_shot_read_out(model, protocol), *read_outs]
    tests = [_items(read_out, data.test, protocol) for read_out in everything]
    for read_out, items in zip(everything, tests, strict=True):
        validation = None if data.validation is None else _items(read_out, data.validation, protocol)
        provenance = Provenance(
            dataset=data.dataset,
            class_set=class_set_name(protocol.labels, len(data.test.keys)),
            label_source=data.label_source,
            protocol=read_out.description,
        )
        thresholds = [choice.thresholds(items, validation) for choice in choices]
        metrics += measure_items(
            items, provenance, _class_sets(protocol, data.test.keys), thresholds, options
        )
        frames.append(items.rows(provenance).frame)
    name, revision = model_identity(model)
    results = Results(
        model_id=name,
        model_revision=revision,
        created=datetime.now(UTC),
        phantom=data.is_phantom,
        metrics=tuple(metrics),
        not_measured=tuple(data.not_measured),
    )
    rows = ScoreRows(pd.concat(frames, ignore_index=True))
    saturated = 0 if protocol.score == "margin" else num_saturated(tests[0].sample.scores)
    return ZeroShotEvaluation(results, rows, tests[0].size, saturated, data.test.failures)


def _items(read_out: ReadOut, volumes: LabeledVolumes, protocol: Protocol) -> ScoredItems:
    scores = read_out.score(volumes)
    return per_unit(scores, volumes.labels, volumes.volumes.studies, volumes.keys, protocol.unit)


def _class_sets(protocol: Protocol, keys: Sequence[str]) -> dict[str, list[str]]:
    """Findings of the further class sets that are measured, by the names of these sets."""
    sets = [(further, [key for key in further.keys if key in keys]) for further in protocol.class_sets]
    return {class_set_name(further, len(members)): members for further, members in sets if members}
