"""Soft-edged ellipsoids, columns and tubes painted into a CT volume in Hounsfield units.

Shapes are given in the patient frame: millimeters in (Z, Y, X) order, Z toward the head, Y toward the back,
X toward the left of the patient, origin at the carina in the midline. Arrays are (Z, Y, X) on the same axes,
rotated by the small angle with which the patient lies on the table.
"""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

Float = NDArray[np.floating[Any]]  # float32 wherever speed matters
Point = tuple[float, float, float]
AIR_HU = -1000.0


class Box(NamedTuple):
    """A block of voxels, with the patient coordinates that broadcast over it; it may be empty."""

    voxels: tuple[slice, slice, slice]
    z_mm: Float  # (Z, 1, 1)
    y_mm: Float  # (1, Y, X)
    x_mm: Float  # (1, Y, X)


class Canvas:
    """A volume of air to paint on.

    Attributes:
        volume_hu: ``(Z, Y, X)`` float32.
        lung: ``(Z, Y, X)`` float32 in [0, 1], the share of a voxel that is lung without a lesion. Painting
            solid things lowers it.

    Args:
        shape: Voxels in (Z, Y, X) order.
        spacing_mm: Voxel size in (Z, Y, X) order.
        first_voxel_mm: Position of the first voxel relative to the carina, before the rotation.
        rotation: Angle about the body axis, in radians.
    """

    def __init__(
        self, shape: tuple[int, int, int], spacing_mm: Point, first_voxel_mm: Point, rotation: float
    ) -> None:
        self.volume_hu: Float = np.full(shape, AIR_HU, np.float32)
        self.lung: Float = np.zeros(shape, np.float32)
        self.spacing_mm = spacing_mm
        self.soft_mm = spacing_mm[1]  # edges are one voxel wide, like the partial volume effect
        self._first_mm = first_voxel_mm
        self._cos, self._sin = math.cos(rotation), math.sin(rotation)
        self.z_mm: Float = (first_voxel_mm[0] + spacing_mm[0] * np.arange(shape[0])).astype(np.float32)
        rows = (first_voxel_mm[1] + spacing_mm[1] * np.arange(shape[1]))[:, None]
        columns = (first_voxel_mm[2] + spacing_mm[2] * np.arange(shape[2]))[None, :]
        self.table_y_mm: Float = np.broadcast_to(rows, shape[1:]).astype(np.float32)
        self.table_x_mm: Float = np.broadcast_to(columns, shape[1:]).astype(np.float32)
        self.y_mm: Float = (self._cos * rows - self._sin * columns).astype(np.float32)
        self.x_mm: Float = (self._sin * rows + self._cos * columns).astype(np.float32)

    def box(self, low_mm: Sequence[float], high_mm: Sequence[float]) -> Box:
        """Return the voxels between two corners of the patient frame, with one voxel of margin."""
        center = [(a + b) / 2 for a, b in zip(low_mm, high_mm, strict=True)]
        half = [(b - a) / 2 for a, b in zip(low_mm, high_mm, strict=True)]
        sine = abs(self._sin)
        middle = (
            center[0],
            self._cos * center[1] + self._sin * center[2],
            self._cos * center[2] - self._sin * center[1],
        )
        reach = (half[0], self._cos * half[1] + sine * half[2], self._cos * half[2] + sine * half[1])
        index = []
        for axis in range(3):
            position = (middle[axis] - self._first_mm[axis]) / self.spacing_mm[axis]
            width = reach[axis] / self.spacing_mm[axis] + 1.0
            size = self.volume_hu.shape[axis]
            start = min(max(math.floor(position - width), 0), size)
            index.append(slice(start, min(max(math.ceil(position + width) + 1, start), size)))
        rows_columns = (index[1], index[2])
        return Box(
            (index[0], index[1], index[2]),
            self.z_mm[index[0], None, None],
            self.y_mm[rows_columns][None],
            self.x_mm[rows_columns][None],
        )

    def step(self, inside_mm: Float) -> Float:
        """Turn a distance in millimeters, positive inside, into a weight in [0, 1]."""
        weight: Float = np.clip(inside_mm * np.float32(1 / self.soft_mm) + np.float32(0.5), 0, 1)
        return weight

    def ellipsoid(
        self, center_mm: Point, radii_mm: Point, axes: NDArray[np.float64] | None = None
    ) -> tuple[Box, Float]:
        """Return the box and the weight of an ellipsoid; rows of ``axes`` are unit vectors, None: upright."""
        frame = np.eye(3) if axes is None else axes
        reach = np.sqrt(((np.asarray(radii_mm)[:, None] * frame) ** 2).sum(axis=0))
        low, high = np.asarray(center_mm) - reach, np.asarray(center_mm) + reach
        box = self.box(low.tolist(), high.tolist())
        dz, dy, dx = box.z_mm - center_mm[0], box.y_mm - center_mm[1], box.x_mm - center_mm[2]
        if axes is None:
            squared = (dz / radii_mm[0]) ** 2 + ((dy / radii_mm[1]) ** 2 + (dx / radii_mm[2]) ** 2)
        else:
            squared = np.zeros((1, 1, 1), np.float32)
            for axis, radius in zip(frame.tolist(), radii_mm, strict=True):
                squared = squared + (dz * (axis[0] / radius) + (dy * axis[1] + dx * axis[2]) / radius) ** 2
        smallest = min(radii_mm)
        return box, self.step((1 - np.sqrt(squared)) * np.float32(smallest))

    def tube(self, start_mm: Point, end_mm: Point, radii_mm: tuple[float, float]) -> tuple[Box, Float]:
        """Return the box and the weight of a tapered rod with round ends."""
        widest = max(radii_mm)
        low = [min(a, b) - widest for a, b in zip(start_mm, end_mm, strict=True)]
        high = [max(a, b) + widest for a, b in zip(start_mm, end_mm, strict=True)]
        box = self.box(low, high)
        vz, vy, vx = (b - a for a, b in zip(start_mm, end_mm, strict=True))
        length2 = max(vz * vz + vy * vy + vx * vx, 1e-6)
        dz, dy, dx = box.z_mm - start_mm[0], box.y_mm - start_mm[1], box.x_mm - start_mm[2]
        along = np.clip(dz * (vz / length2) + (dy * vy + dx * vx) * (1 / length2), 0, 1)
        distance2 = (dz - along * vz) ** 2 + (dy - along * vy) ** 2 + (dx - along * vx) ** 2
        radius = radii_mm[0] + along * (radii_mm[1] - radii_mm[0])
        return box, self.step(radius - np.sqrt(distance2))

    def paint(self, box: Box, weight: Float, hu: float | Float, *, hides_lung: bool = True) -> None:
        """Blend ``hu`` into the box; ``hides_lung`` False for what belongs to normal lung."""
        region = self.volume_hu[box.voxels]
        region += weight * (hu - region)
        if hides_lung:
            self.lung[box.voxels] *= 1 - weight

    def paint_ellipsoid(self, center_mm: Point, radii_mm: Point, hu: float) -> None:
        """Paint an upright ellipsoid."""
        self.paint(*self.ellipsoid(center_mm, radii_mm), hu)

    def paint_tubes(self, points_mm: Sequence[Point], radii_mm: Sequence[float], hu: float) -> None:
        """Paint a chain of rods through ``points_mm``, with one radius per point."""
        for i in range(len(points_mm) - 1):
            self.paint(*self.tube(points_mm[i], points_mm[i + 1], (radii_mm[i], radii_mm[i + 1])), hu)


def smooth_field(rng: np.random.Generator, shape: tuple[int, ...], cells: tuple[int, int, int]) -> Float:
    """Return ``shape`` float32 of smooth noise, about unit variance: a coarse normal grid, interpolated."""
    field = rng.standard_normal([n + 1 for n in cells], dtype=np.float32)
    weights = [_interpolation(n, m) for n, m in zip(shape, cells, strict=True)]
    field = np.tensordot(weights[0], field, axes=(1, 0))
    field = np.matmul(weights[1], field)
    result: Float = np.matmul(field, weights[2].T)
    # Linear interpolation averages two grid values per axis, which leaves (2/3)**3 of the variance.
    return result * np.float32(1.84)


def _interpolation(size: int, cells: int) -> Float:
    """Matrix (size, cells + 1) that interpolates linearly."""
    position = np.linspace(0, cells, size)
    return np.clip(1 - np.abs(position[:, None] - np.arange(cells + 1)[None]), 0, None).astype(np.float32)
