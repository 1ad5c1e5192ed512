"""``radtower compare``: results side by side, with paired differences where their rows are there."""

from pathlib import Path
from string import ascii_uppercase
from typing import TYPE_CHECKING, Annotated

import typer

from radtower.cli.output import NOT_FOR_DIAGNOSIS, check_results_path, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from radtower.evaluation.comparison.comparison import Comparison


def compare(
    results: Annotated[
        list[Path], typer.Argument(help="Two or more results.json; all are compared with the first.")
    ],
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="comparison.json to write. Without: none.")
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the patients.")] = 2000,
    seed: Annotated[int, typer.Option(min=0, help="Of the resampling.")] = 0,
    markdown: Annotated[bool, typer.Option("--markdown", help="Print Markdown.")] = False,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Differences of models on the same items: paired intervals, and DeLong's test for AUROCs."""
    from radtower.evaluation.comparison.compare import compare_runs
    from radtower.evaluation.comparison.comparison import Comparisons
    from radtower.evaluation.comparison.comparison_table import as_markdown
    from radtower.evaluation.comparison.paired_values import Resampling
    from radtower.evaluation.comparison.runs import read_run

    _check(results, output, markdown, json)
    runs = [read_run(path) for path in results]
    done: list[Comparison] = []
    with progress_bar("Comparing", len(runs) - 1) as on_progress:
        for other in runs[1:]:
            done.append(compare_runs(runs[0], other, Resampling(resamples, seed)))
            on_progress(len(done))
    everything = Comparisons(comparisons=tuple(done))
    if output is not None:
        output.write_text(everything.model_dump_json(indent=2) + "\n", encoding="utf-8")
    named = [(comparison, ("A", name)) for comparison, name in zip(done, ascii_uppercase[1:], strict=False)]
    if json:
        print_json(everything.model_dump(mode="json"))
    elif markdown:
        print(as_markdown(named), end="")
    else:
        _print(named)
        if output is not None:
            print(f"Written: {output}")


def _check(results: list[Path], output: Path | None, markdown: bool, json: bool) -> None:
    if not 2 <= len(results) <= len(ascii_uppercase):
        raise ValueError(f"results must be 2 to {len(ascii_uppercase)} files, got {len(results)}.")
    if markdown and json:
        raise ValueError("--markdown and --json must not both be given, got both. Choose one.")
    if output is None:
        return
    check_results_path(output)
    if output.resolve() in {path.resolve() for path in results}:
        raise ValueError(f"-o must not be one of the results, got {output.name!r}. Name another file.")


def _print(named: "list[tuple[Comparison, tuple[str, str]]]") -> None:
    from radtower.evaluation.comparison.comparison_table import comparison_tables

    for comparison, names in named:
        for name, model in zip(names, (comparison.first, comparison.second), strict=True):
            print(f"{name}: {model.model_id}, evaluated {model.evaluated:%Y-%m-%d %H:%M}")
        for remark in comparison.remarks:
            print(remark)
        for table in comparison_tables(comparison, names):
            print_table(table.title, table.columns, table.rows)
            for note in table.notes:
                print(note)
    print(NOT_FOR_DIAGNOSIS)


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(compare)
