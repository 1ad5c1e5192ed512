"""``radtower demo``: the whole path on phantoms, and a table of what came out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.extras import register_models, require
from radtower.cli.output import NOT_FOR_DIAGNOSIS, print_table

if TYPE_CHECKING:
    from radtower.demo.walkthrough import DemoSummary
    from radtower.evaluation.results import MetricResult

COLUMNS = ("95 % CI in brackets", "supervised first", "from scratch")


def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for everything it makes.")] = Path(
        "demo_output"
    ),
    seed: Annotated[int, typer.Option(help="Seed of phantoms, reports and training.")] = 0,
) -> None:
    """Phantom scans and reports -> labels -> towers -> zero-shot and retrieval -> export -> reload."""
    require("demo")
    register_models()
    from radtower.demo.walkthrough import run_demo

    print_summary(run_demo(output, seed))


def print_summary(summary: "DemoSummary") -> None:
    """Print what the demo found: every number with its interval and n, and what it was measured against."""
    silver = {item.metric: item for item in summary.silver if item.finding is None}
    print_table(
        f"Silver labels of phantom reports (test, n = {silver['macro_auroc'].n}), against the gold status",
        ("", "value (95 % CI)"),
        [("macro AUROC", _value(silver["macro_auroc"])), ("macro F1", _value(silver["macro_f1"]))],
    )
    both = (summary.pretrained, summary.from_scratch)
    macro = [results.get("macro_auroc") for results in both]
    findings = [item.finding for item in summary.pretrained.metrics if item.metric == "auroc"]
    per_finding = [[results.get("auroc", finding=finding) for results in both] for finding in findings]
    print_table(
        f"Zero-shot AUROC, phantom scans of the test split (n = {macro[0].n}), against the phantom's truth",
        COLUMNS,
        [
            ("macro", *map(_value, macro)),
            *(
                (f"  {finding}".replace("_", " "), *map(_value, pair))
                for finding, pair in zip(findings, per_finding, strict=True)
            ),
        ],
    )
    recalls = [
        (item.metric, item.direction)
        for item in summary.pretrained.metrics
        if item.metric.startswith("recall_at_")
    ]
    print_table(
        f"Retrieval of the one matching item among {macro[0].n}, same scans and their reports",
        COLUMNS,
        [
            (
                f"{metric} {direction}".replace("_at_", "@").replace("_", " "),
                *(_value(results.get(metric, direction=direction)) for results in both),
            )
            for metric, direction in recalls
        ],
    )
    print(f"Exported model: {summary.export}")
    print(f"  reloaded without RadTower; largest difference of an embedding: {summary.reload_difference:.1e}")
    print(f"Picture: {summary.figure}")
    print(f"Page with tables, curves, gallery and map: {summary.page}")
    print(f"These are phantom results: they show that the software works. {NOT_FOR_DIAGNOSIS}")


def _value(item: "MetricResult") -> str:
    if item.value is None or item.ci_low is None or item.ci_high is None:
        return "undefined"
    return f"{item.value:.2f} ({item.ci_low:.2f}-{item.ci_high:.2f})"


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(demo)
