"""``radtower evaluate retrieval --read-outs``: do the reports that are found say what the true ones say?"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from radtower.cli.extras import require
from radtower.cli.output import print_table, value_with_interval
from radtower.evaluation.results import MetricResult

if TYPE_CHECKING:
    from radtower.data.finding_truth import FindingTruth
    from radtower.data.manifest import Manifest
    from radtower.evaluation.clinical.read_out_plan import ReadOutPlan
    from radtower.evaluation.clinical.text_read_outs import TextScoring
    from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
    from radtower.evaluation.retrieval.query_outcomes import Measures
    from radtower.evaluation.retrieval.ranks import RetrievalOptions

_KS = (1, 5, 10)  # without --k
_BASELINE, _DIFFERENCE = "_baseline", "_difference"
_IN_FILE_ONLY = {f"{mean}_label_{name}" for mean in ("macro", "micro") for name in ("precision", "recall")}
_PREFIXES = ("label_", "macro_label_", "micro_label_", "report_")


@dataclass(frozen=True)
class PlannedReadOuts:
    """What the flags ask for; ``plan`` is None where they ask for none."""

    plan: "ReadOutPlan | None"

    def added_to(
        self,
        measures: "Measures",
        pairs: "EmbeddedPairs | None",
        dataset: str,
        ks: Sequence[int],
        options: "RetrievalOptions",
    ) -> "Measures":
        """Measure, and put the outcome behind that of retrieval."""
        from radtower.evaluation.retrieval.query_outcomes import joined

        if self.plan is None or pairs is None:
            return measures
        return joined((measures, self.plan.measure(pairs, dataset, ks or _KS, options)))


def planned_read_outs(
    is_wanted: bool,
    manifest: "Manifest",
    split: str,
    tasks: Sequence[str],
    text_metrics: Sequence[str],
    label_flags: tuple[str, Path | None, str | None, str | None],
) -> PlannedReadOuts:
    """Read the labels and load what scores texts, before the scans are read.

    Args:
        is_wanted: Whether ``--read-outs`` is given.
        manifest: All splits.
        split: The one that asks.
        tasks: Of the command.
        text_metrics: Names of RadEval's.
        label_flags: Findings, table of labels, its column of ids, and who labeled.

    Raises:
        ValueError: If flags do not fit each other, no report of the split is labeled, or a text metric is
            unknown.
        ImportError: If texts are to be scored and the extra is not installed.
    """
    if not is_wanted:
        if text_metrics:
            raise ValueError("--text-metric must come with --read-outs, got it alone. Add --read-outs.")
        return PlannedReadOuts(None)
    if "pairs" not in tasks:
        raise ValueError(
            f"--read-outs must come with the task pairs, got {', '.join(tasks)}. Between images there are no "
            "reports to find."
        )
    from radtower.data.finding_truth import read_truth
    from radtower.evaluation.clinical.read_out_plan import plan_read_outs
    from radtower.labeling.findings import load_findings

    findings, labels, label_id, label_source = label_flags
    chosen = load_findings(findings)

    def read(volumes: "Manifest") -> "FindingTruth":
        truth = read_truth(volumes, chosen, labels, label_id)
        return replace(truth, source=label_source or truth.source)

    return PlannedReadOuts(plan_read_outs(manifest, split, read, chosen.name, _scoring(text_metrics)))


def _scoring(names: Sequence[str]) -> "TextScoring | None":
    from radtower.evaluation.clinical.text_metrics import checked_text_metrics
    from radtower.evaluation.clinical.text_read_outs import TextScoring

    metrics = checked_text_metrics(names)
    if not metrics:
        return None
    require("radeval")
    from radtower.evaluation.clinical.radeval import SOURCE, RadEvalScorer

    return TextScoring(RadEvalScorer(metrics), SOURCE)


def is_read_out(item: MetricResult) -> bool:
    """Whether a metric is one of the read-outs."""
    return item.metric.startswith(_PREFIXES)


def print_read_outs(items: Sequence[MetricResult]) -> None:
    """One table per kind of answers: what is found beside each baseline, and the gain; then the findings."""
    of_all = [item for item in items if item.finding is None and _stem(item) not in _IN_FILE_ONLY]
    baselines = list(dict.fromkeys(_other(item) for item in of_all if _other(item)))
    for answers in dict.fromkeys(_answers(item) for item in of_all):
        cells = {(item.metric, _other(item)): item for item in of_all if _answers(item) == answers}
        rows = []
        for metric in (metric for metric, other in cells if not other):
            row = [_title(metric), value_with_interval(cells[metric, ""])]
            for name in baselines:
                row.append(_value(cells.get((metric + _BASELINE, name))))
                row.append(_gain(cells.get((metric + _DIFFERENCE, name))))
            rows.append(row)
        titles = (title for name in baselines for title in (name, "gain"))
        print_table(f"reports found, {answers}", ("", "found", *titles), rows)
    found = {(item.finding, item.metric): item for item in items if item.finding is not None}
    metrics = list(dict.fromkeys(metric for _, metric in found))
    by_finding = [
        (str(finding), *(value_with_interval(found[finding, metric]) for metric in metrics))
        for finding in dict.fromkeys(finding for finding, _ in found)
    ]
    print_table("reports found, top 1, by finding", ("", *map(_title, metrics)), by_finding)
    print(
        "Best of several is chosen by who knows the truth: an upper bound, for the baselines, too. "
        "Precision and recall of all findings together are in the file."
    )


def _answers(item: MetricResult) -> str:
    return str(item.protocol).partition("; ")[0]


def _other(item: MetricResult) -> str:
    """The baseline that a number is of, or is compared with."""
    return str(item.protocol).partition("; ")[2].removeprefix("model minus ")


def _stem(item: MetricResult) -> str:
    return item.metric.removesuffix(_BASELINE).removesuffix(_DIFFERENCE)


def _title(metric: str) -> str:
    return metric.replace("_", " ").replace("label ", "").replace("f1", "F1").replace("jaccard", "Jaccard")


def _value(item: MetricResult | None) -> str:
    return "-" if item is None else value_with_interval(item)


def _gain(item: MetricResult | None) -> str:
    """A difference may be negative: no dash between its bounds."""
    if item is None or item.value is None:
        return _value(item)
    return f"{item.value:+.2f} ({item.ci_low:+.2f} to {item.ci_high:+.2f})"
