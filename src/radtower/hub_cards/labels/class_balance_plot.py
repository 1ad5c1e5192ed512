"""The four states of every finding as stacked bars; needs the extra ``plots``. Axes: F findings."""

from pathlib import Path

import pandas as pd
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

# Told apart with color-blind eyes and in gray (Okabe and Ito 2008); what is unknown is pale.
COLORS = {
    "present": "#d55e00",
    "uncertain": "#f0e442",
    "absent": "#0072b2",
    "not_mentioned": "#b8cfe0",
    "no answer": "#dddddd",
}
_ROW_INCHES = 0.27


def plot_class_balance(counts: pd.DataFrame, title: str, path: str | Path) -> Path:
    """Draw the share of rows in each state, and write the number of present ones beside the bar.

    Args:
        counts: ``(F, 5)`` rows, index names of findings, columns those of ``COLORS``.
        title: Says what the picture is.
        path: PNG to write.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(8.5, 1.3 + _ROW_INCHES * len(counts)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    shares = counts.div(counts.sum(axis=1), axis=0)
    names = [str(name) for name in counts.index]
    left = pd.Series(0.0, index=counts.index)
    for state, color in COLORS.items():
        label = state.replace("_", " ")
        axes.barh(names, shares[state], left=left, color=color, label=label, edgecolor="white", linewidth=0.4)
        left += shares[state]
    for row, num_present in enumerate(counts["present"]):
        axes.text(1.01, row, str(num_present), va="center", fontsize=8)
    axes.text(1.01, -1, "present", va="center", fontsize=8, style="italic")
    axes.set_xlim(0, 1)
    axes.set_ylim(len(counts) - 0.4, -1.4)  # the first finding on top, as in the table
    axes.set_xlabel("share of rows")
    axes.tick_params(labelsize=8)
    axes.spines[["top", "right"]].set_visible(False)
    figure.suptitle(title, fontsize=10)
    figure.legend(loc="outside lower center", ncols=len(COLORS), fontsize=8, frameon=False)
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return Path(path)
