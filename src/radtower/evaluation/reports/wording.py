"""How results are written for people: names of metrics, findings and directions, and numbers."""

import math
from collections.abc import Sequence

from radtower.evaluation.results import MetricResult, Provenance, Results

NOT_FOR_DIAGNOSIS = "Research use only, not for diagnosis."
PHANTOM_NOTICE = (
    "Phantom results: scans or reports are synthetic. "
    "They show that the software works, not that a model is good."
)
MEAN_ROW = "mean of the findings"
_MACRO = "macro_"
_PREFIXES = ("macro", "micro", "pooled", "weighted", "legacy")
_NAMES = {
    "auroc": "AUROC",
    "average_precision": "average precision",
    "ece": "calibration error",
    "f1": "F1",
    "mrr": "MRR",
    "ndcg": "nDCG",
    "map": "mAP",
}
# What is read here is better where it is higher; of a metric in neither list nothing is called best.
_HIGHER = {
    *("auroc", "average_precision", "f1", "accuracy", "precision", "recall", "sensitivity", "specificity"),
    *("balanced_accuracy", "kappa", "mrr", "map", "ndcg", "exact_row", "weighted_f1"),
}
_LOWER = {"median_rank", "ece", "brier", "irma_error"}


def metric_name(metric: str) -> str:
    """Write the name of a metric, ``recall_at_5`` as ``recall@5``."""
    base, at, k = metric.partition("_at_")
    prefix = next((p for p in _PREFIXES if base.startswith(f"{p}_")), "")
    base = base.removeprefix(f"{prefix}_")
    words = " ".join(_NAMES.get(word, word) for word in base.split("_"))
    name = " ".join(filter(None, [prefix, _NAMES.get(base, words)]))
    if not at:
        return name
    return f"{name}@{k}" if k.isdigit() else f"{name} at {k.replace('_', ' ')}"


def finding_name(finding: str) -> str:
    """Write a finding, ``pleural_effusion`` as ``pleural effusion``."""
    return finding.replace("_", " ")


def shortened(name: str, width: int) -> str:
    """Cut a name that is longer than ``width`` letters, and show that it is cut."""
    return name if len(name) <= width else f"{name[: width - 3]}..."


def row_name(item: MetricResult) -> str:
    """Say what of a block a number is about: a finding, their mean, a direction, or all."""
    parts = [finding_name(item.finding)] if item.finding is not None else []
    if item.direction is not None:
        parts.append(item.direction.replace("_", " "))
    if item.finding is None and item.metric.startswith(_MACRO):
        parts.insert(0, MEAN_ROW)
    return ", ".join(parts) or "all"


def base_metric(item: MetricResult) -> str:
    """Return the column of a number: the mean of the findings stands in the column of the findings."""
    return item.metric.removeprefix(_MACRO) if item.finding is None else item.metric


def is_higher_better(metric: str) -> bool | None:
    """Whether more is better; None where this is not known."""
    base = metric.removeprefix(_MACRO).partition("_at_")[0]
    if base in _HIGHER:
        return True
    return False if base in _LOWER else None


def numbers(item: MetricResult) -> tuple[str, str, str] | None:
    """Write value, low and high; None where the metric is undefined."""
    if item.value is None or item.ci_low is None or item.ci_high is None:
        return None
    value, low, high = (_number(number, item.metric) for number in (item.value, item.ci_low, item.ci_high))
    return value, low, high


def value_and_interval(item: MetricResult, dash: str = "-", minus: str = "-") -> str:
    """Write ``0.512 (0.461-0.570)``; a negative bound takes ``to`` in place of the dash."""
    written = numbers(item)
    if written is None:
        return "undefined"
    between = " to " if "-" in written[1] + written[2] else dash
    value, low, high = (number.replace("-", minus) for number in written)
    return f"{value} ({low}{between}{high})"


def chance_number(item: MetricResult) -> str:
    """Write what a random answer gets."""
    return "" if item.chance is None else _number(item.chance, item.metric)


def counts(item: MetricResult) -> str:
    """Write the number of rows, and before it of those that have the finding."""
    return str(item.n) if item.n_positive is None else f"{item.n_positive} / {item.n}"


def where(provenance: Provenance) -> tuple[str, str, str, str | None]:
    """Return what rows and numbers share: data set, class set, label source, protocol."""
    return provenance.dataset, provenance.class_set, provenance.label_source, provenance.protocol


def described(provenance: Provenance) -> str:
    """Write what a number was measured on."""
    parts = [
        provenance.dataset,
        f"class set: {provenance.class_set}",
        f"labels: {provenance.label_source}",
        f"protocol: {provenance.protocol}" if provenance.protocol else "",
        f"thresholds: {provenance.threshold_source}" if provenance.threshold_source else "",
    ]
    return "; ".join(filter(None, parts))


def interval_method(items: Sequence[MetricResult]) -> str:
    """Write level and method of the intervals."""
    return "; ".join(dict.fromkeys(f"{item.ci_level:.0%} intervals: {item.ci_method}" for item in items))


def model_names(results: Sequence[Results]) -> list[str]:
    """Return a name for each, its id; those that share an id are numbered."""
    ids = [item.model_id for item in results]
    seen: dict[str, int] = {}
    names = []
    for model_id in ids:
        seen[model_id] = seen.get(model_id, 0) + 1
        names.append(model_id if ids.count(model_id) == 1 else f"{model_id} ({seen[model_id]})")
    return names


def _number(number: float, metric: str) -> str:
    is_rank = "rank" in metric.split("_")
    decimals = 1 if is_rank else 3
    if abs(number) >= 100:
        decimals = max(0, decimals - round(math.log10(abs(number))) + 1)
    text = f"{number:.{decimals}f}"
    return text.removeprefix("-") if float(text) == 0 else text
