"""Pictures of an agreement; needs the extra ``plots``. Drawn off screen, without file metadata."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from radtower.evaluation.labels.calibration import NUM_BINS, Reliability
from radtower.evaluation.plots import ABSENT_COLOR, PRESENT_COLOR
from radtower.evaluation.results import MetricResult

FOREST_METRICS = {"auroc": "AUROC", "f1": "F1"}


def plot_forest(metrics: Sequence[MetricResult], title: str, path: str | Path) -> Path:
    """Draw AUROC and F1 of every finding and their mean, with 95 % intervals.

    Args:
        metrics: Results of one comparison; further metrics are ignored.
        title: Says whose labels are compared with what.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        ValueError: If there is no AUROC and no F1.
    """
    found = {(item.metric, item.finding): item for item in metrics}
    keys = [finding for metric, finding in found if metric == "auroc" and finding is not None]
    if not keys:
        raise ValueError(f"metrics must hold auroc per finding, got {sorted({m for m, _ in found})}.")
    figure = Figure(figsize=(11, 1.9 + 0.3 * len(keys)), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    panels = figure.subplots(1, 2, sharey=True)
    for axes, (metric, name) in zip(panels, FOREST_METRICS.items(), strict=True):
        rows = [found[f"macro_{metric}", None], *(found[metric, key] for key in reversed(keys))]
        _draw_intervals(axes, rows)
        axes.set_title(f"{name} with 95 % interval", fontsize=9)
    sizes = [f"{key.replace('_', ' ')}  ({_share(found['auroc', key])})" for key in reversed(keys)]
    panels[0].set_yticks(range(len(keys) + 1), ["mean of the findings", *sizes], fontsize=8)
    panels[0].set_ylim(-0.7, len(keys) + 0.7)
    figure.supxlabel("in brackets: present in gold / known in gold", fontsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return Path(path)


def plot_reliability(curve: Reliability, title: str, path: str | Path) -> Path:
    """Draw the share that is present over the score, and how many scores there are.

    Args:
        curve: Scores of all findings, binned.
        title: Says whose scores they are.
        path: PNG to write.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(5.6, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=10)
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    above.plot((0, 1), (0, 1), color="gray", linewidth=0.8, linestyle=":", label="score = share")
    is_filled = curve.num_scores > 0
    above.plot(
        curve.mean_score[is_filled],
        curve.share_present[is_filled],
        marker="o",
        color=PRESENT_COLOR,
        label=f"scores of all findings, ECE {curve.ece:.3f}",
    )
    above.set_ylabel("share present in gold", fontsize=9)
    above.set_ylim(-0.03, 1.03)
    above.legend(loc="upper left", fontsize=8)
    centers = (np.arange(NUM_BINS) + 0.5) / NUM_BINS
    below.bar(centers, curve.num_scores, width=0.9 / NUM_BINS, color=ABSENT_COLOR)
    below.set_yscale("symlog")  # most findings are absent: a linear axis would show one bar
    below.set_ylabel("scores", fontsize=9)
    below.set_xlabel("score, P(present)", fontsize=9)
    below.set_xlim(-0.03, 1.03)
    for axes in (above, below):
        axes.tick_params(labelsize=8)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return Path(path)


def _draw_intervals(axes: Axes, rows: Sequence[MetricResult]) -> None:
    lows = []
    for height, item in enumerate(rows):
        if item.value is None or item.ci_low is None or item.ci_high is None:
            axes.text(
                0.02, height, "undefined", fontsize=7, va="center", transform=axes.get_yaxis_transform()
            )
            continue
        is_mean = item.finding is None
        axes.plot((item.ci_low, item.ci_high), (height, height), color=ABSENT_COLOR, linewidth=1.6)
        axes.plot(
            item.value,
            height,
            marker="D" if is_mean else "o",
            markersize=6 if is_mean else 4.5,
            color=PRESENT_COLOR,
        )
        lows.append(item.ci_low)
    axes.set_xlim(max(0.0, min(lows, default=0.0) - 0.03), 1.01)
    axes.axhline(0.5, color="gray", linewidth=0.6)
    axes.grid(axis="x", linewidth=0.4, alpha=0.6)
    axes.tick_params(labelsize=8)


def _share(item: MetricResult) -> str:
    return f"{item.n_positive} / {item.n}"
