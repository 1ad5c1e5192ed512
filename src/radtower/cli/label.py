"""``radtower label``: silver labels for a table of reports."""

from collections.abc import Iterable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from radtower.cli.backend_flags import flag_name, refuse_flags
from radtower.cli.extras import require
from radtower.cli.label_push import PushTo, check_push, push_when_labeled
from radtower.cli.labelers import OPTIONS, Backend, LabelerOptions
from radtower.cli.output import print_failures, print_json, progress_bar

if TYPE_CHECKING:
    from radtower.labeling.answers.labeling_summary import LabelingPlan, LabelingSummary

TASK_FLAGS = ("tasks", "partition", "time", "cores", "memory_gb")


def _tasks(text: str, minimum: int | None = None) -> Any:
    return typer.Option(help=text, rich_help_panel="With --executor", min=minimum)


def _endpoint(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="With --backend endpoint")


def _llm(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="With --backend llm")


def _local(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="With --backend encoder or llm")


def _encoder(text: str, *names: str) -> Any:
    return typer.Option(*names, help=text, rich_help_panel="With --backend encoder")


def label(  # noqa: PLR0913 -- one argument per flag
    context: typer.Context,
    reports: Annotated[
        str, typer.Argument(help="CSV, JSONL or parquet, or hf:NAME[:SPLIT], with an id and a text column.")
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="labels.parquet; what was answered is kept beside it.")
    ],
    model: Annotated[str, typer.Option(help="Folder of a labeler or an LLM; or the endpoint's name of it.")],
    backend: Annotated[Backend, typer.Option(help="Who labels.")] = Backend.ENCODER,
    findings: Annotated[str, typer.Option(help="Findings set, or a YAML file.")] = "ct_rate_18",
    id_column: Annotated[str, typer.Option(help="Column of report ids.")] = "study_id",
    text_column: Annotated[str, typer.Option(help="Column of report texts.")] = "report",
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Ask again where a reply could not be used, too.")
    ] = False,
    push_to: PushTo = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    executor: Annotated[
        Literal["local", "slurm", "ray"] | None,
        typer.Option(help="Label in tasks, through datatrove. Limits of the endpoint hold per task."),
    ] = None,
    tasks: Annotated[int, _tasks("Parts of the reports.", 1)] = 1,
    partition: Annotated[str | None, _tasks("Partition of Slurm.")] = None,
    time: Annotated[str, _tasks("Limit of a Slurm task.")] = "24:00:00",
    cores: Annotated[int, _tasks("Cores per task.", 1)] = 1,
    memory_gb: Annotated[int, _tasks("Memory per core.", 1)] = 6,
    base_url: Annotated[str | None, _endpoint("Its address, http://localhost:8000/v1.")] = None,
    api_key_env: Annotated[str | None, _endpoint("Environment variable with the key.")] = None,
    timeout: Annotated[float, _endpoint("Seconds per request.")] = 120.0,
    max_tokens: Annotated[
        int | None, _endpoint("Limit of one reply, also with --generate; 4096, or 2048 there.")
    ] = None,
    concurrency: Annotated[int, _endpoint("Requests in flight.")] = 16,
    requests_per_minute: Annotated[float | None, _endpoint("Limit of the service.")] = None,
    tokens_per_minute: Annotated[float | None, _endpoint("Limit of the service.")] = None,
    max_retries: Annotated[int, _endpoint("Further tries of a request that was not answered.")] = 6,
    max_retry_after: Annotated[float, _endpoint("Longest Retry-After to heed, in seconds.")] = 300.0,
    logprobs: Annotated[bool, _endpoint("Scores from log-probabilities.", "--logprobs")] = False,
    field: Annotated[list[str] | None, _endpoint("Further field of requests: NAME=JSON.")] = None,
    prices: Annotated[Path | None, _endpoint("YAML table of prices per million tokens.")] = None,
    max_cost: Annotated[float | None, _endpoint("Cap in USD, over all runs.")] = None,
    dry_run: Annotated[bool, _endpoint("Estimate tokens, cost and time; send nothing.", "--dry-run")] = False,
    tokenizer: Annotated[str | None, _endpoint("Tokenizer of the model, for --dry-run.")] = None,
    batch_write: Annotated[Path | None, _endpoint("Write requests for a batch API to this JSONL.")] = None,
    batch_again: Annotated[
        bool, _endpoint("Write what is in an earlier file and was not read, too.", "--batch-again")
    ] = False,
    batch_read: Annotated[list[Path] | None, _endpoint("Read results of a batch API from it.")] = None,
    generate: Annotated[bool, _llm("Write JSON with evidence instead of scoring.", "--generate")] = False,
    dtype: Annotated[
        str, _local("Type of the weights; auto is as stored. Of an encoder, float32 (auto) or bfloat16.")
    ] = "auto",
    calibration: Annotated[str | None, _llm("What to calibrate: mentioned (default), all, none.")] = None,
    threshold: Annotated[float, _encoder("P(present) from which a finding counts as present.")] = 0.5,
    max_length: Annotated[int | None, _encoder("Tokens read at a time; the model's, if left out.")] = None,
    batch_size: Annotated[int | None, _local("Reports or windows read together.")] = None,
    device: Annotated[str | None, _local("Where to run; a GPU, if there is one.")] = None,
    skip_unmatched: Annotated[
        bool, _encoder("Skip what the model labels and the findings set lacks.", "--skip-unmatched")
    ] = False,
    trust_remote_code: Annotated[
        bool, _encoder("Run code that comes with the model.", "--trust-remote-code")
    ] = False,
) -> None:
    """Label each different report once; run again to go on after a kill."""
    endpoint_flags: dict[str, Any] = {
        "base_url": base_url,
        "api_key_env": api_key_env,
        "timeout": timeout,
        "max_tokens": max_tokens,
        "concurrency": concurrency,
        "requests_per_minute": requests_per_minute,
        "tokens_per_minute": tokens_per_minute,
        "max_retries": max_retries,
        "max_retry_after": max_retry_after,
        "logprobs": logprobs,
        "field": tuple(field or ()),
        "prices": prices,
        "max_cost": max_cost,
        "dry_run": dry_run,
        "tokenizer": tokenizer,
        "batch_write": batch_write,
        "batch_again": batch_again,
        "batch_read": tuple(batch_read or ()),
    }
    local_flags: dict[str, Any] = {"dtype": dtype, "batch_size": batch_size, "device": device}
    llm_flags = {**local_flags, "generate": generate, "calibration": calibration, "max_tokens": max_tokens}
    encoder_flags = {
        **local_flags,
        "threshold": threshold,
        "max_length": max_length,
        "skip_unmatched": skip_unmatched,
        "trust_remote_code": trust_remote_code,
    }
    flags = {Backend.ENDPOINT: endpoint_flags, Backend.LLM: llm_flags, Backend.ENCODER: encoder_flags}
    check_push(push_to, {"executor": executor, "dry_run": dry_run, "batch_write": batch_write})
    options = _options(backend, model, flags)
    where = {
        "executor": executor,
        "tasks": tasks,
        "num_workers": cores,
        "memory_gb": memory_gb,
        "partition": partition,
        "time": time,
    }
    table = (reports, id_column, text_column)
    summary: LabelingSummary | dict[str, Any]
    if executor is None:
        _refuse_task_flags(context)
        summary = _label(options, table, output, findings, retry_failed, json)
    else:
        summary = _label_in_tasks(where, options, table, output, findings, retry_failed, json)
    if isinstance(summary, dict):
        _print_document(summary, json)
        return
    if json:
        print_json(asdict(summary))
    else:
        _print_summary(summary, output)
    _print_failures(summary)
    if push_to is not None:
        push_when_labeled(push_to, output, table)
    if summary.num_failed:
        raise typer.Exit(1)


