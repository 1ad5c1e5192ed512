"""All metrics of one read-out: per finding, their mean, and their means over further class sets.

Axes: N items, F findings.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from radtower.evaluation.decisions.finding_metrics import decision_results, ranking_results
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.decisions.thresholds import Threshold
from radtower.evaluation.results import MetricResult, Provenance
from radtower.evaluation.retrieval.precisions import average_precision_at_random
from radtower.evaluation.zero_shot.scored_items import ScoredItems


@dataclass(frozen=True, kw_only=True)
class MeasureOptions:
    """How to measure.

    Args:
        specificity: At which the sensitivity is measured; in (0, 1).
        num_resamples: Of the patients.
        seed: Of the resampling.

    Raises:
        ValueError: If ``specificity`` is not in (0, 1).
    """

    specificity: float = 0.9
    num_resamples: int = 2000
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.specificity < 1:
            raise ValueError(f"specificity must be between 0 and 1, got {self.specificity}. Use 0.9.")


def measure_items(
    items: ScoredItems,
    provenance: Provenance,
    class_sets: Mapping[str, Sequence[str]],
    thresholds: Sequence[Sequence[Threshold]] = (),
    options: MeasureOptions | None = None,
) -> list[MetricResult]:
    """Measure a read-out.

    Args:
        items: Scores and labels.
        provenance: Data, class set, label source and read-out.
        class_sets: Further means: the findings of each, by the name that results give it.
        thresholds: Decisions are measured at each of these, one threshold per finding; none measures none.
        options: None for the usual.

    Returns:
        The means of the class set first. Every result says how many items there are where they are not rows,
        and how many labels are masked; an average precision, what a random order gets.
    """
    options = options or MeasureOptions()
    results = []
    for decisions in (None, *thresholds):
        results += _measured(items.sample, provenance, decisions, options)
        for name, keys in class_sets.items():
            columns = [list(items.sample.keys).index(key) for key in keys]
            part = None if decisions is None else [decisions[column] for column in columns]
            further = provenance.model_copy(update={"class_set": name})
            measured = _measured(_part(items.sample, columns), further, part, options)
            results += [item for item in measured if item.finding is None]
    return [_said(item, items) for item in results]


def _measured(
    sample: FindingScores,
    provenance: Provenance,
    thresholds: Sequence[Threshold] | None,
    options: MeasureOptions,
) -> list[MetricResult]:
    drawn = {"num_resamples": options.num_resamples, "seed": options.seed}
    if thresholds is None:
        return ranking_results(sample, provenance, specificity=options.specificity, **drawn)
    return decision_results(sample, thresholds, provenance, **drawn)


def _part(sample: FindingScores, columns: list[int]) -> FindingScores:
    keys = [sample.keys[column] for column in columns]
    return replace(
        sample,
        scores=sample.scores[:, columns],
        labels=sample.labels[:, columns],
        keys=keys,
        undefined={key: why for key, why in sample.undefined.items() if key in keys},
    )


def _said(item: MetricResult, items: ScoredItems) -> MetricResult:
    num_masked = len(items.item_ids) - item.n
    notes = [
        item.note,
        items.note,
        items.size if items.unit == "study" else None,
        f"{num_masked} more without a known label" if num_masked else None,
    ]
    is_precision = (
        item.metric == "average_precision" and item.value is not None and item.n_positive is not None
    )
    chance = item.chance
    if is_precision and item.n_positive is not None:
        chance = average_precision_at_random(item.n_positive, item.n)
    return item.model_copy(update={"note": "; ".join(filter(None, notes)) or None, "chance": chance})
