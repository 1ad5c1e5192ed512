"""Picture of a heat map over its scan; needs the extra ``plots``. Drawn off screen, without file metadata."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.cm import ScalarMappable
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from radtower.evaluation.heat_maps import HeatMap, check_folder

WINDOWS_HU = {"lung": (-1350.0, 150.0), "soft tissue": (-160.0, 240.0)}  # (low, high)
LUNG_BELOW_HU = -400.0  # a neighborhood whose median is below is mostly lung
FOREGROUND, BACKGROUND, MARK = "#e8e8e8", "black", "#ffe14d"
# Blue against, red for; clear in the middle, so that the scan shows where there is no evidence.
EVIDENCE_COLORS = LinearSegmentedColormap.from_list(
    "evidence",
    [
        (0.0, (0.15, 0.45, 1.0, 0.65)),
        (0.45, (0.15, 0.55, 1.0, 0.0)),
        (0.5, (0.0, 0.0, 0.0, 0.0)),
        (0.55, (1.0, 0.75, 0.0, 0.0)),
        (0.75, (1.0, 0.6, 0.0, 0.4)),
        (1.0, (1.0, 0.1, 0.0, 0.65)),
    ],
)


@dataclass(frozen=True)
class _Plane:
    """A slice through the peak: the two axes on the screen, rows first, and what its sides are."""

    name: str
    normal: int
    rows: int
    columns: int
    sides: tuple[str, str, str, str]  # left, right, top, bottom


# Seen from the feet and from the front, as radiologists do. Rows along Z are turned: the head is on top.
PLANES = (
    _Plane("axial", 0, 1, 2, ("R", "L", "A", "P")),
    _Plane("coronal", 1, 0, 2, ("R", "L", "H", "F")),
    _Plane("sagittal", 2, 0, 1, ("A", "P", "H", "F")),
)


def plot_heat_map(heat_map: HeatMap, finding: str, note: str, path: str | Path) -> Path:
    """Draw three slices through the peak, to scale, with the evidence over the scan.

    Args:
        heat_map: What to draw.
        finding: Name of the finding, for the title.
        note: What the picture is not for; always shown.
        path: PNG to write.

    Returns:
        ``path``.

    Raises:
        ValueError: If the folder of ``path`` is missing, or it does not end in .png.
    """
    check_picture_path(path)
    extent_mm = [n * mm for n, mm in zip(heat_map.array.shape, heat_map.volume.spacing_mm, strict=True)]
    widths = [extent_mm[plane.columns] for plane in PLANES]
    height = max(extent_mm[plane.rows] for plane in PLANES)
    figure = Figure(figsize=(14, 13 * height / sum(widths) + 1.5), facecolor=BACKGROUND, layout="constrained")
    FigureCanvasAgg(figure)
    limit = float(np.abs(heat_map.array).max()) or 1.0
    window = _window(heat_map)
    grid = figure.add_gridspec(1, 4, width_ratios=[*widths, 0.03 * sum(widths)])
    for column, plane in enumerate(PLANES):
        _draw_plane(figure.add_subplot(grid[0, column]), heat_map, plane, WINDOWS_HU[window], limit)
    _draw_scale(figure, figure.add_subplot(grid[0, 3]), heat_map, limit)
    figure.suptitle(_title(heat_map, finding, window), color=FOREGROUND, fontsize=12)
    figure.supxlabel(
        f"{note} Where the model found its score, not the outline of a lesion. The dotted line is "
        f"the border of what the model saw, {heat_map.seen_share:.0%} of the scan.",
        color=FOREGROUND,
        fontsize=9,
    )
    figure.savefig(path, dpi=110, facecolor=BACKGROUND, metadata={"Software": None})
    return Path(path)


def check_picture_path(path: str | Path) -> None:
    """Refuse a path that :func:`plot_heat_map` would refuse, before the work is done."""
    check_folder("png", path)
    if Path(path).suffix.lower() != ".png":
        raise ValueError(f"png must end in .png, got {path}. Change the ending.")


def in_words(position_mm: Sequence[float]) -> str:
    """Write a RAS+ position with letters for its signs, such as ``"R 31, P 12, H 140 mm"``."""
    pairs = zip(("RL", "AP", "HF"), (1, 1, 1), strict=True)
    letters = [
        pair[0] if value * sign >= 0 else pair[1]
        for (pair, sign), value in zip(pairs, position_mm, strict=True)
    ]
    return (
        ", ".join(f"{letter} {abs(value):.0f}" for letter, value in zip(letters, position_mm, strict=True))
        + " mm"
    )


def _title(heat_map: HeatMap, finding: str, window: str) -> str:
    low, high = WINDOWS_HU[window]
    if heat_map.peak_value > 0:
        where = "slices through the strongest evidence, at"
    else:
        where = "no evidence for the finding; the least against it lies at"
    return (
        f"{finding}: score {heat_map.score:.2f}, uncalibrated (logit {heat_map.logit:+.2f})\n"
        f"{where} {in_words(heat_map.peak_mm)} of the scanner; {window} window, {low:.0f} to {high:.0f} HU"
    )


def _window(heat_map: HeatMap) -> str:
    """Choose the window by what lies around the peak, within a feature voxel."""
    box = []
    for at, mm, spacing in zip(heat_map.peak, heat_map.feature_mm, heat_map.volume.spacing_mm, strict=True):
        reach = round(mm / 2 / spacing)
        box.append(slice(max(0, at - reach), at + reach + 1))
    median = float(np.median(heat_map.volume.array_hu[tuple(box)]))
    return "lung" if median < LUNG_BELOW_HU else "soft tissue"


def _draw_plane(
    axes: Axes, heat_map: HeatMap, plane: _Plane, window_hu: tuple[float, float], limit: float
) -> None:
    spacing, peak, shape = heat_map.volume.spacing_mm, heat_map.peak, heat_map.array.shape
    chosen = [slice(None)] * 3
    chosen[plane.normal] = slice(peak[plane.normal], peak[plane.normal] + 1)
    gray, heat = (
        array[tuple(chosen)].squeeze(plane.normal) for array in (heat_map.volume.array_hu, heat_map.array)
    )
    width, height = shape[plane.columns] * spacing[plane.columns], shape[plane.rows] * spacing[plane.rows]
    # Millimeters on both axes: slices keep their shape, and all three have one scale.
    is_turned = plane.rows == 0
    extent = (0.0, width, 0.0, height) if is_turned else (0.0, width, height, 0.0)
    origin: Literal["lower", "upper"] = "lower" if is_turned else "upper"
    low, high = window_hu
    axes.imshow(
        gray, cmap="gray", vmin=low, vmax=high, origin=origin, extent=extent, interpolation="bilinear"
    )
    axes.imshow(heat, cmap=EVIDENCE_COLORS, vmin=-limit, vmax=limit, origin=origin, extent=extent)
    x, y = ((peak[axis] + 0.5) * spacing[axis] for axis in (plane.columns, plane.rows))
    _draw_cross(axes, (x, y), (width, height))
    (left, right), (start, stop) = (
        (heat_map.seen[axis][0] * spacing[axis], heat_map.seen[axis][1] * spacing[axis])
        for axis in (plane.columns, plane.rows)
    )
    outline = Rectangle(
        (left, start), right - left, stop - start, fill=False, linestyle=":", edgecolor="#7fd4ff"
    )
    axes.add_patch(outline)
    places = ((0.02, 0.5), (0.98, 0.5), (0.5, 0.975), (0.5, 0.025))
    for letter, (u, v) in zip(plane.sides, places, strict=True):
        axes.text(
            u,
            v,
            letter,
            color=MARK,
            fontsize=10,
            ha="center",
            va="center",
            transform=axes.transAxes,
            bbox={"facecolor": BACKGROUND, "alpha": 0.6, "linewidth": 0, "pad": 1.5},
        )
    axes.set_title(plane.name, color=FOREGROUND, fontsize=10)
    axes.set_anchor("N")
    axes.set_axis_off()


def _draw_cross(axes: Axes, center: tuple[float, float], size: tuple[float, float]) -> None:
    """Point at the peak from the edges; the middle stays free, it is what one wants to see."""
    (x, y), (width, height), gap = center, size, 0.06 * max(size)
    for xs, ys in (
        ((0, x - gap), (y, y)),
        ((x + gap, width), (y, y)),
        ((x, x), (0, y - gap)),
        ((x, x), (y + gap, height)),
    ):
        if xs[0] <= xs[1] and ys[0] <= ys[1]:
            axes.plot(xs, ys, color=MARK, linewidth=0.6, alpha=0.6)


def _draw_scale(figure: Figure, axes: Axes, heat_map: HeatMap, limit: float) -> None:
    colors = ScalarMappable(Normalize(-limit, limit), EVIDENCE_COLORS)
    bar = figure.colorbar(colors, cax=axes)
    axes.set_facecolor("#606060")  # what the colors look like over gray tissue
    z, y, x = heat_map.feature_mm
    bar.set_label(
        f"contribution to the logit, per {z:.0f} x {y:.0f} x {x:.0f} mm (Z, Y, X)",
        color=FOREGROUND,
        fontsize=9,
    )
    axes.tick_params(colors=FOREGROUND, labelsize=8)