def _options(backend: Backend, model: str, flags: dict[Backend, dict[str, Any]]) -> LabelerOptions:
    """The flags of a backend; refuses those that belong to others alone."""
    for owner, options in OPTIONS.items():
        foreign = {name: value for name, value in flags[owner].items() if name not in flags[backend]}
        refuse_flags(options, foreign, owner, backend)
    return OPTIONS[backend](model=model, **flags[backend])


def _refuse_task_flags(context: typer.Context) -> None:
    """One process would ignore them in silence, even those that repeat a default."""
    sources = {name: context.get_parameter_source(name) for name in TASK_FLAGS}
    given = [flag_name(name) for name, source in sources.items() if source and source.name == "COMMANDLINE"]
    if given:
        raise ValueError(
            f"--executor must be given for {', '.join(given)}, got none. Add --executor, or leave them out."
        )


def _label(
    options: LabelerOptions,
    table: tuple[str, str, str],
    output: Path,
    findings: str,
    should_retry_failed: bool,
    is_quiet: bool,
) -> "LabelingSummary | dict[str, Any]":
    """Refuse what can be refused before weights are loaded or a request is paid."""
    from radtower.data.report_table import ReportStream
    from radtower.labeling.answers.ledger import open_ledger
    from radtower.labeling.findings import load_findings
    from radtower.labeling.labeler import LabelingRun
    from radtower.labeling.report_labels import StopLabeling

    findings_set = load_findings(findings)
    stream = ReportStream(*table)
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
            if labeler.instead is None:
                with progress_bar("Labeling reports", counts.num_unique) as on_progress:
                    run.label(on_progress)
                _print_notes(labeler.notes(), is_quiet)
            elif (document := labeler.instead(run)) is not None:
                return document
            return replace(run.write(output), notes=tuple(labeler.notes()))
        except StopLabeling as stop:  # before any report had labels
            raise ValueError(str(stop)) from None


