r"""Tables of results as Markdown, and as LaTeX with booktabs. Every string of a results file is escaped."""

import re
from collections.abc import Iterator, Sequence

from radtower.evaluation.reports.result_tables import Cell, ResultTable, result_tables
from radtower.evaluation.reports.wording import (
    NOT_FOR_DIAGNOSIS,
    PHANTOM_NOTICE,
    described,
    metric_name,
    shortened,
    value_and_interval,
)
from radtower.evaluation.results import Results

BEST_NOTE = (
    "Bold: its interval lies beyond those of all others. Intervals that overlap decide nothing: "
    "compare models with radtower compare."
)
_MODEL_WIDTH = 28  # letters above a column; the caption has the whole name
LONG_TABLE = 40  # rows; more than fit on a page
_TABLES_AT_ONCE = 10  # LaTeX keeps a few dozen floats in mind and stops at one more
_MARKDOWN = re.compile(r"([\\`*_{}\[\]<>|#~&$])")
_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    '"': r"\textquotedbl{}",
    "`": r"\textasciigrave{}",
    "'": r"\textquotesingle{}",
    "-": r"{-}",  # "--" would become one dash
}
_LATEX_HEAD = (
    "% Research use only, not for diagnosis. In the preamble:\n"
    "%   \\usepackage[T1]{fontenc}\n%   \\usepackage{booktabs,graphicx,longtable,textcomp}\n"
    "% Names in scripts other than Latin need LuaLaTeX or XeLaTeX.\n"
)


def markdown_tables(results: Sequence[Results]) -> str:
    """Write all tables in Markdown.

    Raises:
        ValueError: If no result has a metric.
    """
    parts = [f"*{notice}*" for notice in _notices(results)]
    return "\n\n".join([*parts, *map(_markdown, result_tables(results))]) + "\n"


def latex_tables(results: Sequence[Results]) -> str:
    """Write all tables in LaTeX; the first lines name the packages.

    Raises:
        ValueError: If no result has a metric.
    """
    notices = "".join(f"% {notice}\n" for notice in _notices(results) if notice != NOT_FOR_DIAGNOSIS)
    tables = list(map(_latex, result_tables(results)))
    parts = [
        "\n".join(tables[start : start + _TABLES_AT_ONCE]) for start in range(0, len(tables), _TABLES_AT_ONCE)
    ]
    return _LATEX_HEAD + notices + "\n" + "\n\\clearpage\n\n".join(parts)


def escape_markdown(text: str) -> str:
    """Make a text inert in Markdown, on one line."""
    return _MARKDOWN.sub(r"\\\1", _one_line(text))


def escape_latex(text: str) -> str:
    """Make a text inert in LaTeX, on one line."""
    return "".join(_LATEX.get(letter, letter) for letter in _one_line(text))


def _notices(results: Sequence[Results]) -> list[str]:
    return [NOT_FOR_DIAGNOSIS, *([PHANTOM_NOTICE] if any(item.phantom for item in results) else [])]


def _markdown(table: ResultTable) -> str:
    heads = [metric_name(m) + (f" {n}" if len(table.models) > 1 else "") for m, n in _columns(table)]
    heads += table.sides
    lines = [["", _counts_head(table), *map(escape_markdown, heads)], ["---", *["---:"] * (len(heads) + 1)]]
    for row in table.rows:
        sides = map(escape_markdown, row.sides)
        lines.append([escape_markdown(row.name), row.counts, *map(_markdown_cell, row.cells), *sides])
    if table.chance:
        lines.append(["*chance*", "", *table.chance, *[""] * len(table.sides)])
    rows = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    title = f"**{escape_markdown(_title(table))}**"
    return "\n\n".join([title, rows, *(_sentence(escape_markdown(note)) for note in _notes(table))])


def _markdown_cell(cell: Cell) -> str:
    if cell.item is None:
        return ""
    text = value_and_interval(cell.item)
    return (f"**{text}**" if cell.is_best else text) + "".join(
        f" ({escape_markdown(mark)})" for mark in cell.marks
    )


