"""``radtower report``: tables, pictures and one page of results files."""

from pathlib import Path
from textwrap import fill
from typing import Annotated

import typer

from radtower.cli.extras import require
from radtower.cli.output import print_json


def report(
    results: Annotated[
        list[Path],
        typer.Argument(
            help="results.json; several are set side by side. Rows and pictures beside it are used."
        ),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for page, tables and pictures.")],
    title: Annotated[str | None, typer.Option(help="Of the page. Without: the names of the models.")] = None,
    command: Annotated[
        list[str] | None,
        typer.Option(help="Command line that made the results, for the page; can be repeated."),
    ] = None,
    resamples: Annotated[int, typer.Option(min=1, help="Bootstrap resamples of the bands of curves.")] = 1000,
    json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """One self-contained HTML page, Markdown and LaTeX tables, and pictures, from results.json."""
    require("plots")
    from radtower.evaluation.reports.report import ReportOptions, write_report

    written = write_report(results, output, ReportOptions(title, tuple(command or ()), resamples))
    if json:
        print_json({"written": [str(path) for path in written]})
        return
    print(f"Page: {written[0]}")
    beside = f"Beside it: {', '.join(path.name for path in written[1:])}"
    print(fill(beside, 80, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False))


def add_commands(app: typer.Typer) -> None:
    """Add this file's commands."""
    app.command()(report)