def _label_in_tasks(
    where: dict[str, Any],
    options: LabelerOptions,
    table: tuple[str, str, str],
    output: Path,
    findings: str,
    should_retry_failed: bool,
    is_quiet: bool,
) -> "LabelingSummary | dict[str, Any]":
    """Label through datatrove; the job that ends last where it was only submitted."""
    require("cluster")
    from radtower.data.label_tasks import LabelingJob, label_on_cluster
    from radtower.data.report_table import ReportStream
    from radtower.data.task_executors import ClusterPlan
    from radtower.labeling.findings import load_findings
    from radtower.labeling.report_labels import StopLabeling

    of_one_process = ("max_cost", "dry_run", "batch_write", "batch_read")
    given = [name for name in of_one_process if getattr(options, name, None)]
    if given:
        flags = ", ".join("--" + name.replace("_", "-") for name in given)
        raise ValueError(f"--executor must not come with {flags}. Label in one process.")
    reports, *columns = table
    is_file = Path(reports).exists()  # tasks may run in another folder
    stream = ReportStream(Path(reports).absolute() if is_file else reports, *columns)
    job = LabelingJob(stream, options.build, load_findings(findings), output.absolute(), should_retry_failed)
    try:
        done = label_on_cluster(ClusterPlan(**where), job, (lambda plan: None) if is_quiet else _print_plan)
    except StopLabeling as stop:  # before any report had labels
        raise ValueError(str(stop)) from None
    if isinstance(done, str):
        return {"tasks": where["tasks"], "last_job": done}
    _print_notes(done.notes, is_quiet)
    return done


def _print_notes(notes: Iterable[str], is_quiet: bool) -> None:
    for note in () if is_quiet else notes:
        print(note)


def _print_document(document: dict[str, Any], is_json: bool) -> None:
    if is_json:
        print_json(document)
        return
    for name, value in document.items():
        print(f"{name}: {'unknown' if value is None else value}")


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
    if plan.num_in_batches:
        print(
            f"{plan.num_in_batches} of those to ask are in batch files whose results were not read: asked "
            "now as well, they are paid for twice"
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
