"""Every metric of findings with its interval: the macro means first, then finding by finding.

A finding with one label value is undefined in all of them, also in a resample, and is in no macro mean.
Axes: N items, F findings, R resamples.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from radtower.evaluation.bootstrap import FEW_PATIENTS
from radtower.evaluation.decisions.confusion import Confusion, count_decisions
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.decisions.thresholds import Threshold, common_source
from radtower.evaluation.metrics import counts_by_row, mean_over_findings
from radtower.evaluation.ranked_scores import RankedScores
from radtower.evaluation.results import MetricResult, Provenance
from radtower.evaluation.task_scores import Metric, TaskScores

DECISION_METRICS: dict[str, Callable[[Confusion], np.ndarray]] = {
    "accuracy": Confusion.accuracy,
    "balanced_accuracy": Confusion.balanced_accuracy,
    "precision": Confusion.precision,
    "recall": Confusion.recall,
    "specificity": Confusion.specificity,
    "f1": Confusion.f1,
    "weighted_f1": Confusion.weighted_f1,
}


def ranking_results(
    sample: FindingScores,
    provenance: Provenance,
    *,
    specificity: float = 0.9,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[MetricResult]:
    """Measure AUROC, average precision and the sensitivity at a specificity; see :func:`ranking_task`."""
    return ranking_task(sample, provenance, specificity).results(num_resamples, seed)


def decision_results(
    sample: FindingScores,
    thresholds: Sequence[Threshold],
    provenance: Provenance,
    *,
    num_resamples: int = 2000,
    seed: int = 0,
) -> list[MetricResult]:
    """Measure accuracy, precision, recall, F1 and their like at thresholds; see :func:`decision_task`."""
    return decision_task(sample, thresholds, provenance).results(num_resamples, seed)


def ranking_task(sample: FindingScores, provenance: Provenance, specificity: float = 0.9) -> TaskScores:
    """Return the metrics that need no threshold, ready to be resampled or compared with another model.

    The sensitivity at a specificity is that of the best threshold for the rows at hand, also in every
    resample: its interval holds the uncertainty of the threshold, and no validation split is needed.

    Raises:
        ValueError: If ``specificity`` is not in (0, 1).
    """
    if not 0 < specificity < 1:
        raise ValueError(f"specificity must be between 0 and 1, got {specificity}. Use 0.9.")
    columns = sample.scored_columns
    ranked = [RankedScores(sample.scores[:, f], sample.labels[:, f]) for f in columns]
    names = ["auroc", "average_precision", f"sensitivity_at_{specificity:g}_specificity"]

    def measure(counts: np.ndarray) -> np.ndarray:
        values = np.full((len(names), counts.shape[1], len(sample.keys)), np.nan)
        for column, finding in zip(columns, ranked, strict=True):
            ranks = finding.weighed(counts)
            values[:, :, column] = (
                ranks.auroc(),
                ranks.average_precision(),
                ranks.sensitivity_at(specificity),
            )
        return values

    note = "the threshold is chosen on these rows, anew in every resample"
    notes = {(names[2], key): note for key in sample.keys}
    return _task("ranking of findings", sample, provenance, names, measure, notes=notes)


def decision_task(
    sample: FindingScores, thresholds: Sequence[Threshold], provenance: Provenance
) -> TaskScores:
    """Return the metrics of yes/no decisions, ready to be resampled or compared with another model.

    ``f1`` is that of the positive class; ``weighted_f1`` that of both classes, weighted by their rows.

    Args:
        sample: Scores and labels.
        thresholds: One per finding, all of one source, which becomes the ``threshold_source``.
        provenance: Data, class set, label source and read-out.

    Raises:
        ValueError: If there is not one threshold per finding, or their sources differ.
    """
    if len(thresholds) != len(sample.keys):
        raise ValueError(
            f"thresholds must be one per finding, got {len(thresholds)} for {len(sample.keys)} findings."
        )
    provenance = provenance.model_copy(update={"threshold_source": common_source(thresholds)})
    reasons = {
        key: threshold.undefined_because
        for key, threshold in zip(sample.keys, thresholds, strict=True)
        if threshold.undefined_because
    }
    predicted = np.column_stack(
        [threshold.is_positive(sample.scores[:, f]) for f, threshold in enumerate(thresholds)]
    )
    is_undecided = np.array([key in reasons or key in sample.undefined for key in sample.keys])
    names = list(DECISION_METRICS)

    def measure(counts: np.ndarray) -> np.ndarray:
        decisions = count_decisions(predicted, sample.labels, counts)
        is_one_class = (decisions.num_positive == 0) | (decisions.num_negative == 0)
        values = np.stack([metric(decisions) for metric in DECISION_METRICS.values()])
        return np.where(is_one_class | is_undecided[:, None], np.nan, values).transpose(0, 2, 1)

    notes = {
        (name, key): f"threshold {'>' if threshold.is_strict else '>='} {threshold.value:.6g}"
        for key, threshold in zip(sample.keys, thresholds, strict=True)
        if threshold.value is not None
        for name in names
    }
    task = _task("decisions on findings", sample, provenance, names, measure, notes=notes, reasons=reasons)
    of_finding = {key: t.lowest_positive for key, t in zip(sample.keys, thresholds, strict=True)}
    metrics = [
        replace(metric, threshold=of_finding[metric.finding]) if metric.finding else metric
        for metric in task.metrics
    ]
    return replace(task, metrics=tuple(metrics))


def _task(
    name: str,
    sample: FindingScores,
    provenance: Provenance,
    names: Sequence[str],
    measure: Callable[[np.ndarray], np.ndarray],
    *,
    notes: dict[tuple[str, str], str],
    reasons: dict[str, str] | None = None,
) -> TaskScores:
    """Put macro means in front of ``measure``: counts ``(N, R)`` -> values ``(metrics, R, F)``."""
    values = measure(np.ones((len(sample.labels), 1)))[:, 0]
    reasons = {**(reasons or {}), **sample.undefined}
    few = [_few_patients(sample, column) for column in range(len(sample.keys))]
    macros = [
        Metric(
            name=f"macro_{metric}",
            n=len(sample.labels),
            note=_mean_of(~np.isnan(row), few),
            undefined_because="it is undefined for every finding",
        )
        for metric, row in zip(names, values, strict=True)
    ]
    singles = [
        Metric(
            name=metric,
            n=int(sample.num_known[column]),
            n_positive=int(sample.num_positive[column]),
            finding=key,
            note="; ".join(filter(None, [notes.get((metric, key)), few[column]])) or None,
            undefined_because=reasons.get(key) or _why_undefined(sample, column, metric),
        )
        for column, key in enumerate(sample.keys)
        for metric in names
    ]

    def weighted(counts: np.ndarray) -> np.ndarray:
        resampled = measure(counts_by_row(counts))
        by_finding = resampled.transpose(1, 2, 0).reshape(len(counts), -1)
        return np.column_stack([*map(mean_over_findings, resampled), by_finding])

    return TaskScores(
        task=name,
        provenance=provenance,
        metrics=(*macros, *singles),
        patient_ids=np.asarray(sample.patient_ids),
        weighted=weighted,
    )


def _few_patients(sample: FindingScores, column: int) -> str | None:
    """What to say about an interval from few patients; a class without any is said elsewhere."""
    patients = np.asarray(sample.patient_ids)
    rarer = min(len(np.unique(patients[sample.labels[:, column] == label])) for label in (0, 1))
    if not 0 < rarer < FEW_PATIENTS:
        return None
    return f"{rarer} patients in the rarer class: below {FEW_PATIENTS} intervals tend to be too narrow"


def _mean_of(is_defined: np.ndarray, few: Sequence[str | None]) -> str:
    """What to say about a mean over findings: with few patients its interval is too narrow, as theirs are."""
    note = f"mean of {int(is_defined.sum())} of {len(is_defined)} findings"
    num_few = sum(found is not None for found, known in zip(few, is_defined, strict=True) if known)
    return f"{note}; {num_few} of them with few patients in the rarer class" if num_few else note


def _why_undefined(sample: FindingScores, column: int, metric: str) -> str:
    known, positive = int(sample.num_known[column]), int(sample.num_positive[column])
    if not known:
        return "no known label"
    if positive in (0, known):
        return f"one class only: {positive} of {known} have the finding"
    return f"{metric} has nothing to divide by: no item is called positive"
