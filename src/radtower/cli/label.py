"""``radtower label``: silver labels for a table of reports."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.labelers import Backend, EncoderOptions, EndpointOptions, LabelerOptions
from radtower.cli.output import print_failures, print_json, progress_bar

if TYPE_CHECKING:
    from radtower.labeling.labeling_summary import LabelingPlan, LabelingSummary


def label(  # noqa: PLR0913 -- one argument per flag
    reports: Annotated[
        str, typer.Argument(help="CSV, JSONL or parquet, or hf:NAME[:SPLIT], with an id and a text column.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="labels.parquet; what was answered is kept beside it.")
    ],
    model: Annotated[str, typer.Option(help="Folder of a trained labeler, or the endpoint's model name.")],
    backend: Annotated[Backend, typer.Option(help="Who labels.")] = Backend.ENCODER,
    findings: Annotated[str, typer.Option(help="Findings set, or a YAML file.")] = "ct_rate_18",
    id_column: Annotated[str, typer.Option(help="Column of report ids.")] = "study_id",
    text_column: Annotated[str, typer.Option(help="Column of report texts.")] = "report",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again where a reply could not be used, too.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    base_url: Annotated[str | None, typer.Option(help="Endpoint: its address.")] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="Endpoint: environment variable with the key.")
    ] = None,
) -> None:
    """Label each different report once; run again to go on after a kill."""
    options: LabelerOptions
    if backend is Backend.ENCODER:
        options = EncoderOptions(model=model)
    else:
        options = EndpointOptions(model=model, base_url=base_url, api_key_env=api_key_env)
    summary = _label(options, reports, output, findings, (id_column, text_column), retry_failed, json)
    if json:
        print_json(asdict(summary))
    else:
        _print_summary(summary, output)
    _print_failures(summary)
    if summary.num_failed:
        raise typer.Exit(1)


def _label(
    options: LabelerOptions,
    reports: str,
    output: Path,
    findings: str,
    columns: tuple[str, str],
    should_retry_failed: bool,
    is_quiet: bool,
) -> "LabelingSummary":
    """Refuse what can be refused before weights are loaded or a request is paid."""
    from radtower.data.report_table import ReportStream
    from radtower.labeling.findings import load_findings
    from radtower.labeling.labeler import LabelingRun
    from radtower.labeling.ledger import open_ledger
    from radtower.labeling.report_labels import StopLabeling

    findings_set = load_findings(findings)
    stream = ReportStream(reports, *columns)
    with open_ledger(output) as ledger:
        counts = ledger.register(stream)
        labeler = options.build(findings_set)
        try:
            run = LabelingRun(
                ledger,
                counts,
                stream,
                labeler.backend,
                labeler.findings,
                should_retry_failed=should_retry_failed,
            )
            if not is_quiet:
                _print_plan(run.plan)
            labeler.on_plan(run.plan)
            with progress_bar("Labeling reports", counts.num_unique) as on_progress:
                run.label(on_progress)
            return run.write(output)
        except StopLabeling as stop:  # before any report had labels
            raise ValueError(str(stop)) from None


def _print_plan(plan: "LabelingPlan") -> None:
    if plan.changes:
        print(f"A new generation, {plan.generation}: answers of the last run do not count. Changed:")
        for change in plan.changes:
            print(f"  {change}")
    num_duplicates = plan.num_reports - plan.num_unique
    print(
        f"{plan.num_reports} reports, {plan.num_unique} unique, {num_duplicates} duplicates; "
        f"{plan.num_to_ask} to ask, {plan.num_unique - plan.num_to_ask} done before or empty"
    )


def _print_summary(summary: "LabelingSummary", output: Path) -> None:
    plan = summary.plan
    print(f"{summary.num_labeled} of {plan.num_unique} unique reports labeled in {output}")
    print(f"Generation {plan.generation}")
    for reason, count in summary.num_failed.items():
        print(f"Failed, {reason}: {count}")
    tokens = [_counted(tokens) for tokens in (summary.tokens_in, summary.tokens_out)]
    cost = "unknown" if summary.cost_usd is None else f"{summary.cost_usd:.4f} USD"
    print(
        f"Tokens in {tokens[0]}, out {tokens[1]}; cost {cost}; dropped quotes {summary.num_dropped_evidence}"
    )


def _counted(number: int | None) -> str:
    return "not counted" if number is None else f"{number:,}"


def _print_failures(summary: "LabelingSummary") -> None:
    print_failures(summary.first_failures)
    num_more = sum(summary.num_failed.values()) - len(summary.first_failures)
    if num_more:
        print_failures({f"{num_more} more": "see the column error of the label table"})
    if summary.stopped is not None:
        print_failures({"the rest": summary.stopped})


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(label)
