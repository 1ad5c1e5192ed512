"""A comparison as rows of text, for the terminal and for Markdown."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

from radtower.evaluation.comparison.comparison import ComparedValue, Comparison, MetricDifference
from radtower.evaluation.comparison.runs import WHERE


@dataclass(frozen=True)
class ComparisonTable:
    """The metrics that were measured on the same data by the same protocol.

    Args:
        title: Data, class set, labels, protocol and direction.
        columns: Names.
        rows: One per metric and finding, as long as ``columns``.
        notes: What is said below it.
    """

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]


def comparison_tables(comparison: Comparison, names: tuple[str, str]) -> list[ComparisonTable]:
    """Return one table per data set, class set, label source, protocol, direction and source of thresholds.

    Args:
        comparison: Two models.
        names: Short names for both, as columns have them.
    """
    groups = groupby(comparison.differences, lambda item: _title(item))
    return [_table(title, list(items), names) for title, items in groups]


def as_markdown(comparisons: Sequence[tuple[Comparison, tuple[str, str]]]) -> str:
    """Return comparisons as a Markdown document.

    Args:
        comparisons: Each with the short names of its two models.
    """
    lines = []
    for comparison, names in comparisons:
        models = (comparison.first, comparison.second)
        lines += [f"## {names[1]} against {names[0]}", ""]
        lines += [f"- {name}: {_cell(model.model_id)}" for name, model in zip(names, models, strict=True)]
        lines += [f"- {_cell(remark)}" for remark in comparison.remarks]
        for table in comparison_tables(comparison, names):
            lines += ["", f"### {_cell(table.title)}", "", _line(table.columns)]
            lines.append(_line(["---", *["---:"] * (len(table.columns) - 1)]))
            lines += [_line(row) for row in table.rows]
            lines += ["", *[f"{_cell(note)}  " for note in table.notes]]
        lines.append("")
    lines.append("Research use only, not for diagnosis.")
    return "\n".join(lines) + "\n"


def _table(title: str, items: Sequence[MetricDifference], names: tuple[str, str]) -> ComparisonTable:
    has_test = any(item.delong_p is not None for item in items)
    sizes = {(item.first.n, item.first.n_positive) for item in items}
    has_positives = any(positive is not None for _, positive in sizes)
    columns = ["metric", "n (positive)" if has_positives else "n", *names, f"{names[1]} - {names[0]}"]
    reasons: dict[str, int] = {}
    for item in items:
        if item.note:
            reasons.setdefault(item.note, len(reasons) + 1)
    rows = []
    for item in items:
        mark = f" [{reasons[item.note]}]" if item.note else ""
        row = [_name(item), _size(item), _number(item.first), _number(item.second), _change(item) + mark]
        rows.append((*row, *([_p(item.delong_p), _p(item.delong_p_holm)] if has_test else [])))
    notes = [f"[{number}] {reason}" for reason, number in reasons.items()]
    return ComparisonTable(
        title, (*columns, *(["DeLong p", "Holm p"] if has_test else [])), tuple(rows), (*notes, *_said(items))
    )


def _said(items: Sequence[MetricDifference]) -> list[str]:
    """What the intervals and p-values are."""
    said = []
    methods = list(dict.fromkeys(item.ci_method for item in items if item.ci_method))
    if methods:
        levels = sorted({f"{item.ci_level:.0%}" for item in items if item.ci_method})
        said.append(f"Differences with {', '.join(levels)} intervals: {'; '.join(methods)}.")
        if items[0].threshold_source:
            said.append("Each model has its own thresholds, which the resamples keep.")
    tests = [item for item in items if item.delong_p is not None]
    if tests:
        kinds = ", ".join(dict.fromkeys(str(item.delong_method) for item in tests))
        said.append(f"p of an AUROC: {kinds}; Holm p: corrected for {tests[0].num_tests} findings.")
    return said


def _title(item: MetricDifference) -> str:
    parts = [getattr(item, name) for name in (*WHERE, "direction")]
    title = ", ".join(part.replace("_to_", " to ") for part in parts if part)
    return f"{title}; thresholds: {item.threshold_source}" if item.threshold_source else title


def _name(item: MetricDifference) -> str:
    return " ".join(filter(None, [item.metric, item.finding])).replace("_at_", "@").replace("_", " ")


def _size(item: MetricDifference) -> str:
    sizes = [
        str(value.n) if value.n_positive is None else f"{value.n} ({value.n_positive})"
        for value in (item.first, item.second)
    ]
    return sizes[0] if sizes[0] == sizes[1] else " / ".join(sizes)


def _number(value: ComparedValue) -> str:
    if value.value is None:
        return "undefined"
    interval = "" if value.ci_low is None else f" ({value.ci_low:.3f} to {value.ci_high:.3f})"
    return f"{value.value:.3f}{interval}"


def _change(item: MetricDifference) -> str:
    if item.difference is None:
        return "-"
    return f"{item.difference:+.3f} ({item.ci_low:+.3f} to {item.ci_high:+.3f})"


def _p(value: float | None) -> str:
    if value is None:
        return ""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(map(_cell, cells)) + " |"


def _cell(text: str) -> str:
    """One line that Markdown leaves as it is."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")
