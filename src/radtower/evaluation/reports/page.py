"""One page of everything: a single HTML file that asks nothing of any server.

Style, script, drawings and pictures are inside; a content security policy forbids the rest.
"""

import base64
import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from string import Template

from radtower.evaluation.reports.html_parts import (
    PageFigure,
    cards_html,
    confusion_html,
    figure_html,
    list_html,
    table_html,
    text,
)
from radtower.evaluation.reports.result_tables import ResultTable
from radtower.evaluation.reports.runs import Run
from radtower.evaluation.reports.wording import NOT_FOR_DIAGNOSIS, PHANTOM_NOTICE
from radtower.evaluation.results import Results

# The page says which pictures were written beside it, so that the next report can remove them.
WRITTEN_META = re.compile(r'<meta name="radtower-pictures" content="([^"]*)">')
PICTURE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*\.png")


@dataclass(frozen=True)
class Section:
    """A data set and protocol: its pictures and tables."""

    title: str
    figures: tuple[PageFigure, ...]
    tables: tuple[ResultTable, ...]


def render_page(
    title: str,
    runs: Sequence[Run],
    sections: Sequence[Section],
    pictures: Sequence[tuple[str, PageFigure]] = (),
    commands: Sequence[str] = (),
) -> str:
    """Return the page.

    Args:
        title: Of the page.
        runs: The models, in order.
        sections: What was measured.
        pictures: Model and picture, of those that lie beside the results.
        commands: Command lines that made the results, if known.
    """
    style, script = _template("page.css"), _template("page.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    body = [
        *(_section(section, number) for number, section in enumerate(sections, start=1)),
        _pictures(pictures, len(runs) > 1),
        *(_confusion(run, len(runs) > 1) for run in runs if run.results.confusion),
        _not_measured(runs),
        _how(runs, commands),
    ]
    return Template(_template("page.html")).substitute(
        title=text(title),
        written=text(_written([*(f for s in sections for f in s.figures), *(f for _, f in pictures)])),
        script_hash=f"sha256-{digest}",
        style=style,
        script=script,
        head=_head(runs, sections, bool(pictures)),
        content="\n".join(filter(None, body)),
        foot=_foot(runs),
    )


def picture_digest(png: bytes) -> str:
    """Return what tells a picture of ours from one of the same name."""
    return hashlib.sha256(png).hexdigest()[:16]


def _written(figures: Sequence[PageFigure]) -> str:
    return " ".join(f"{figure.name}.png:{picture_digest(figure.png)}" for figure in figures)


def _template(name: str) -> str:
    return (files("radtower.evaluation.reports") / "templates" / name).read_text(encoding="utf-8")


def _head(runs: Sequence[Run], sections: Sequence[Section], has_pictures: bool) -> str:
    lines = [f'<p class="notice" role="note">{NOT_FOR_DIAGNOSIS}</p>']
    phantoms = [run.name for run in runs if run.results.phantom]
    if phantoms:
        whose = "" if len(phantoms) == len(runs) else f" ({text(', '.join(phantoms))})"
        lines.insert(0, f'<p class="notice" role="note">{PHANTOM_NOTICE}{whose}</p>')
    for run in runs:
        lines += [
            f'<h2 class="model">{text(run.name)}</h2>',
            f'<p class="about">{text(_summary(run.results))}</p>',
            cards_html(run.results),
        ]
    if len(sections) > 1 or has_pictures:
        links = [f'<li><a href="#s{i}">{text(s.title)}</a></li>' for i, s in enumerate(sections, start=1)]
        if has_pictures:
            links.append('<li><a href="#pictures">Pictures</a></li>')
        links.append('<li><a href="#how">How this was made</a></li>')
        lines.append(f'<nav aria-label="Contents"><ul>{"".join(links)}</ul></nav>')
    return "\n".join(lines)


def _summary(results: Results) -> str:
    """One line: revision, date, how many numbers and of how much they are."""
    defined = sum(item.value is not None for item in results.metrics)
    sizes = [item.n for item in results.metrics]
    total = f"{min(sizes)}" if len(set(sizes)) == 1 else f"{min(sizes)} to {max(sizes)}" if sizes else "0"
    undefined = len(results.metrics) - defined
    return "; ".join(
        filter(
            None,
            [
                f"model {results.model_id}",
                f"revision {results.model_revision or 'not known (a local folder)'}",
                f"measured {results.created:%Y-%m-%d}",
                f"{defined} numbers, n = {total}",
                f"{undefined} undefined" if undefined else "",
            ],
        )
    )


def _section(section: Section, number: int) -> str:
    parts = [f'<section aria-labelledby="s{number}">', f'<h2 id="s{number}">{text(section.title)}</h2>']
    parts += [figure_html(figure) for figure in section.figures]
    parts += [table_html(table, f"t{number}-{place}") for place, table in enumerate(section.tables, start=1)]
    return "\n".join([*parts, "</section>"])


def _pictures(pictures: Sequence[tuple[str, PageFigure]], is_named: bool) -> str:
    if not pictures:
        return ""
    parts = ['<section aria-labelledby="pictures">', '<h2 id="pictures">Pictures</h2>']
    previous = None
    for name, figure in pictures:
        if is_named and name != previous:
            parts.append(f"<h3>{text(name)}</h3>")
        previous = name
        parts.append(figure_html(figure))
    return "\n".join([*parts, "</section>"])


def _confusion(run: Run, is_named: bool) -> str:
    of = f", {text(run.name)}" if is_named else ""
    return f"<section>\n<h2>Label states{of}</h2>\n{confusion_html(run.results)}\n</section>"


def _not_measured(runs: Sequence[Run]) -> str:
    lines = [
        f"{run.name}: {reason}" if len(runs) > 1 else reason
        for run in runs
        for reason in run.results.not_measured
    ]
    return f"<section>\n<h2>Not measured</h2>\n{list_html(lines)}\n</section>" if lines else ""


def _how(runs: Sequence[Run], commands: Sequence[str]) -> str:
    known = "".join(f"{text(command)}\n" for command in commands)
    first = (
        f"<p>The results were made by</p>\n<pre>{known}</pre>"
        if commands
        else "<p>How the results were made is not recorded; <code>radtower evaluate --help</code> lists "
        "what there is.</p>"
    )
    numbered = " ".join(f"{number}/results.json" for number in range(1, len(runs) + 1))
    files_of = "results.json" if len(runs) == 1 else numbered
    return (
        '<section aria-labelledby="how">\n<h2 id="how">How this was made</h2>\n'
        f"{first}\n<p>This page, from the results:</p>\n<pre>radtower report {files_of} -o FOLDER</pre>\n"
        "<p>Every number stands in <code>results.json</code>, with its interval, n, class set and label "
        "source. Bands of curves are drawn from the rows beside it. Intervals say how much the number "
        "depends on the patients that were measured; not on the training run, nor on another hospital.</p>\n"
        "</section>"
    )


def _foot(runs: Sequence[Run]) -> str:
    schemas = ", ".join(dict.fromkeys(str(run.results.schema_version) for run in runs))
    dates = ", ".join(dict.fromkeys(run.results.created.isoformat() for run in runs))
    return (
        f"<p>{NOT_FOR_DIAGNOSIS}</p>\n<p>RadTower {text(version('radtower'))}; results schema {schemas}; "
        f"results of {text(dates)}.</p>"
    )
