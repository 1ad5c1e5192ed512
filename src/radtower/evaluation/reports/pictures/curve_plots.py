"""ROC curves and recall@k curves of one or several models, with bands; needs the extra ``plots``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator, ScalarFormatter

from radtower.evaluation.reports.pictures.curves import Curve
from radtower.evaluation.reports.pictures.drawing import (
    MUTED,
    house_style,
    new_figure,
    panel_title,
    series_color,
    series_style,
    tidy,
)
from radtower.evaluation.reports.wording import MEAN_ROW, finding_name, shortened

MAX_PANELS = 24  # findings that are drawn one by one; more are thin lines behind their mean
PANELS_PER_ROW = 4
_KS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)


def draw_roc(curves: Mapping[str, Mapping[str, Curve]], means: Mapping[str, Curve]) -> Figure:
    """Draw the mean ROC of each model, and a panel per finding.

    Args:
        curves: Model -> finding -> curve.
        means: Model -> mean curve.

    Raises:
        ValueError: If no model has a mean curve.
    """
    if not means:
        raise ValueError("means must hold a curve, got none. Draw where a finding has both classes.")
    findings = list(dict.fromkeys(finding for one in curves.values() for finding in one))
    has_panels = 1 < len(findings) <= MAX_PANELS
    panels = [MEAN_ROW, *findings] if has_panels else [MEAN_ROW if len(findings) > 1 else findings[0]]
    num_columns = min(PANELS_PER_ROW, len(panels))
    num_rows = -(-len(panels) // num_columns)
    with house_style():
        size = (9.0, 2.35 * num_rows + 0.7) if num_columns > 1 else (5.2, 5.4)
        figure = new_figure(*size)
        grid = figure.subplots(num_rows, num_columns, sharex=True, sharey=True, squeeze=False)
        flat = list(grid.ravel())
        for axes in flat[len(panels) :]:
            axes.set_visible(False)
        for place, (axes, name) in enumerate(zip(flat, panels, strict=False)):
            is_mean = place == 0 and len(findings) > 1
            chosen = means if is_mean else {model: one[name] for model, one in curves.items() if name in one}
            if is_mean and not has_panels:
                _draw_thin(axes, curves)
            _draw_lines(axes, chosen, list(means))
            _frame_roc(axes, name, is_bold=is_mean)
            # Panels that are not there leave the one above without its axis.
            axes.xaxis.set_tick_params(labelbottom=place + num_columns >= len(panels))
        figure.supxlabel("1 - specificity", fontsize=9)
        figure.supylabel("sensitivity", fontsize=9)
        if len(means) > 1:
            handles = flat[0].get_legend_handles_labels()[0]
            figure.legend(handles, [shortened(m, 40) for m in means], loc="outside upper left", ncols=3)
    return figure


def draw_recall(
    curves: Mapping[str, Mapping[str, Curve]], chance: Mapping[str, Sequence[tuple[int, float]]]
) -> Figure:
    """Draw recall over k, a panel per direction.

    Args:
        curves: Direction -> model -> curve.
        chance: Direction -> pairs of k and what a random order gets, where it is known.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("curves must hold a direction, got none. Draw where there are ranks.")
    models = list(dict.fromkeys(model for one in curves.values() for model in one))
    num_columns = min(2, len(curves))
    num_rows = -(-len(curves) // num_columns)
    with house_style():
        figure = new_figure(9.0 if num_columns > 1 else 5.6, 3.6 * num_rows + 0.4)
        grid = figure.subplots(num_rows, num_columns, sharey=True, squeeze=False)
        flat = list(grid.ravel())
        for axes in flat[len(curves) :]:
            axes.set_visible(False)
        for axes, (direction, lines) in zip(flat, curves.items(), strict=False):
            _draw_lines(axes, lines, models)
            largest = max(int(curve.x[-1]) for curve in lines.values())
            points = [(k, level) for k, level in chance.get(direction, ()) if k <= largest]
            if points:
                _draw_chance(axes, points)
            _frame_recall(axes, direction, largest)
        if len(models) > 1 or any(chance.values()):
            flat[0].legend(loc="upper left")
    return figure


def _draw_lines(axes: Axes, lines: Mapping[str, Curve], models: Sequence[str]) -> None:
    """A line and band per model, in the color of its place among all models."""
    for model, curve in lines.items():
        number = models.index(model)
        color = series_color(number)
        if curve.low is not None and curve.high is not None:
            axes.fill_between(curve.x, curve.low, curve.high, color=color, alpha=0.2, linewidth=0)
        x, y = (np.r_[0.0, curve.x], np.r_[0.0, curve.y]) if curve.x[0] == 0 else (curve.x, curve.y)
        axes.plot(
            x, y, color=color, linestyle=series_style(number), linewidth=1.6, label=shortened(model, 40)
        )


def _draw_chance(axes: Axes, points: Sequence[tuple[int, float]]) -> None:
    """Marks where chance is known; between them it grows by the same share with each item looked at."""
    known_ks, levels = zip(*points, strict=True)
    ks = np.arange(known_ks[0], known_ks[-1] + 1)
    marked = [int(k - ks[0]) for k in known_ks]
    style: dict[str, Any] = {
        "color": MUTED,
        "linestyle": ":",
        "marker": "x",
        "markersize": 5,
        "linewidth": 1.2,
    }
    axes.plot(ks, np.interp(ks, known_ks, levels), label="chance", markevery=marked, **style)


def _draw_thin(axes: Axes, curves: Mapping[str, Mapping[str, Curve]]) -> None:
    for one in curves.values():
        for curve in one.values():
            axes.plot(curve.x, curve.y, color=MUTED, linewidth=0.4, alpha=0.5)


def _frame_roc(axes: Axes, name: str, *, is_bold: bool) -> None:
    axes.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle=":")
    axes.set_title(panel_title(finding_name(name)), fontsize=9, fontweight="bold" if is_bold else "normal")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    axes.set_xticks((0, 0.5, 1), ("0", "0.5", "1"))
    axes.set_yticks((0, 0.5, 1), ("0", "0.5", "1"))
    tidy(axes)


def _frame_recall(axes: Axes, direction: str, largest: int) -> None:
    axes.set_title(direction.replace("_", " "))
    axes.set_ylim(-0.02, 1.02)
    axes.set_xscale("log")
    axes.set_xlim(0.93, largest * 1.07)
    axes.xaxis.set_major_locator(FixedLocator([k for k in _KS if k <= largest]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("k, items looked at")
    axes.set_ylabel("recall@k")
    tidy(axes)