def _latex(table: ResultTable) -> str:
    num_columns = len(table.metrics) * len(table.models) + len(table.sides)
    is_long = len(table.rows) > LONG_TABLE
    spec = f"{{l{'r' * (num_columns + 1)}}}"
    caption = rf"\caption{{{escape_latex(_title(table))}}}"
    head = "\n".join([r"\toprule", *_latex_head(table), r"\midrule"])
    rows = [
        [
            escape_latex(row.name),
            escape_latex(row.counts),
            *map(_latex_cell, row.cells),
            *map(escape_latex, row.sides),
        ]
        for row in table.rows
    ]
    body = [" & ".join(row) + r" \\" for row in rows]
    if table.chance:
        line = [r"\textit{chance}", "", *table.chance, *[""] * len(table.sides)]
        body += [r"\midrule", " & ".join(line) + r" \\"]
    notes = r"\\ ".join(_sentence(escape_latex(note)) for note in _notes(table))
    if is_long:
        lines = [
            r"{\footnotesize\setlength{\tabcolsep}{4pt}",
            rf"\begin{{longtable}}{spec}",
            caption + r"\\",
            head,
            r"\endhead",
            *body,
            r"\bottomrule",
            r"\end{longtable}",
            rf"\noindent\begin{{minipage}}{{\linewidth}}\footnotesize {notes}\end{{minipage}}\par}}",
        ]
    else:
        lines = [
            r"\begin{table}[htbp]",
            r"\centering\footnotesize\setlength{\tabcolsep}{4pt}",
            caption + r"\vspace{4pt}",
            # Made smaller where it is wider than the text, and never larger.
            r"\resizebox{\ifdim\width>\linewidth \linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{spec}",
            head,
            *body,
            r"\bottomrule",
            r"\end{tabular}}\par\smallskip",
            rf"\begin{{minipage}}{{\linewidth}}\footnotesize {notes}\end{{minipage}}",
            r"\end{table}",
        ]
    return "\n".join(lines) + "\n"


def _latex_head(table: ResultTable) -> Iterator[str]:
    names = [escape_latex(metric_name(metric)) for metric in table.metrics]
    num_models, sides = len(table.models), list(map(escape_latex, table.sides))
    if num_models == 1:
        yield " & ".join(["", _counts_head(table), *names, *sides]) + r" \\"
        return
    spans = [rf"\multicolumn{{{num_models}}}{{c}}{{{name}}}" for name in names]
    yield " & ".join(["", "", *spans, *[""] * len(sides)]) + r" \\"
    starts = [3 + num_models * position for position in range(len(names))]
    yield "".join(rf"\cmidrule(lr){{{start}-{start + num_models - 1}}}" for start in starts)
    models = [escape_latex(shortened(model, _MODEL_WIDTH)) for model in table.models]
    yield " & ".join(["", _counts_head(table), *models * len(names), *sides]) + r" \\"


def _latex_cell(cell: Cell) -> str:
    if cell.item is None:
        return ""
    text = value_and_interval(cell.item, "--", "$-$")
    marks = ",".join(cell.marks)
    return (rf"\textbf{{{text}}}" if cell.is_best else text) + (
        rf"\textsuperscript{{{marks}}}" if marks else ""
    )


def _columns(table: ResultTable) -> list[tuple[str, str]]:
    return [(metric, model) for metric in table.metrics for model in table.models]


def _counts_head(table: ResultTable) -> str:
    return "present / n" if table.has_positives else "n"


def _title(table: ResultTable) -> str:
    models = ", ".join(table.models)
    return f"{models}: {described(table.provenance)}"


def _notes(table: ResultTable) -> list[str]:
    footnotes = [f"({mark}) {text}" for mark, text in table.footnotes]
    return [*table.remarks, *footnotes, *([BEST_NOTE] if table.has_best else [])]


def _sentence(text: str) -> str:
    return text if text.endswith(".") else f"{text}."


def _one_line(text: str) -> str:
    return " ".join("".join(c if c.isprintable() else " " for c in text).split())
