"""Forest of intervals per finding, and reliability of probabilities; needs the extra ``plots``."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from radtower.evaluation.calibration import Reliability
from radtower.evaluation.reports.pictures.drawing import (
    MUTED,
    house_style,
    new_figure,
    series_color,
    series_style,
    tidy,
)
from radtower.evaluation.reports.wording import MEAN_ROW, finding_name, metric_name, shortened
from radtower.evaluation.results import MetricResult

_MARKERS = ("o", "s", "^", "D", "v", "P")
_NAME_WIDTH = 44  # letters of a finding beside its interval
_CHANCE = {"auroc": 0.5}


def draw_forest(
    metrics: Mapping[str, Sequence[MetricResult]], names: Sequence[str] = ("auroc",), title: str = ""
) -> Figure:
    """Draw the interval of every finding, and of their mean, for one or several models.

    Args:
        metrics: Model -> results of one data set and protocol; further metrics are ignored.
        names: Metrics, one panel each, those that are there.
        title: Above all; empty where the page says it.

    Raises:
        ValueError: If no finding has one of the metrics.
    """
    found = {(model, item.metric, item.finding): item for model, items in metrics.items() for item in items}
    shown = [name for name in names if any(metric == name and key for _, metric, key in found)]
    keys = list(dict.fromkeys(key for _, metric, key in found if metric in shown and key is not None))
    if not keys:
        known = sorted({metric for _, metric, _ in found})
        raise ValueError(f"metrics must hold {' or '.join(names)} per finding, got {known}.")
    with house_style():
        num_lines = (len(keys) + 1) * (1 + 0.45 * (len(metrics) - 1))
        figure = new_figure(9.0, 1.4 + 0.25 * num_lines + (0.35 if title else 0))
        if title:
            figure.suptitle(title, fontsize=10)
        panels = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        for axes, name in zip(panels, shown, strict=True):
            for number, model in enumerate(metrics):
                rows = [
                    found.get((model, f"macro_{name}", None)),
                    *(found.get((model, name, k)) for k in keys),
                ]
                _draw_intervals(axes, rows, number, len(metrics), model)
            _frame_forest(axes, name)
        labels = [_label(key, [found.get((model, shown[0], key)) for model in metrics]) for key in keys]
        panels[0].set_yticks(range(len(keys) + 1), [MEAN_ROW, *labels])
        panels[0].set_ylim(len(keys) + 0.6, -0.6)  # the mean on top
        figure.supxlabel("in brackets: present / known", fontsize=9)
        if len(metrics) > 1:
            figure.legend(*panels[0].get_legend_handles_labels(), loc="outside upper left", ncols=3)
    return figure


def draw_reliability(curves: Mapping[str, Reliability], title: str = "") -> Figure:
    """Draw the share that is present over the score, and below how many scores there are.

    Args:
        curves: Name -> scores of all findings, binned; bins without a score are left out.
        title: Above all.

    Raises:
        ValueError: If there is no curve.
    """
    if not curves:
        raise ValueError("curves must hold a model, got none. Give probabilities with known labels.")
    with house_style():
        figure = new_figure(5.8, 6.2)
        if title:
            figure.suptitle(title, fontsize=10)
        above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
        above.plot((0, 1), (0, 1), color=MUTED, linewidth=0.8, linestyle=":", label="score = share")
        for number, (name, curve) in enumerate(curves.items()):
            is_filled = curve.counts > 0
            color, error = series_color(number), f"calibration error {curve.error:.3f}"
            above.plot(
                curve.mean_score[is_filled],
                curve.mean_label[is_filled],
                marker=_MARKERS[number % len(_MARKERS)],
                markersize=5,
                color=color,
                linestyle=series_style(number),
                label=f"{shortened(name, 40)}, {error}" if len(curves) > 1 else error,
            )
            num_bins = len(curve.counts)
            width = 0.9 / num_bins / len(curves)
            starts = np.arange(num_bins) / num_bins + 0.05 / num_bins + number * width
            below.bar(starts, curve.counts, width=width, align="edge", color=color)
        above.set(ylabel="share present", ylim=(-0.03, 1.03))
        above.legend(loc="upper left")
        below.set_yscale("symlog")  # most findings are absent: a linear axis would show one bar
        below.set_ylim(bottom=0)
        below.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        below.set(ylabel="scores", xlabel="score, P(present)", xlim=(-0.03, 1.03))
        for axes in (above, below):
            tidy(axes)
    return figure


def _draw_intervals(
    axes: Axes, rows: Sequence[MetricResult | None], number: int, num_models: int, model: str
) -> None:
    """One model: a line and a point per row, beside those of the other models."""
    offset = 0.0 if num_models == 1 else 0.56 * (number / (num_models - 1) - 0.5)
    color, label = series_color(number), shortened(model, 40)
    for height, item in enumerate(rows):
        if item is None:
            continue
        place = height + offset
        if item.value is None or item.ci_low is None or item.ci_high is None:
            place_on_page: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "va": "center"}
            axes.text(0.01, place, "undefined", fontsize=7.5, color=color, **place_on_page)
            continue
        axes.plot((item.ci_low, item.ci_high), (place, place), color=color, linewidth=1.8)
        size = 6.5 if item.finding is None else 4.8
        marker = _MARKERS[number % len(_MARKERS)]
        axes.plot(
            item.value, place, marker=marker, markersize=size, color=color, linestyle="none", label=label
        )
        label = "_nolegend_"


def _frame_forest(axes: Axes, name: str) -> None:
    drawn = [np.asarray(line.get_xdata(), dtype=float) for line in axes.lines]
    ends = np.concatenate(drawn) if drawn else np.array([0.0, 1.0])
    lowest, highest = float(ends.min()), float(ends.max())
    level = _CHANCE.get(name)
    if level is not None:
        axes.axvline(level, color=MUTED, linewidth=1, linestyle=":")
        lowest = min(lowest, level)
    axes.set_xlim(lowest - 0.03, max(highest, min(1.0, highest + 0.1)) + 0.01)
    axes.axhline(0.5, color=MUTED, linewidth=0.6)
    axes.set_title(f"{metric_name(name)} with interval")
    tidy(axes, "x")


def _label(key: str, items: Sequence[MetricResult | None]) -> str:
    """Name with the number of present and known, if all models agree on it."""
    sizes = {(item.n_positive, item.n) for item in items if item is not None}
    name = shortened(finding_name(key), _NAME_WIDTH)
    if len(sizes) != 1:
        return name
    positive, known = sizes.pop()
    return f"{name}  ({known})" if positive is None else f"{name}  ({positive} / {known})"
