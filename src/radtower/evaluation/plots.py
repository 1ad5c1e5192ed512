"""Pictures for people; needs the extra ``plots``. Drawn off screen, without file metadata."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

DISPLAY_WINDOW_HU = (-1000.0, 400.0)  # lung and mediastinum in one gray scale
PRESENT_COLOR, ABSENT_COLOR = "#c0504d", "#4f81bd"


def plot_scan_with_findings(
    volume_hu: np.ndarray,
    spacing_mm: Sequence[float],
    scores: Mapping[str, float],
    truth: Mapping[str, bool],
    title: str,
    path: str | Path,
) -> Path:
    """Draw a scan in three planes beside the scores of its findings.

    Args:
        volume_hu: ``(Z, Y, X)`` in Hounsfield units, orientation LPS.
        spacing_mm: Voxel size in (Z, Y, X) order, for the aspect of the planes.
        scores: Score in [0, 1] by finding.
        truth: Whether the finding is there; colors the bars.
        title: Says what the picture is, and what it is not.
        path: PNG to write.

    Returns:
        ``path``.
    """
    figure = Figure(figsize=(13, 7.2), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title, fontsize=11)
    grid = figure.add_gridspec(2, 3, width_ratios=(1, 1, 1.25))
    z, y, x = (size // 2 for size in volume_hu.shape)
    dz, dy, dx = spacing_mm
    planes = {
        "axial": (grid[0, 0], volume_hu[z], dy / dx, ("R", "L", "A", "P")),
        # Flipped in Z: the head belongs on top.
        "coronal": (grid[0, 1], volume_hu[::-1, y], dz / dx, ("R", "L", "H", "F")),
        "sagittal": (grid[1, 0], volume_hu[::-1, :, x], dz / dy, ("A", "P", "H", "F")),
        "coronal, maximum": (grid[1, 1], volume_hu[::-1].max(axis=1), dz / dx, ("R", "L", "H", "F")),
    }
    for name, (cell, plane, aspect, sides) in planes.items():
        low, high = DISPLAY_WINDOW_HU if "maximum" not in name else (-200.0, 1200.0)
        axes = figure.add_subplot(cell)
        axes.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        axes.set_title(name, fontsize=9)
        axes.set_xticks([])
        axes.set_yticks([])
        for text, (u, v) in zip(sides, ((0.03, 0.5), (0.97, 0.5), (0.5, 0.96), (0.5, 0.04)), strict=True):
            axes.text(
                u, v, text, color="yellow", fontsize=8, ha="center", va="center", transform=axes.transAxes
            )
    axes = figure.add_subplot(grid[:, 2])
    ordered = sorted(scores, key=lambda name: scores[name])
    colors = [PRESENT_COLOR if truth[name] else ABSENT_COLOR for name in ordered]
    axes.barh([name.replace("_", " ") for name in ordered], [scores[name] for name in ordered], color=colors)
    axes.set_xlim(0, 1)
    axes.set_xlabel("zero-shot score, uncalibrated (red: truly present, blue: truly absent)", fontsize=8)
    axes.tick_params(labelsize=8)
    axes.axvline(0.5, color="gray", linewidth=0.8, linestyle=":")
    figure.savefig(path, dpi=110, metadata={"Software": None})
    return Path(path)
