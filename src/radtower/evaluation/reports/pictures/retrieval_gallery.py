"""Gallery of retrieved scans: a few queries, and what the model found for them; needs the extra ``plots``.

No id and no report text is drawn: a row number of the table says which study it is, to who has the table.
Axes: G gallery, E embedding.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from radtower.evaluation.plots import DISPLAY_WINDOW_HU
from radtower.evaluation.reports.pictures.drawing import house_style, new_figure
from radtower.evaluation.reports.wording import finding_name, shortened

GROUND, LETTERS, FAINT = "#14181d", "#eef2f6", "#9aa7b4"
HIT, MISS = "#56b4e9", "#8a5a3c"  # blue and brown: told apart with any kind of color vision
MAX_FINDINGS = 4  # written below a scan; the rest is counted
_LINE = 22  # letters of a finding below a scan


@dataclass(frozen=True)
class GalleryRow:
    """A query and the best answers.

    Args:
        query: Its row in the table.
        answers: Rows of the answers, the best first.
        similarities: Of the answers.
        are_right: Whether an answer counts as right.
    """

    query: int
    answers: tuple[int, ...]
    similarities: tuple[float, ...]
    are_right: tuple[bool, ...]


def best_answers(
    queries: np.ndarray,
    gallery: np.ndarray,
    rows: Sequence[int],
    keys: Sequence[object] | np.ndarray,
    k: int = 5,
    *,
    is_same_set: bool = False,
) -> list[GalleryRow]:
    """Find the best k answers for some queries.

    Args:
        queries: ``(G, E)``; row i belongs to row i of the gallery.
        gallery: ``(G, E)``, compared by the dot product: give unit vectors for the cosine.
        rows: Queries to answer.
        keys: ``(G,)``; an answer is right where its key is that of the query.
        k: Answers per query, fewer than the gallery has.
        is_same_set: Whether queries and gallery are the same scans; a query is then no answer to itself.

    Raises:
        ValueError: If the lengths differ, a row is out of range, or k is.
    """
    if not len(queries) == len(gallery) == len(keys):
        raise ValueError(
            f"queries, gallery and keys must pair up, got {len(queries)}, {len(gallery)} and {len(keys)}."
        )
    num_possible = len(gallery) - is_same_set
    if not 1 <= k <= num_possible or any(not 0 <= row < len(queries) for row in rows):
        raise ValueError(
            f"k must be between 1 and {num_possible}, and rows between 0 and {len(queries) - 1}, got k {k} "
            f"and rows {list(rows)[:5]}."
        )
    found = []
    for row in rows:
        scores = np.asarray(gallery @ queries[row], dtype=np.float64)
        if is_same_set:
            scores[row] = -np.inf
        best = np.argsort(-scores, kind="stable")[:k]
        found.append(
            GalleryRow(
                int(row),
                tuple(int(place) for place in best),
                tuple(float(scores[place]) for place in best),
                tuple(bool(keys[place] == keys[row]) for place in best),
            )
        )
    return found


def chosen_rows(num_rows: int, num_chosen: int, seed: int = 0) -> list[int]:
    """Return queries drawn at random, in order: a gallery of the nicest would flatter."""
    rng = np.random.default_rng(seed)
    return sorted(int(row) for row in rng.choice(num_rows, size=min(num_chosen, num_rows), replace=False))


def draw_retrieval_gallery(
    rows: Sequence[GalleryRow],
    load_image: Callable[[int], np.ndarray],
    findings: Sequence[Sequence[str] | None],
    query_kind: str,
    note: str,
) -> Figure:
    """Draw a line per query: the query, then its answers with mark, similarity and findings.

    Args:
        rows: Queries and answers, of :func:`best_answers`.
        load_image: Row -> ``(Z, Y, X)`` in Hounsfield units, whose middle axial slice is drawn, or a 2D image
            ``(Y, X)`` or ``(Y, X, 3)``, drawn from its least to its largest value.
        findings: Per row of the table, the findings that are there; None where nobody knows.
        query_kind: ``report`` draws a card with the findings of the query, ``scan`` its picture.
        note: What the picture is not for; always shown.

    Raises:
        ValueError: If there is no row, the kind is another, or an image has another shape.
    """
    if query_kind not in ("report", "scan"):
        raise ValueError(f"query_kind must be report or scan, got {query_kind!r}.")
    if not rows:
        raise ValueError("rows must hold a query, got none. Choose some.")
    num_columns = 1 + max(len(row.answers) for row in rows)
    width = 1.75
    with house_style():
        figure = new_figure(width * num_columns + 0.2, 2.72 * len(rows) + 0.75, facecolor=GROUND)
        grid = figure.subplots(len(rows), num_columns, squeeze=False)
        for line, row in zip(grid, rows, strict=True):
            for axes in line:
                axes.set_axis_off()
            _draw_query(line[0], row.query, load_image, findings[row.query], query_kind)
            answers = zip(line[1:], row.answers, row.similarities, row.are_right, strict=False)
            for place, (axes, answer, similarity, is_right) in enumerate(answers, start=1):
                _show(axes, load_image(answer))
                _frame(axes, HIT if is_right else MISS, 3.0 if is_right else 1.2)
                mark = "right" if is_right else "other"
                head = f"{place}. {mark}  {similarity:.2f}"
                axes.set_title(head, fontsize=9, color=HIT if is_right else FAINT)
                _write_below(axes, answer, findings[answer], shared=findings[row.query] or ())
        figure.suptitle(
            "Query on the left, answers by similarity. Blue frame: counts as right. "
            f"=: a finding of the query.\n{note}",
            fontsize=9,
            color=LETTERS,
        )
    return figure


def _draw_query(
    axes: Axes,
    query: int,
    load_image: Callable[[int], np.ndarray],
    findings: Sequence[str] | None,
    kind: str,
) -> None:
    axes.set_title(f"query: {kind}", fontsize=9, color=LETTERS, fontweight="bold")
    if kind == "scan":
        _show(axes, load_image(query))
        _frame(axes, LETTERS, 1.2)
        _write_below(axes, query, findings, shared=findings or ())
        return
    axes.set(xlim=(0, 1), ylim=(1, 0), aspect="equal")
    _frame(axes, LETTERS, 1.2)
    lines = ["report of a scan with", "", *_lines(findings, 8)] if findings is not None else ["report"]
    axes.text(0.06, 0.06, "\n".join(lines), va="top", fontsize=7.5, color=LETTERS, transform=axes.transData)
    _caption(axes, f"row {query}")


def _show(axes: Axes, image: np.ndarray) -> None:
    image = np.asarray(image)
    if image.ndim == 3 and image.shape[-1] != 3:
        low, high = DISPLAY_WINDOW_HU
        axes.imshow(image[len(image) // 2], cmap="gray", vmin=low, vmax=high)
    elif image.ndim in (2, 3):
        values = image.astype(np.float64)
        span = float(values.max() - values.min())
        axes.imshow((values - values.min()) / (span or 1.0), cmap="gray", vmin=0.0, vmax=1.0)
    else:
        raise ValueError(
            f"an image must be (Z, Y, X) in HU, (Y, X) or (Y, X, 3), got shape {image.shape}. "
            "Give one scan without a batch axis."
        )


def _frame(axes: Axes, color: str, width: float) -> None:
    box = Rectangle((0, 0), 1, 1, transform=axes.transAxes, fill=False, color=color, linewidth=width)
    box.set_clip_on(False)
    axes.add_patch(box)


def _write_below(axes: Axes, row: int, findings: Sequence[str] | None, shared: Sequence[str]) -> None:
    """Findings below a scan, those it shares with the query first and marked."""
    if findings is None:
        _caption(axes, f"row {row}")
        return
    ordered = [key for key in findings if key in shared] + [key for key in findings if key not in shared]
    marked = [
        f"= {name}" if key in shared else f"  {name}" for key, name in zip(ordered, ordered, strict=True)
    ]
    _caption(axes, "\n".join([f"row {row}", *_lines(marked, MAX_FINDINGS)]))


def _caption(axes: Axes, text: str) -> None:
    axes.text(
        0.0, -0.04, text, va="top", fontsize=7, color=LETTERS, transform=axes.transAxes, linespacing=1.25
    )


def _lines(findings: Sequence[str], most: int) -> list[str]:
    if not findings:
        return ["no finding"]
    names = [shortened(finding_name(key), _LINE) for key in findings]
    return names if len(names) <= most else [*names[: most - 1], f"+ {len(names) - most + 1} more"]
