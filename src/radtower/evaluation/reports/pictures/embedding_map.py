"""Map of scans and reports in two dimensions; needs the extra ``plots``.

A map distorts: two dimensions cannot hold the distances of many. It shows where things went, not how good a
model is. Axes: N studies, E embedding.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.figure import Figure
from sklearn.manifold import TSNE

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.reports.pictures.drawing import (
    ABSENT,
    MUTED,
    PRESENT,
    RULE,
    SERIES_COLORS,
    house_style,
    new_figure,
    panel_title,
)
from radtower.evaluation.reports.wording import finding_name

Method = Literal["pca", "tsne"]
MAX_LINES = 200  # pairs that are joined by a line; more would be one gray area
MAX_PANELS = 12
PANELS_PER_ROW = 4
_LAYERS = ((MASKED_TARGET, RULE, 5, "unknown"), (0, ABSENT, 8, "absent"), (1, PRESENT, 14, "present"))


@dataclass(frozen=True)
class EmbeddingMap:
    """Places on a map.

    Args:
        images: ``(N, 2)``.
        reports: ``(N, 2)``; None for a map of scans alone.
        method: How it was made, for the caption.
        gap: Distance between the means of the two kinds, which was taken out; None for scans alone.
        explained: Share of the variance along either axis; None for t-SNE, whose axes mean nothing.
    """

    images: np.ndarray
    reports: np.ndarray | None
    method: str
    gap: float | None
    explained: tuple[float, float] | None

    def describe(self) -> str:
        """Return a sentence for the caption."""
        gap = (
            ""
            if self.gap is None
            else f" Each kind is centered on its own mean; the means lie {self.gap:.2f} apart."
        )
        return f"{self.method}.{gap} A map in two dimensions distorts distances."


def map_embeddings(
    images: np.ndarray, reports: np.ndarray | None = None, method: Method = "pca", seed: int = 0
) -> EmbeddingMap:
    """Place scans, and their reports, on a common map.

    Scans and reports of a contrastive model lie in two clouds; the distance between these would be the first
    axis. It is taken out, and told.

    Args:
        images: ``(N, E)``.
        reports: ``(N, E)``, row i is the report of scan i.
        method: ``pca``, or ``tsne``, which needs at least five points and takes longer.
        seed: Of t-SNE.

    Raises:
        ValueError: If the shapes differ, there are fewer than three rows, or the method is another.
    """
    if method not in get_args(Method):
        raise ValueError(f"method must be one of {', '.join(get_args(Method))}, got {method!r}.")
    if images.ndim != 2 or len(images) < 3 or (reports is not None and reports.shape != images.shape):
        raise ValueError(
            f"images and reports must be (N, E) of one shape with N of at least 3, got {images.shape} and "
            f"{None if reports is None else reports.shape}."
        )
    kinds = [np.asarray(k, dtype=np.float64) for k in (images, reports) if k is not None]
    means = [kind.mean(axis=0) for kind in kinds]
    gap = float(np.linalg.norm(means[0] - means[1])) if len(kinds) == 2 else None
    points = np.concatenate([kind - mean for kind, mean in zip(kinds, means, strict=True)])
    explained: tuple[float, float] | None
    places, explained = _pca(points)
    name = "Principal components"
    if method == "tsne":
        perplexity = min(30.0, (len(points) - 1) / 3)
        model = TSNE(perplexity=perplexity, init="pca", random_state=seed)
        places = model.fit_transform(points.astype(np.float32)).astype(np.float64)
        name, explained = f"t-SNE, perplexity {perplexity:.0f}, seed {seed}", None
    split = len(images)
    return EmbeddingMap(places[:split], places[split:] if len(kinds) == 2 else None, name, gap, explained)


def draw_embedding_map(found: EmbeddingMap, findings: Mapping[str, np.ndarray], note: str) -> Figure:
    """Draw the map: a panel that joins each scan with its report, and one per finding.

    Args:
        found: Places.
        findings: Finding -> ``(N,)`` 1, 0, or -100 where unknown. The first twelve are drawn.
        note: What the picture is not for; always shown.

    Raises:
        ValueError: If a finding has another length.
    """
    for key, labels in findings.items():
        if len(labels) != len(found.images):
            raise ValueError(
                f"findings must have a label per scan, got {len(labels)} of {key} for {len(found.images)}."
            )
    panels = list(findings)[:MAX_PANELS]
    num_rows = -(-len(panels) // PANELS_PER_ROW)
    with house_style():
        figure = new_figure(9.5, 5.2 + 2.5 * num_rows)
        figure.suptitle(note, fontsize=9, color=MUTED)
        grid = figure.add_gridspec(1 + num_rows, PANELS_PER_ROW, height_ratios=[2.1, *([1.0] * num_rows)])
        first = figure.add_subplot(grid[0, :])
        _draw_kinds(first, found)
        for place, key in enumerate(panels):
            row, column = divmod(place, PANELS_PER_ROW)
            axes = figure.add_subplot(grid[1 + row, column], sharex=first, sharey=first)
            handles = _draw_finding(axes, found, findings[key], finding_name(key))
            if not place:
                figure.legend(handles=handles, loc="outside lower center", ncols=4)
    return figure


def _pca(points: np.ndarray) -> tuple[np.ndarray, tuple[float, float]]:
    """``(N, 2)`` coordinates along the two widest directions, and their shares of the variance."""
    centered = points - points.mean(axis=0)
    _, spread, directions = np.linalg.svd(centered, full_matrices=False)
    directions = np.pad(directions, ((0, max(0, 2 - len(directions))), (0, 0)))[:2]
    # The sign of a direction is free: its largest entry is made positive, so that pictures repeat.
    largest = np.abs(directions).argmax(axis=1)
    directions = directions * np.where(directions[np.arange(2), largest] < 0, -1.0, 1.0)[:, None]
    variance = spread**2
    total = float(variance.sum()) or 1.0
    shares = [float(value) / total for value in np.pad(variance, (0, 2))[:2]]
    return centered @ directions.T, (shares[0], shares[1])


def _draw_kinds(axes: Axes, found: EmbeddingMap) -> None:
    images, reports = found.images, found.reports
    if reports is not None and len(images) <= MAX_LINES:
        for image, report in zip(images, reports, strict=True):
            axes.plot(*zip(image, report, strict=True), color=RULE, linewidth=0.7, zorder=1)
    axes.scatter(
        images[:, 0], images[:, 1], s=20, color=SERIES_COLORS[0], label="scan", zorder=2, linewidth=0
    )
    if reports is not None:
        style: dict[str, Any] = {
            "s": 22,
            "marker": "^",
            "color": SERIES_COLORS[1],
            "zorder": 2,
            "linewidth": 0,
        }
        joined = ", joined with its scan" if len(images) <= MAX_LINES else ""
        axes.scatter(reports[:, 0], reports[:, 1], label=f"report{joined}", **style)
    axes.legend(loc="best", frameon=True, framealpha=0.8)
    axes.set_title(found.method)
    if found.explained is not None:
        axes.set_xlabel(f"first component, {found.explained[0]:.0%} of the variance")
        axes.set_ylabel(f"second, {found.explained[1]:.0%}")
    axes.set_xticks([])
    axes.set_yticks([])


def _draw_finding(axes: Axes, found: EmbeddingMap, labels: np.ndarray, name: str) -> list[PathCollection]:
    """Draw one finding; returns what a legend shows, which is the same for all of them."""
    kinds = [("scan", "o", found.images)]
    if found.reports is not None:
        kinds.append(("report", "^", found.reports))
    handles = []
    # Present last, on top: it is the rarer.
    for value, color, size, word in _LAYERS:
        for kind, marker, places in kinds:
            style: dict[str, Any] = {"s": size, "marker": marker, "color": color, "linewidth": 0}
            dots = axes.scatter(*places[labels == value].T, label=f"{word}, {kind}", **style)
            if value != MASKED_TARGET:
                handles.append(dots)
    axes.set_title(
        f"{panel_title(name)}  ({int((labels == 1).sum())} / {int((labels >= 0).sum())})", fontsize=8.5
    )
    axes.tick_params(bottom=False, left=False, labelbottom=False, labelleft=False)
    return handles
