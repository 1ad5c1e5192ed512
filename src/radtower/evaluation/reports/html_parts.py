"""Parts of the page: every string of a results file goes through :func:`text`."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from radtower.evaluation.reports.result_tables import Cell, ResultTable
from radtower.evaluation.reports.text_tables import BEST_NOTE
from radtower.evaluation.reports.wording import (
    base_metric,
    chance_number,
    counts,
    described,
    metric_name,
    numbers,
    row_name,
    value_and_interval,
)
from radtower.evaluation.results import MetricResult, Results

EN_DASH = "\u2013"
MAX_CARDS = 4
TEST_ORACLE = "test_oracle"  # how such a source of thresholds begins
# What stands on top, in this order; where none is there, the first numbers do.
HEADLINES = (
    "macro_auroc",
    "pooled_auroc",
    "macro_f1",
    "recall_at_10",
    "recall_at_5",
    "recall_at_100",
    "map_at_50",
    "mrr",
    "macro_average_precision",
)


@dataclass(frozen=True)
class PageFigure:
    """A drawing or a picture.

    Args:
        name: Stem of its PNG file.
        title: A few words.
        caption: What it shows, with n, class set, labels and method.
        alt: The same for who cannot see it.
        svg: The text of an ``<svg>``; None for a picture.
        png: Content of the PNG.
        is_narrow: Whether half the width of the page is enough.
    """

    name: str
    title: str
    caption: str
    alt: str
    svg: str | None
    png: bytes
    is_narrow: bool = False


def text(content: str) -> str:
    """Make a string inert, in an element or an attribute."""
    return escape(content, quote=True)


def _breakable(name: str) -> str:
    """A name that wraps between its words, and not within one."""
    return text(name).replace("_", "_<wbr>")


def figure_html(figure: PageFigure) -> str:
    """Write a figure with its caption."""
    if figure.svg is not None:
        narrow = ' class="narrow"' if figure.is_narrow else ""
        label = f'<svg role="img" aria-label="{text(figure.alt)}"{narrow} '
        body = figure.svg.replace("<svg ", label, 1)
    else:
        data = base64.b64encode(figure.png).decode()
        body = f'<img src="data:image/png;base64,{data}" alt="{text(figure.alt)}">'
    return (
        f"<figure>\n{_scrolled(body, figure.title)}\n<figcaption><strong>{text(figure.title)}.</strong> "
        f"{text(figure.caption)}</figcaption>\n</figure>"
    )


def table_html(table: ResultTable, name: str) -> str:
    """Write a table; ``name`` is unique on the page, for its footnotes."""
    head = "".join(
        f'<th scope="col"><span class="head">{text(metric_name(metric))}</span>'
        + (f'<span class="of">{_breakable(model)}</span>' if len(table.models) > 1 else "")
        + "</th>"
        for metric in table.metrics
        for model in table.models
    ) + "".join(f'<th scope="col"><span class="head">{text(side)}</span></th>' for side in table.sides)
    counted = "present / n" if table.has_positives else "n"
    body = "\n".join(
        f'<tr><th scope="row" data-value="{text(row.name)}">{text(row.name)}</th>'
        f'<td data-value="{text(row.counts.split(" / ")[0])}">{text(row.counts)}</td>'
        + "".join(_cell(cell, name) for cell in row.cells)
        + "".join(f'<td data-value="{text(side.split(" ")[-1])}">{text(side)}</td>' for side in row.sides)
        + "</tr>"
        for row in table.rows
    )
    cells = "".join(f"<td>{value}</td>" for value in (*table.chance, *[""] * len(table.sides)))
    foot = f'<tr><th scope="row">chance</th><td></td>{cells}</tr>' if table.chance else ""
    of = f"{table.models[0]}: " if len(table.models) == 1 else ""
    content = (
        '<table class="sortable">\n'
        f"<caption><span>{text(of + described(table.provenance))}</span></caption>\n"
        f'<thead><tr><th scope="col"><span class="head">{table.row_kind}</span></th>'
        f'<th scope="col"><span class="head">{counted}</span></th>{head}</tr></thead>\n'
        f"<tbody>\n{body}\n</tbody>" + (f"\n<tfoot>\n{foot}\n</tfoot>" if foot else "") + "\n</table>"
    )
    return f"{_scrolled(content, 'Table')}\n{_notes(table, name)}"


def cards_html(results: Results) -> str:
    """Write the numbers of a model that stand on top; a sentence where none is defined."""
    chosen = headlines(results)
    if not chosen:
        return "<p>No number of this model is defined: the tables say why.</p>"
    return f'<ul class="cards">\n{"".join(map(_card, chosen))}</ul>'


def headlines(results: Results) -> list[MetricResult]:
    """Return at most four defined numbers, one per metric and direction.

    None at a threshold that was chosen on the very labels it is measured on: these numbers are there to be
    compared with published ones.
    """
    defined = [
        item
        for item in results.metrics
        if item.value is not None and not (item.threshold_source or "").startswith(TEST_ORACLE)
    ]
    known = [item for name in HEADLINES for item in defined if item.metric == name and item.finding is None]
    first = {(item.metric, item.direction): item for item in reversed(known)}
    chosen = [item for item in known if first[item.metric, item.direction] is item]
    return (chosen or defined)[:MAX_CARDS]


def confusion_html(results: Results) -> str:
    """Write the confusion of label states, all findings together."""
    total: dict[str, dict[str, int]] = {}
    for table in results.confusion.values():
        for gold, row in table.items():
            for label, number in row.items():
                total.setdefault(gold, {}).setdefault(label, 0)
                total[gold][label] += number
    labels = list(dict.fromkeys(label for row in total.values() for label in row))
    head = "".join(f'<th scope="col">{text(_words(label))}</th>' for label in labels)
    body = "\n".join(
        f'<tr><th scope="row">{text(_words(gold))}</th>'
        + "".join(f"<td>{row.get(label, 0)}</td>" for label in labels)
        + "</tr>"
        for gold, row in total.items()
    )
    caption = (
        f"Gold (rows) and label (columns), {len(results.confusion)} findings together; counts of reports"
    )
    content = (
        f"<table>\n<caption>{caption}</caption>\n"
        f'<thead><tr><th scope="col">gold</th>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>'
    )
    return _scrolled(content, "Table")


def list_html(items: Sequence[str]) -> str:
    """Write a list."""
    return "<ul>\n" + "\n".join(f"<li>{text(item)}</li>" for item in items) + "\n</ul>"


def _card(item: MetricResult) -> str:
    written = numbers(item)
    assert written is not None, "headlines are defined"
    value, low, high = written
    about = [f"n = {counts(item)}", f"{item.ci_level:.0%}: {low} to {high}"]
    if item.chance is not None:
        about.append(f"chance {chance_number(item)}")
    return (
        f'<li><div class="what">{text(metric_name(base_metric(item)))}, {text(row_name(item))}</div>'
        f'<div class="value">{value}</div><div class="rest">{text("; ".join(about))}</div>'
        f'<div class="on">{text(described(item))}</div></li>\n'
    )


def _cell(cell: Cell, name: str) -> str:
    if cell.item is None:
        return "<td></td>"
    links = ",".join(f'<a href="#{name}-{mark}">{mark}</a>' for mark in cell.marks)
    marks = f"<sup>{links}</sup>" if links else ""
    if cell.item.value is None:
        return f'<td data-value="">undefined{marks}</td>'
    value, _, rest = value_and_interval(cell.item, EN_DASH).partition(" ")
    best = ' class="best"' if cell.is_best else ""
    return (
        f'<td data-value="{cell.item.value:.12g}"{best}><span class="value">{value}</span> '
        f'<span class="ci">{rest}</span>{marks}</td>'
    )


def _notes(table: ResultTable, name: str) -> str:
    lines = [f"<p>{text('; '.join(table.remarks))}.</p>"]
    lines += [f'<p id="{name}-{mark}"><sup>{mark}</sup> {text(note)}</p>' for mark, note in table.footnotes]
    if table.has_best:
        lines.append(f"<p>{text(BEST_NOTE)}</p>")
    return f'<div class="notes">{"".join(lines)}</div>'


def _scrolled(content: str, label: str) -> str:
    """What may be wider than a phone scrolls by itself, by keyboard, too."""
    return f'<div class="wide" role="region" tabindex="0" aria-label="{text(label)}">{content}</div>'


def _words(name: str) -> str:
    return name.replace("_", " ")
