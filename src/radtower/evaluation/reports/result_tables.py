"""Results -> tables: one per data set, class set, label source, protocol and source of thresholds.

Rows are findings, or directions of retrieval; columns are metrics, of several models side by side. Where
there are baselines, differences to them or several ways of a protocol, these and the models are rows, too.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from radtower.evaluation.reports.footnotes import Footnotes, threshold_text
from radtower.evaluation.reports.variants import DIFFERENCE_NOTE, Variant, variant_names, variant_of
from radtower.evaluation.reports.wording import (
    base_metric,
    chance_number,
    counts,
    interval_method,
    is_higher_better,
    metric_name,
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
    """A finding or a direction, with the number of rows behind it, and a text per side column."""

    name: str
    counts: str
    cells: tuple[Cell, ...]
    sides: tuple[str, ...]


@dataclass(frozen=True)
class ResultTable:
    """A table, ready to be written.

    Args:
        provenance: What all its numbers were measured on.
        models: Names, in the order of the columns.
        metrics: Of each model, in the order of the columns: M metrics, and for each of them all models.
        rows: Of ``len(metrics) * len(models)`` cells.
        sides: Names of the columns behind the numbers: thresholds, and chance where each row has its own.
        chance: What a random answer gets, where that is the same in all rows: a text per column; or empty.
        footnotes: Mark and text.
        remarks: What holds for all numbers.
        has_positives: Whether ``counts`` of a row names those that have the finding.
        row_kind: What rows are: findings, directions, or neither.
    """

    provenance: Provenance
    models: tuple[str, ...]
    metrics: tuple[str, ...]
    rows: tuple[Row, ...]
    sides: tuple[str, ...]
    chance: tuple[str, ...]
    footnotes: tuple[tuple[str, str], ...]
    remarks: tuple[str, ...]
    has_positives: bool
    row_kind: str

    @property
    def has_best(self) -> bool:
        """Whether a number is marked as best."""
        return any(cell.is_best for row in self.rows for cell in row.cells)


_RowKey = tuple[str, str, bool, Variant | None]
_Grid = dict[_RowKey, dict[tuple[str, str], MetricResult]]
_Item = tuple[Variant, MetricResult]
_CLEAR = "*"  # marks a difference whose interval excludes 0


def result_tables(results: Sequence[Results]) -> list[ResultTable]:
    """Make the tables of one or several models.

    Raises:
        ValueError: If there is no result, or none of them has a metric.
    """
    if not any(item.metrics for item in results):
        raise ValueError(f"results must hold a metric, got {len(results)} without. Evaluate first.")
    names = model_names(results)
    groups: dict[Provenance, list[_Item]] = {}
    for name, one in zip(names, results, strict=True):
        for given in one.metrics:
            variant, item = variant_of(name, given)
            key = Provenance(**{field: getattr(item, field) for field in Provenance.model_fields})
            groups.setdefault(key, []).append((variant, item))
    return [table for key, items in groups.items() for table in _tables_of(key, items)]


def _tables_of(provenance: Provenance, items: Sequence[_Item]) -> Iterator[ResultTable]:
    """Tables of one provenance, of a few metrics each."""
    models = tuple(dict.fromkeys(variant.model for variant, _ in items))
    names: dict[Variant, str] = {}
    if not all(variant.is_plain for variant, _ in items):
        models, names = (", ".join(models),), variant_names(variant for variant, _ in items)
    metrics = list(dict.fromkeys(base_metric(item) for _, item in items))
    num_tables = -(-len(metrics) // max(1, MAX_COLUMNS // len(models)))
    num_at_once = -(-len(metrics) // num_tables)  # as many in each
    for start in range(0, len(metrics), num_at_once):
        chosen = metrics[start : start + num_at_once]
        of_these = [pair for pair in items if base_metric(pair[1]) in chosen]
        yield _table(provenance, models, chosen, of_these, names)


def _table(
    provenance: Provenance,
    models: tuple[str, ...],
    metrics: Sequence[str],
    items: Sequence[_Item],
    names: Mapping[Variant, str],
) -> ResultTable:
    """Make one table; ``names`` are those of variants that are rows, and empty where models are columns."""
    grid: _Grid = {}
    for variant, item in items:
        # A row is of one number of studies: a number never stands beside an n that is not its own.
        key = (row_name(item), counts(item), item.finding is not None, variant if names else None)
        of = models[0] if len(models) == 1 else variant.model
        grid.setdefault(key, {})[of, base_metric(item)] = item
    columns = [(model, metric) for metric in metrics for model in models]
    keys = _ordered(grid, list(names))
    # Differences carry no notes: what the others share is said of all.
    notes = Footnotes([item for variant, item in items if not variant.is_difference] or [items[0][1]])
    chance = _shared_chance(grid, columns)
    sides = {**_thresholds(grid, models), **({} if chance else _chances(grid, models, metrics))}
    rows = []
    for key in keys:
        best = {} if len(models) == 1 else {m: _best(grid[key], models, m) for m in metrics}
        is_difference = key[3] is not None and key[3].is_difference
        cells = tuple(
            Cell(item, _clear_mark(item, is_difference) + notes.marks(item), best.get(metric) == model)
            for model, metric in columns
            for item in [grid[key].get((model, metric))]
        )
        name = key[0] if key[3] is None else _row_of(key, keys, names)
        rows.append(Row(name, key[1], cells, tuple(side[key] for side in sides.values())))
    has_clear = any(_CLEAR in cell.marks for row in rows for cell in row.cells)
    return ResultTable(
        provenance,
        models,
        tuple(metrics),
        tuple(rows),
        tuple(sides),
        chance,
        (*(((_CLEAR, DIFFERENCE_NOTE),) if has_clear else ()), *notes.listed()),
        (interval_method([item for _, item in items]), *notes.shared),
        any(item.n_positive is not None for _, item in items),
        _row_kind([item for _, item in items]),
    )


def _ordered(grid: _Grid, variants: Sequence[Variant]) -> list[_RowKey]:
    """Means first, otherwise in their order; what is measured on the same stands together, models first."""
    names = list(dict.fromkeys(key[0] for key in grid))
    return sorted(
        grid,
        key=lambda key: (key[2], names.index(key[0]), 0 if key[3] is None else variants.index(key[3])),
    )


def _row_of(key: _RowKey, keys: Sequence[_RowKey], names: Mapping[Variant, str]) -> str:
    """Name a row; the variant is said where another has the same row."""
    assert key[3] is not None  # asked for rows of variants only
    is_alone = len({other[3] for other in keys if other[0] == key[0]}) == 1 and key[3].is_plain
    if is_alone and len({other[3].model for other in keys if other[3] is not None}) == 1:
        return key[0]
    return f"{key[0]}: {names[key[3]]}"


def _clear_mark(item: MetricResult | None, is_difference: bool) -> tuple[str, ...]:
    if not is_difference or item is None or item.ci_low is None or item.ci_high is None:
        return ()
    return () if item.ci_low <= 0 <= item.ci_high else (_CLEAR,)


def _row_kind(items: Sequence[MetricResult]) -> str:
    if any(item.finding is not None for item in items):
        return "finding"
    return "direction" if any(item.direction is not None for item in items) else "all or part"


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


def _shared_chance(grid: _Grid, columns: Sequence[tuple[str, str]]) -> tuple[str, ...]:
    """One text per column where all rows that have a chance have the same; otherwise empty."""
    by_column = [{chance_number(row[c]) for row in grid.values() if c in row} - {""} for c in columns]
    if not any(by_column) or any(len(values) > 1 for values in by_column):
        return ()
    return tuple(next(iter(values), "") for values in by_column)


def _chances(grid: _Grid, models: Sequence[str], metrics: Sequence[str]) -> dict[str, dict[_RowKey, str]]:
    """A column per metric whose chance differs from row to row; models on the same studies share it."""
    sides = {}
    for metric in metrics:
        texts = {
            key: _joined(chance_number(row[model, metric]) for model in models if (model, metric) in row)
            for key, row in grid.items()
        }
        if any(texts.values()):
            sides[f"chance of {metric_name(metric)}"] = texts
    return sides


def _thresholds(grid: _Grid, models: Sequence[str]) -> dict[str, dict[_RowKey, str]]:
    """A column per model whose decisions were made at a threshold."""
    sides = {}
    for model in models:
        texts = {
            key: _joined(threshold_text(item) for (name, _), item in row.items() if name == model)
            for key, row in grid.items()
        }
        if any(texts.values()):
            sides["threshold" if len(models) == 1 else f"threshold, {model}"] = texts
    return sides


def _joined(texts: Iterable[str]) -> str:
    return " / ".join(dict.fromkeys(filter(None, texts)))
