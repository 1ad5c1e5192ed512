"""A dual tower measured by a zero-shot protocol, and by what else reads its vectors: results and their rows.

Axes: N volumes, F findings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

import pandas as pd

from radtower.evaluation.pairs.embedded_pairs import model_identity
from radtower.evaluation.read_outs.labeled_vectors import ReadOutScores
from radtower.evaluation.results import MetricResult, Provenance, Results
from radtower.evaluation.rows import ScoreRows
from radtower.evaluation.zero_shot.finding_measures import MeasureOptions, measure_items
from radtower.evaluation.zero_shot.labeled_volumes import LabeledVolumes
from radtower.evaluation.zero_shot.protocol import Protocol, class_set_name
from radtower.evaluation.zero_shot.scan_read_outs import num_saturated, zero_shot_read_out
from radtower.evaluation.zero_shot.scored_items import per_unit
from radtower.evaluation.zero_shot.threshold_choice import ThresholdChoice
from radtower.modeling.modeling_medclip import MedCLIPModel


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
    num_saturated: int


def evaluate_zero_shot(
    model: MedCLIPModel,
    protocol: Protocol,
    data: EvaluationData,
    choices: Sequence[ThresholdChoice] = (),
    options: MeasureOptions | None = None,
    read_outs: Sequence[ReadOutScores] = (),
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
    prompts = zero_shot_read_out(model, protocol, data.test, data.validation)
    for read_out in (prompts, *read_outs):
        items = per_unit(read_out.test, data.test, protocol.unit, read_out.undefined, read_out.note)
        described = read_out.protocol if read_out is prompts else f"{read_out.protocol}, per {protocol.unit}"
        provenance = Provenance(
            dataset=data.dataset,
            class_set=class_set_name(protocol.labels, len(data.test.keys)),
            label_source=data.label_source,
            protocol=described,
        )
        validation = None
        if data.validation is not None and read_out.validation is not None:
            validation = per_unit(read_out.validation, data.validation, protocol.unit, read_out.undefined)
        thresholds = [choice.thresholds(items, validation) for choice in choices]
        class_sets = _class_sets(protocol, data.test.keys)
        metrics += measure_items(items, provenance, class_sets, thresholds, options)
        rows = items.rows(provenance).frame
        frames.append(rows)
        # Once more per class set: models are compared on the rows behind each of their means.
        frames += [
            rows[rows["finding"].isin(keys)].assign(class_set=name) for name, keys in class_sets.items()
        ]
    name, revision = model_identity(model)
    results = Results(
        model_id=name,
        model_revision=revision,
        created=datetime.now(UTC),
        phantom=data.is_phantom,
        metrics=tuple(metrics),
        not_measured=tuple(data.not_measured),
    )
    everything = ScoreRows(pd.concat(frames, ignore_index=True))
    size = per_unit(prompts.test, data.test, protocol.unit).size
    saturated = 0 if protocol.score == "margin" else num_saturated(prompts.test)
    return ZeroShotEvaluation(results, everything, size, saturated)


def _class_sets(protocol: Protocol, keys: Sequence[str]) -> dict[str, list[str]]:
    """Findings of the further class sets that are measured, by the names of these sets."""
    sets = [(further, [key for key in further.keys if key in keys]) for further in protocol.class_sets]
    return {class_set_name(further, len(members)): members for further, members in sets if members}
