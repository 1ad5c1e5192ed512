"""Example slices: one scan as a 3D model gets it, in three planes and all its windows; needs ``plots``."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke

from radtower.evaluation.reports.pictures.drawing import house_style, new_figure

GROUND, LETTERS = "#14181d", "#eef2f6"
PANEL_INCHES = 2.3
# Where the letters of a plane stand: left, right, top, bottom, in fractions of the axes.
_EDGES = ((0.04, 0.5), (0.96, 0.5), (0.5, 0.95), (0.5, 0.05))


def draw_example_slices(
    volume_hu: np.ndarray, spacing_mm: Sequence[float], windows_hu: Sequence[Sequence[float]], note: str
) -> Figure:
    """Draw the middle axial, coronal and sagittal slice, a line for each window.

    Args:
        volume_hu: ``(Z, Y, X)`` in Hounsfield units, orientation LPS, after resampling.
        spacing_mm: Voxel size in (Z, Y, X) order, for the aspect of the planes.
        windows_hu: (low, high) of each channel of the model.
        note: What the picture is not for; always shown.

    Raises:
        ValueError: If the volume is not three-dimensional or there is no window.
    """
    if volume_hu.ndim != 3 or not windows_hu:
        raise ValueError(
            f"volume_hu must be (Z, Y, X) with a window, got shape {volume_hu.shape} and {len(windows_hu)} "
            "windows. Pass what the image processor resampled."
        )
    z, y, x = (size // 2 for size in volume_hu.shape)
    dz, dy, dx = spacing_mm
    planes = {
        "axial": (volume_hu[z], dy / dx, "RLAP"),
        # Flipped in Z: the head belongs on top.
        "coronal": (volume_hu[::-1, y], dz / dx, "RLHF"),
        "sagittal": (volume_hu[::-1, :, x], dz / dy, "APHF"),
    }
    with house_style():
        figure = new_figure(PANEL_INCHES * 3, PANEL_INCHES * len(windows_hu) + 0.6, facecolor=GROUND)
        grid = figure.subplots(len(windows_hu), len(planes), squeeze=False)
        for line, (low, high) in zip(grid, windows_hu, strict=True):
            for axes, (name, (plane, aspect, sides)) in zip(line, planes.items(), strict=True):
                axes.imshow(plane, cmap="gray", vmin=low, vmax=high, aspect=aspect, interpolation="nearest")
                axes.set_title(f"{name}, {low:g} to {high:g} HU", fontsize=8, color=LETTERS)
                axes.set_axis_off()
                _write_sides(axes, sides)
        figure.suptitle(note, fontsize=9, color=LETTERS)
    return figure


def _write_sides(axes: Axes, sides: str) -> None:
    outline = [withStroke(linewidth=2.5, foreground=GROUND)]  # read on bone, too
    for letter, (u, v) in zip(sides, _EDGES, strict=True):
        axes.text(
            u,
            v,
            letter,
            color=LETTERS,
            fontsize=8,
            ha="center",
            va="center",
            path_effects=outline,
            transform=axes.transAxes,
        )
