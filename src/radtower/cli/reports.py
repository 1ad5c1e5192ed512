"""``radtower reports``: tables of reports, and pairs for training."""

from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.output import print_table

if TYPE_CHECKING:
    from pandas import DataFrame

reports_app = typer.Typer(no_args_is_help=True, help="Make tables of reports, and pairs for training.")
Table = Annotated[Path, typer.Option("--output", "-o", help="CSV or parquet.")]


class Task(StrEnum):
    """What belongs together."""

    FINDINGS_IMPRESSION = "findings_impression"
    REPORT_REWRITE = "report_rewrite"


class LabelKeys(StrEnum):
    """What makes two rows no negatives of each other."""

    LABELS = "labels"
    TEXT = "text"


@reports_app.command()
def openi(reports: Annotated[Path, typer.Argument(help="reports.csv of Open-i.")], output: Table) -> None:
    """Write the report table of Open-i, with its fixed split."""
    from radtower.data.layouts.report_sets import read_openi_reports

    _write_table(read_openi_reports(reports), output)


@reports_app.command("ct-rate")
def ct_rate(
    reports: Annotated[Path, typer.Argument(help="train.csv of CT-CLIP's text classifier.")],
    volume_names: Annotated[
        Path, typer.Option(help="map_train_classifier.csv, which says whose report it is.")
    ],
    output: Table,
) -> None:
    """Write the report table of the 800 hand-labeled CT reports, with its fixed split."""
    from radtower.data.layouts.report_sets import read_ct_rate_reports

    _write_table(read_ct_rate_reports(reports, volume_names), output)


@reports_app.command()
def pairs(
    table: Annotated[Path, typer.Argument(help="Report table, or a manifest with reports.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="parquet, JSONL or CSV.")],
    task: Annotated[
        list[Task] | None, typer.Option(help="What to pair; can be repeated. Without: all.")
    ] = None,
    negatives: Annotated[int, typer.Option(help="Corruptions of the positive per row, at most.")] = 3,
    label_keys: Annotated[
        LabelKeys, typer.Option(help="What makes two rows no negatives of each other.")
    ] = LabelKeys.LABELS,
    seed: Annotated[int, typer.Option(help="Seed of rewriting and corruption.")] = 0,
) -> None:
    """Write pairs for contrastive training: findings with impression, report with rewrite, hard negatives."""
    from radtower.data.reports.pair_building import TASKS, PairOptions, build_pairs
    from radtower.data.reports.pairs import write_pairs
    from radtower.data.reports.report_corpus import read_report_table

    options = PairOptions(
        tasks=TASKS if task is None else tuple(t.value for t in task),
        num_negatives=negatives,
        label_keys=label_keys.value,
        seed=seed,
    )
    built = build_pairs(read_report_table(table), options)
    write_pairs(built, output)
    rows = [
        (str(source), str(split), str(len(part)), str(part["negatives"].map(len).sum()))
        for (source, split), part in built.groupby(["source", "split"])[list(built)]
    ]
    print_table(str(output), ("source", "split", "pairs", "negatives"), rows)
    kinds = Counter(kind for row in built["negative_kinds"] for kind in row)
    # With --negatives 1000 these are the pairs that a kind applies to.
    pairs_with = Counter(kind for row in built["negative_kinds"] for kind in set(row))
    counts = [f"{kind} {count} (in {pairs_with[kind]} pairs)" for kind, count in sorted(kinds.items())]
    print(f"Negatives of {len(built)} pairs: {', '.join(counts)}")


def _write_table(frame: "DataFrame", output: Path) -> None:
    from radtower.data.reports.report_corpus import read_report_table, write_report_table

    write_report_table(frame, output)
    table = read_report_table(output)
    rows = [
        (
            str(name),
            str(len(part)),
            str(part["patient_id"].nunique()),
            str(((part["findings"] != "") & (part["impression"] != "")).sum()),
        )
        for name, part in table.frame.groupby("split")
    ]
    title = f"{output}: {len(table.label_names)} label columns"
    print_table(title, ("split", "studies", "patients", "with both sections"), rows)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.add_typer(reports_app, name="reports")
