"""Differences of two models with intervals, from the same resamples of the patients.

Axes: N items or queries, K metrics, R resamples.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from radtower.evaluation.bootstrap import Interval, count_bootstrap, percentile_interval
from radtower.evaluation.comparison.paired_rows import PairedQueries
from radtower.evaluation.decisions.finding_metrics import decision_task, ranking_task
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.decisions.thresholds import Threshold
from radtower.evaluation.results import MetricResult, Provenance
from radtower.evaluation.retrieval.score_ranks import weighted_median
from radtower.evaluation.task_scores import TaskScores, mean_scores

Weighted = Callable[[np.ndarray], np.ndarray]
_SENSITIVITY = re.compile(r"sensitivity_at_([\d.]+)_specificity")
_RECALL = re.compile(r"recall_at_(\d+)")
# The source is not looked at: it names the task, and thresholds of two models are compared by rule.
_ANY = Provenance(dataset="rows", class_set="rows", label_source="rows")


@dataclass(frozen=True)
class Resampling:
    """How often and by which seed patients are resampled."""

    num_resamples: int = 2000
    seed: int = 0


@dataclass(frozen=True)
class PairedValue:
    """A metric of two models, computed from their rows, and the interval of second minus first.

    ``is_same_mean`` is false for macro means over findings that are not the same for both models.
    """

    first: float
    second: float
    interval: Interval
    is_same_mean: bool = True


Key = tuple[str, str | None, str | None]  # metric, finding, threshold source


def score_differences(
    samples: tuple[FindingScores, FindingScores],
    metrics: Sequence[MetricResult],
    thresholds: tuple[Sequence[MetricResult], Sequence[MetricResult]],
    resampling: Resampling,
) -> dict[Key, PairedValue]:
    """Return the differences of ranking metrics, and of decisions at each model's own thresholds.

    Args:
        samples: Paired scores of both models.
        metrics: Results that were measured on them; they name specificities and sources of thresholds.
        thresholds: Results of both models that name thresholds of the findings; of two for one finding the
            later counts.
        resampling: Of the patients.
    """
    names = {item.metric for item in metrics}
    specificities = {float(m[1]) for m in map(_SENSITIVITY.search, names) if m} or {0.9}
    pairs: list[tuple[str | None, list[TaskScores]]] = [
        (None, [ranking_task(sample, _ANY, value) for sample in samples]) for value in sorted(specificities)
    ]
    sources = dict.fromkeys(item.threshold_source for item in metrics if item.threshold_source)
    for rule in sources:
        of_models = [_thresholds(items, rule) for items in thresholds]
        pairs.append(
            (
                rule,
                [
                    decision_task(sample, [chosen.get(key, _missing(rule)) for key in sample.keys], _ANY)
                    for sample, chosen in zip(samples, of_models, strict=True)
                ],
            )
        )
    found: dict[Key, PairedValue] = {}
    for source, tasks in pairs:
        found |= _task_differences(source, tasks, resampling)
    return found


def query_differences(
    queries: PairedQueries, names: Sequence[str], resampling: Resampling
) -> dict[Key, PairedValue]:
    """Return the differences of metrics that are means over queries, or follow from ranks.

    Args:
        queries: Paired answers.
        names: Metrics asked for; those that the rows do not tell are left out.
        resampling: Of the patients of the queries.
    """
    found: dict[Key, PairedValue] = {}
    for name in names:
        weighted = [_query_metric(name, answers) for answers in (queries.first, queries.second)]
        if weighted[0] is not None and weighted[1] is not None:
            once = np.ones((1, len(queries.patient_ids)), dtype=np.int64)
            interval = _interval(weighted[0], weighted[1], queries.patient_ids, resampling)
            values = (float(weighted[0](once)[0]), float(weighted[1](once)[0]))
            found[name, None, None] = PairedValue(*values, interval[0])
    return found


def _query_metric(name: str, answers: Mapping[str, np.ndarray]) -> Weighted | None:
    """Counts ``(R, N)`` -> values ``(R,)``; None where the rows do not tell."""
    if name in answers:
        return _mean(answers[name])
    ranks = answers.get("rank")
    if ranks is None:
        return None
    if recall := _RECALL.fullmatch(name):
        return _mean((ranks <= int(recall[1])).astype(np.float64))
    if name == "mrr":
        return _mean(1 / ranks)
    if name == "median_rank":
        return lambda counts: weighted_median(ranks, counts)
    return None


def _mean(values: np.ndarray) -> Weighted:
    weighted = mean_scores(values[:, None])
    return lambda counts: weighted(counts)[:, 0]


def _task_differences(
    source: str | None, tasks: Sequence[TaskScores], resampling: Resampling
) -> dict[Key, PairedValue]:
    values = [task.values() for task in tasks]
    intervals = _interval(tasks[0].weighted, tasks[1].weighted, tasks[0].patient_ids, resampling)
    found: dict[Key, PairedValue] = {}
    for column, metric in enumerate(tasks[0].metrics):
        members = [
            other
            for other, single in enumerate(tasks[0].metrics)
            if single.finding is not None and f"macro_{single.name}" == metric.name
        ]
        is_same = np.array_equal(*[np.isnan(v[members]) for v in values])
        first, second = (float(v[column]) for v in values)
        found[metric.name, metric.finding, source] = PairedValue(first, second, intervals[column], is_same)
    return found


def _interval(
    first: Weighted, second: Weighted, patient_ids: np.ndarray, resampling: Resampling
) -> list[Interval]:
    """Intervals of second minus first, in the same resamples."""
    values = count_bootstrap(
        lambda counts: second(counts) - first(counts), patient_ids, resampling.num_resamples, resampling.seed
    )
    columns = values.reshape(len(values), -1).T
    return [percentile_interval(column, patient_ids) for column in columns]


def _thresholds(metrics: Sequence[MetricResult], source: str) -> dict[str, Threshold]:
    return {
        item.finding: Threshold(item.threshold, source)
        for item in metrics
        if item.finding is not None and item.threshold_source == source and item.threshold is not None
    }


def _missing(source: str) -> Threshold:
    return Threshold(None, source, undefined_because="no threshold in the results")
