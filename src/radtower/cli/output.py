"""How commands speak: tables and JSON on stdout, progress on stderr."""

import json
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from radtower.evaluation.results import MetricResult

NOT_FOR_DIAGNOSIS = "Research use only, not for diagnosis."


def check_results_path(output: Path) -> None:
    """Refuse before the work a ``results.json`` that could not be written after it."""
    if output.suffix != ".json" or output.is_dir():
        raise ValueError(f"-o must be a file that ends in .json, got {output.name!r}. Name results.json.")
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryFile(dir=output.parent):
            pass
    except OSError as error:
        raise ValueError(
            f"-o must be in a folder that can be written to, got {output}: {error.strerror}. Choose another."
        ) from error


def print_json(content: Mapping[str, Any]) -> None:
    """Print one JSON document."""
    print(json.dumps(content, indent=2))


def print_table(
    title: str, columns: Sequence[str], rows: Sequence[Sequence[str]], *, is_numeric: bool = True
) -> None:
    """Print a table; numbers, in all columns but the first, are aligned to the right."""
    table = Table(title=Text(title), title_justify="left")
    for position, column in enumerate(columns):
        # Folded: a number cut short is another number.
        table.add_column(column, justify="right" if position and is_numeric else "left", overflow="fold")
    for row in rows:
        table.add_row(*map(Text, row))  # a string would be read as markup, and lose what is in brackets
    Console().print(table)


def value_with_interval(item: "MetricResult") -> str:
    """A measured number with two decimals, as tables show it."""
    if item.value is None:
        return "undefined"
    return f"{item.value:.2f} ({item.ci_low:.2f}-{item.ci_high:.2f})"


def print_failures(failures: Mapping[str, str], word: str = "failed") -> None:
    """List what could not be done, or what else ``word`` says, on stderr."""
    console = Console(stderr=True)
    for item, reason in failures.items():
        console.print(f"{word}: {item}: {reason}", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(label: str, total: int) -> Iterator[Callable[[int], None]]:
    """Draw a bar on stderr; yields a function that takes the number of items done."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(label, total=total)
        yield lambda done: progress.update(task, completed=done)
