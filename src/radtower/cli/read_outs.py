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
    for answers in dict.fromkeys(_answers(item) for item in items):
        of_all = [item for item in items if _answers(item) == answers and item.finding is None]
        baselines = list(dict.fromkeys(_other(item) for item in of_all if item.metric.endswith(_BASELINE)))
        cells = {(item.metric, _other(item)): value_with_interval(item) for item in of_all}
        rows = [
            (
                item.metric.replace("_", " "),
                value_with_interval(item),
                *(
                    cells.get((item.metric + suffix, name), "-")
                    for name in baselines
                    for suffix in (_BASELINE, _DIFFERENCE)
                ),
            )
            for item in of_all
            if not item.metric.endswith((_BASELINE, _DIFFERENCE))
        ]
        titles = (title for name in baselines for title in (name, "gain"))
        print_table(f"reports found, {answers}", ("", "found", *titles), rows)
    found = {(item.finding, item.metric): item for item in items if item.finding is not None}
    metrics = list(dict.fromkeys(metric for _, metric in found))
    rows = [
        (str(finding), *(value_with_interval(found[finding, metric]) for metric in metrics))
        for finding in dict.fromkeys(finding for finding, _ in found)
    ]
    print_table("reports found, top 1, by finding", ("", *(m.replace("_", " ") for m in metrics)), rows)
    print("Best of several is chosen by who knows the truth: an upper bound, for the baselines, too.")


def _answers(item: MetricResult) -> str:
    return str(item.protocol).partition("; ")[0]


def _other(item: MetricResult) -> str:
    """The baseline that a number is of, or is compared with."""
    return str(item.protocol).partition("; ")[2].removeprefix("model minus ")
