"""Results -> tables: one per data set, class set, label source, protocol and source of thresholds.

Rows are findings, or directions of retrieval; columns are metrics, of several models side by side.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from radtower.evaluation.reports.wording import (
    base_metric,
    chance_number,
    counts,
    interval_method,
    is_higher_better,
    model_names,
    row_name,
)
from radtower.evaluation.results import MetricResult, Provenance, Results

MAX_COLUMNS = 4  # numbers with their intervals that fit on a printed page; more make another table


@dataclass(frozen=True)
class Cell:
    """A number of a table; ``item`` is None where it was not measured. ``marks`` point to footnotes."""

    item: MetricResult | None
    marks: tuple[str, ...] = ()
    is_best: bool = False


@dataclass(frozen=True)
class Row:
    """A finding or a direction, with the number of rows behind it."""

    name: str
    counts: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class ResultTable:
    """A table, ready to be written.

    Args:
        provenance: What all its numbers were measured on.
        models: Names, in the order of the columns.
        metrics: Of each model, in the order of the columns: M metrics, and for each of them all models.
        rows: Of ``len(metrics) * len(models)`` cells.
        chance: What a random answer gets: a name and a text per column.
        footnotes: Mark and text.
        remarks: What holds for all numbers.
        has_positives: Whether ``counts`` of a row names those that have the finding.
        row_kind: What rows are: findings, directions, or neither.
    """

    provenance: Provenance
    models: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    chance: tuple[tuple[str, tuple[str, ...]], ...]
    footnotes: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    has_positives: bool
    row_kind: str

    @property
    def has_best(self) -> bool:
        """Whether a number is marked as best."""
        return any(cell.is_best for row in self.rows for cell in row.cells)


_RowKey = tuple[str, str, bool]
_Grid = dict[_RowKey, dict[tuple[str, str], MetricResult]]


def result_tables(results: Sequence[Results]) -> list[ResultTable]:
    """Make the tables of one or several models.

    Raises:
        ValueError: If there is no result, or none of them has a metric.
    """
    if not any(item.metrics for item in results):
        raise ValueError(f"results must hold a metric, got {len(results)} without. Evaluate first.")
    names = model_names(results)
    groups: dict[Provenance, list[tuple[str, MetricResult]]] = {}
    for name, one in zip(names, results, strict=True):
        for item in one.metrics:
            key = Provenance(**{field: getattr(item, field) for field in Provenance.model_fields})
            groups.setdefault(key, []).append((name, item))
    return [table for key, items in groups.items() for table in _tables_of(key, items)]


def _tables_of(provenance: Provenance, items: Sequence[tuple[str, MetricResult]]) -> Iterator[ResultTable]:
    """Tables of one provenance, of a few metrics each."""
    models = tuple(dict.fromkeys(name for name, _ in items))
    metrics = list(dict.fromkeys(base_metric(item) for _, item in items))
    num_tables = -(-len(metrics) // max(1, MAX_COLUMNS // len(models)))
    num_at_once = -(-len(metrics) // num_tables)  # as many in each
    for start in range(0, len(metrics), num_at_once):
        chosen = metrics[start : start + num_at_once]
        yield _table(provenance, models, chosen, [pair for pair in items if base_metric(pair[1]) in chosen])


def _table(
    provenance: Provenance,
    models: tuple[str, ...],
    metrics: Sequence[str],
    items: Sequence[tuple[str, MetricResult]],
) -> ResultTable:
    grid: _Grid = {}
    for name, item in items:
        # A row is of one number of studies: a number never stands beside an n that is not its own.
        key = (row_name(item), counts(item), item.finding is not None)
        grid.setdefault(key, {})[name, base_metric(item)] = item
    columns = [(model, metric) for metric in metrics for model in models]
    shared = _shared_notes([item for _, item in items])
    marks = _Marks(shared)
    rows = []
    for key in sorted(grid, key=lambda key: key[2]):  # means first, otherwise in their order
        best = {} if len(models) == 1 else {m: _best(grid[key], models, m) for m in metrics}
        cells = tuple(
            Cell(item, marks.of(item), best.get(metric) == model)
            for model, metric in columns
            for item in [grid[key].get((model, metric))]
        )
        rows.append(Row(key[0], key[1], cells))
    return ResultTable(
        provenance,
        models,
        tuple(metrics),
        tuple(rows),
        _chance(grid, columns),
        tuple((mark, note) for note, mark in marks.given.items()),
        (interval_method([item for _, item in items]), *shared),
        any(item.n_positive is not None for _, item in items),
        _row_kind([item for _, item in items]),
    )


def _row_kind(items: Sequence[MetricResult]) -> str:
    if any(item.finding is not None for item in items):
        return "finding"
    return "direction" if any(item.direction is not None for item in items) else "all or part"


def _shared_notes(items: Sequence[MetricResult]) -> tuple[str, ...]:
    """Return the parts of notes that all items have."""
    parts = [_parts(item) for item in items]
    return tuple(part for part in parts[0] if len(parts) > 1 and all(part in other for other in parts))


def _parts(item: MetricResult) -> list[str]:
    return item.note.split("; ") if item.note else []


class _Marks:
    """Gives every distinct note a letter, in order of appearance."""

    def __init__(self, shared: Sequence[str]) -> None:
        self.shared = shared
        self.given: dict[str, str] = {}

    def of(self, item: MetricResult | None) -> tuple[str, ...]:
        if item is None:
            return ()
        note = "; ".join(part for part in _parts(item) if part not in self.shared)
        if not note:
            return ()
        return (self.given.setdefault(note, _letters(len(self.given))),)


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    rest, last = divmod(number, 26)
    return (_letters(rest - 1) if rest else "") + chr(ord("a") + last)


def _best(row: dict[tuple[str, str], MetricResult], models: Sequence[str], metric: str) -> str | None:
    """Return the model whose interval lies beyond those of all others; None where none does.

    Modest on purpose: intervals that overlap say nothing, as models are measured on the same patients. The
    paired difference is what ``radtower compare`` is for.
    """
    is_higher = is_higher_better(metric)
    found = {model: row.get((model, metric)) for model in models}
    spans = {
        model: (item.ci_low, item.ci_high) if is_higher else (-item.ci_high, -item.ci_low)
        for model, item in found.items()
        if item is not None and item.ci_low is not None and item.ci_high is not None
    }
    if is_higher is None or len(spans) < len(models):
        return None
    first, *others = sorted(spans, key=lambda model: -spans[model][0])
    return first if all(spans[first][0] > spans[other][1] for other in others) else None


def _chance(grid: _Grid, columns: Sequence[tuple[str, str]]) -> tuple[tuple[str, tuple[str, ...]], ...]:
    """One line where all rows share their chance, otherwise one per row that has it."""
    lines = {
        key[0]: tuple(chance_number(row[column]) if column in row else "" for column in columns)
        for key, row in grid.items()
    }
    lines = {name: line for name, line in lines.items() if any(line)}
    by_column = [{line[column] for line in lines.values()} - {""} for column in range(len(columns))]
    if lines and all(len(values) <= 1 for values in by_column):
        return (("chance", tuple(next(iter(values), "") for values in by_column)),)
    return tuple((f"chance, {name}", line) for name, line in lines.items())
