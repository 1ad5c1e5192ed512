"""``radtower evaluate text``: how good an encoder is, with intervals, beside its baselines."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.evaluate_labels import labels
from radtower.cli.evaluate_retrieval import retrieval
from radtower.cli.evaluate_zero_shot import zero_shot
from radtower.cli.extras import register_models, require
from radtower.cli.output import (
    check_results_path,
    print_json,
    print_table,
    progress_bar,
    value_with_interval,
)

if TYPE_CHECKING:
    from radtower.evaluation.results import MetricResult, Results
    from radtower.evaluation.text.scorers import TextScorer
    from radtower.evaluation.text.text_evaluation import TextEvaluation

evaluate_app = typer.Typer(no_args_is_help=True, help="Measure a model, with intervals.")


@evaluate_app.command()
def text(  # noqa: PLR0913 -- one argument per flag
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a text encoder or a dual tower.")],
    table: Annotated[Path, typer.Argument(help="Report table, or a manifest with reports.")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="results.json; baselines are written beside it.")
    ],
    baseline: Annotated[
        list[str] | None,
        typer.Option(help="Another folder, ours or of sentence-transformers; can be repeated."),
    ] = None,
    no_bm25: Annotated[bool, typer.Option("--no-bm25", help="Leave the BM25 baseline out.")] = False,
    untrained: Annotated[
        str | None, typer.Option(help="LLM that the model comes from, as a further baseline.")
    ] = None,
    split: Annotated[str, typer.Option(help="Where to measure.")] = "test",
    task: Annotated[list[str] | None, typer.Option(help="Task; can be repeated. Without: all.")] = None,
    instruction: Annotated[
        str | None, typer.Option(help="Put before the model's queries, for our text encoders.")
    ] = None,
    label_source: Annotated[
        str, typer.Option(help="Who gave the labels of the table.")
    ] = "label columns of the table",
    limit: Annotated[
        int | None,
        typer.Option(min=2, help="Studies per split, at most; by hash of their id."),
    ] = None,
    phantom: Annotated[bool, typer.Option("--phantom", help="Say that the reports are synthetic.")] = False,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the patients.")] = 2000,
    trust_remote_code: Annotated[
        bool, typer.Option("--trust-remote-code", help="Run code that comes with a baseline.")
    ] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Retrieval, error discrimination, negation and a linear probe on reports; differences to baselines."""
    if not no_bm25:
        require("text")
    register_models()
    from radtower.data.reports.report_corpus import read_report_table
    from radtower.evaluation.results import write_results
    from radtower.evaluation.text.text_evaluation import TASK_NAMES, build_tasks, evaluate_text
    from radtower.evaluation.text.text_models import load_scorer, untrained_scorer

    check_results_path(output)
    if not label_source.strip():
        raise ValueError("--label-source must say who gave the labels, got an empty text. Name them.")
    reports = read_report_table(table)
    if limit is not None:
        reports = reports.limited(limit)
    tasks = build_tasks(reports, split, task or TASK_NAMES, label_source)  # type: ignore[arg-type]
    scorers: list[TextScorer] = [
        load_scorer(model, instruction),
        *(load_scorer(name, is_remote_code_trusted=trust_remote_code) for name in baseline or ()),
    ]
    if untrained is not None:
        scorers.append(untrained_scorer(untrained))
    if not no_bm25:
        from radtower.evaluation.text.bm25 import BM25Scorer

        scorers.append(BM25Scorer())
    with progress_bar("Measuring", len(tasks) * len(scorers)) as on_progress:
        done = evaluate_text(
            scorers[0],
            tasks,
            scorers[1:],
            num_resamples=resamples,
            is_phantom=phantom,
            on_progress=on_progress,
        )
    write_results(done.model, output)
    for name, results in done.baselines.items():
        write_results(results, output.with_name(f"{output.stem}.{name}.json"))
    if json:
        everything = {"model": done.model, "baselines": done.baselines}
        print_json(_plain(everything))
        return
    _print_evaluation(done)
    for reason in done.model.not_measured:
        print(f"Not measured: {reason}.")
    if phantom:
        print("These are phantom results: they show that the software works.")
    print(f"Written: {output}" + "".join(f", {output.stem}.{name}.json" for name in done.baselines))


def _plain(content: object) -> dict:
    from pydantic import TypeAdapter

    plain: dict = TypeAdapter(object).dump_python(content, mode="json")
    return plain


def _print_evaluation(done: "TextEvaluation") -> None:
    """One table per data set and protocol; a star marks a difference whose interval excludes 0."""
    groups: dict[str, list[MetricResult]] = {}
    for item in done.model.metrics:
        if not item.metric.endswith("_difference"):
            title = ", ".join(filter(None, [item.dataset, item.direction, item.protocol]))
            groups.setdefault(title.replace("_", " "), []).append(item)
    columns = ("", "n", done.model.model_id, *done.baselines)
    for title, items in groups.items():
        # What too few questions leave undefined is in the file, with the reason.
        rows = [
            (
                " ".join(filter(None, [i.metric, i.finding])).replace("_at_", "@").replace("_", " "),
                str(i.n),
                value_with_interval(i),
                *(_against(i, results, done.model) for results in done.baselines.values()),
            )
            for i in items
            if i.value is not None
        ]
        print_table(title, columns, rows)
    print("95 % intervals over patients. *: the paired difference to the model excludes 0.")


def _against(item: "MetricResult", baseline: "Results", model: "Results") -> str:
    names = ("dataset", "class_set", "label_source", "protocol")
    where = {name: getattr(item, name) for name in names}
    try:
        other = baseline.get(item.metric, item.finding, item.direction, **where)
    except KeyError:
        return "-"
    where["protocol"] = f"{item.protocol}; model minus {baseline.model_id}"
    difference = model.get(f"{item.metric}_difference", item.finding, item.direction, **where)
    is_clear = difference.ci_low is not None and not difference.ci_low <= 0 <= (difference.ci_high or 0)
    return value_with_interval(other) + ("*" if is_clear else "")


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    evaluate_app.command()(labels)
    evaluate_app.command()(retrieval)
    evaluate_app.command(name="zero-shot")(zero_shot)
    app.add_typer(evaluate_app, name="evaluate")
