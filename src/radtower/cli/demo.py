"""``radtower demo``: the whole path on phantoms, and a table of what came out."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.extras import register_models, require
from radtower.cli.output import NOT_FOR_DIAGNOSIS, print_table

if TYPE_CHECKING:
    from radtower.demo.walkthrough import DemoSummary
    from radtower.evaluation.results import MetricResult

RECALLED = ("recall_at_1", "recall_at_5", "recall_at_10")


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
        "Silver labels against the gold status of phantom reports (test split)",
        ("", "value", "95 % CI", "n"),
        [
            _row(name, silver[metric])
            for name, metric in (("macro AUROC", "macro_auroc"), ("macro F1", "macro_f1"))
        ],
    )
    both = (summary.pretrained, summary.from_scratch)
    columns = ("", "supervised first", "95 % CI", "from scratch", "95 % CI", "n")
    rows = [
        [label, *_value(pair[0]), *_value(pair[1]), str(pair[0].n)]
        for label, pair in [
            ("zero-shot macro AUROC", [results.get("macro_auroc") for results in both]),
            *(
                (f"  {item.finding} ".replace("_", " "), [r.get("auroc", finding=item.finding) for r in both])
                for item in summary.pretrained.metrics
                if item.metric == "auroc"
            ),
            *(
                (
                    f"{metric.replace('_', ' ')}, {direction.replace('_', ' ')}",
                    [results.get(metric, direction=direction) for results in both],
                )
                for direction in ("image_to_report", "report_to_image")
                for metric in RECALLED
            ),
        ]
    ]
    print_table("Phantom scans (test split), scored against the truth of the phantom", columns, rows)
    print(f"Exported model: {summary.export}")
    print(f"  reloaded without RadTower; largest difference of an embedding: {summary.reload_difference:.1e}")
    print(f"Picture: {summary.figure}")
    print(f"These are phantom results: they show that the software works. {NOT_FOR_DIAGNOSIS}")


def _row(label: str, item: "MetricResult") -> list[str]:
    return [label, *_value(item), str(item.n)]


def _value(item: "MetricResult") -> tuple[str, str]:
    if item.value is None or item.ci_low is None or item.ci_high is None:
        return "undefined", "-"
    return f"{item.value:.3f}", f"{item.ci_low:.3f} to {item.ci_high:.3f}"


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(demo)
