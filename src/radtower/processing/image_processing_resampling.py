"""Put a CT volume on another grid: filters along each axis, and where the middle of the lungs is.

Ships to the Hub: imports torch only. Axes: Z Y X voxels; triples are (Z, Y, X).
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

CELL_MM = 5.0  # enough to find a center; vessels and noise average out
# Mean of a cell: gas in the bowel and the trachea is near -1000, emphysema of whole cells about -960.
LUNG_HU = (-970.0, -400.0)
TISSUE_ABOVE_HU = -400.0
MIN_LUNG_ML = 300.0  # adults have 3000 to 6000; sinuses and stool have less than this
TRIMMED_FRACTION = 0.01  # of the lung, on each side of the box: stray cells must not move it


class AxisFilter(NamedTuple):
    """Resampling along one axis, cut to what overlaps."""

    first: int  # index of the first output voxel whose center lies inside the scan
    start: int  # index of the first input voxel that has a weight
    weights: Tensor  # (outputs inside, inputs from start on), float32; each row sums to 1


def axis_filter(
    num_in: int, in_mm: float, num_out: int, out_mm: float, middle: float, antialias: bool
) -> AxisFilter:
    """Return the filter of one axis.

    Args:
        num_in: Voxels of the scan.
        in_mm: Their size.
        num_out: Voxels of the output.
        out_mm: Their size.
        middle: Input voxel, in fractions, that becomes the middle of the output.
        antialias: Whether the filter widens where the output is coarser.

    Raises:
        ValueError: If no output voxel has its center in the scan.
    """
    step = out_mm / in_mm
    steps_from_center = torch.arange(num_out, dtype=torch.float64) - (num_out - 1) / 2
    centers = steps_from_center * step + middle  # output centers in units of input voxels
    half_voxel = 0.5 + 1e-6  # a center on the face of the scan belongs to it, on both sides
    inside = ((centers >= -half_voxel) & (centers <= num_in - 1 + half_voxel)).nonzero().flatten()
    if not len(inside):
        raise ValueError(
            f"each volume must be as large as one output voxel, got {num_in} voxels of {in_mm} mm for "
            f"{out_mm} mm. Pass a whole scan, and its spacing in (Z, Y, X) order."
        )
    distances = (centers[inside, None] - torch.arange(num_in)).abs()
    reach = max(1.0, step) if antialias else 1.0
    weights = (1 - distances / reach).clamp_min(0)
    # At the border the filter hangs over the edge; what is left counts fully.
    weights = weights / weights.sum(dim=1, keepdim=True)
    used = weights.any(dim=0).nonzero().flatten()
    start, stop = int(used[0]), int(used[-1]) + 1
    return AxisFilter(int(inside[0]), start, weights[:, start:stop].float())


def resample_volume(volume: Tensor, filters: list[AxisFilter], low: float, high: float) -> Tensor:
    """Filter a volume, clamped to [low, high], along all axes; one output slice in float at a time.

    Args:
        volume: ``(Z, Y, X)`` HU, any signed dtype.
        filters: One per axis.
        low: Lowest HU.
        high: Highest HU.

    Returns:
        ``(Z', Y', X')`` float32, the outputs inside the scan.
    """
    along_z, along_y, along_x = filters
    rows = slice(along_y.start, along_y.start + along_y.weights.shape[1])
    columns = slice(along_x.start, along_x.start + along_x.weights.shape[1])
    out = torch.empty([len(axis.weights) for axis in filters], dtype=torch.float32)
    for z, weights in enumerate(along_z.weights):
        used = weights.nonzero().flatten()
        start, stop = int(used[0]), int(used[-1]) + 1
        slab = volume[along_z.start + start : along_z.start + stop, rows, columns].float().clamp(low, high)
        mixed = torch.tensordot(weights[start:stop], slab, dims=1)
        out[z] = along_y.weights @ mixed @ along_x.weights.T
    return out


def lung_center(
    volume_hu: Tensor, spacing_mm: tuple[float, float, float]
) -> tuple[float, float, float] | None:
    """Return the center of the bounding box of both lungs, as a fractional voxel index (Z, Y, X).

    Lung is what has the density of lung and, within its axial slice, tissue on all four sides. This is crude,
    needs no model and takes a few milliseconds; a lung that is wholly consolidated is not seen.

    Args:
        volume_hu: ``(Z, Y, X)`` HU, any signed dtype, Z along the body.
        spacing_mm: Voxel size.

    Returns:
        None where there is less than 300 ml of lung.
    """
    cells, voxels_per_cell = _cells(volume_hu, spacing_mm)
    is_tissue = cells > TISSUE_ABOVE_HU
    is_lung = (cells > LUNG_HU[0]) & (cells < LUNG_HU[1])
    for axis in (1, 2):
        is_lung &= _seen_before(is_tissue, axis) & _seen_before(is_tissue.flip(axis), axis).flip(axis)
    # Most neighbors are lung, too: drops skin folds, the gap above the table, and edges of bowel gas.
    is_lung &= F.avg_pool3d(is_lung[None, None].float(), 3, stride=1, padding=1)[0, 0] > 0.5
    cell_ml = 1e-3
    for mm, num_voxels in zip(spacing_mm, voxels_per_cell, strict=True):
        cell_ml *= mm * num_voxels
    if int(is_lung.sum()) * cell_ml < MIN_LUNG_ML:
        return None
    # A cell of n voxels from voxel i on has its center at i + (n - 1) / 2.
    z, y, x = (
        _middle_of_box(is_lung, axis) * num_voxels + (num_voxels - 1) / 2
        for axis, num_voxels in enumerate(voxels_per_cell)
    )
    return z, y, x


def _cells(volume_hu: Tensor, spacing_mm: tuple[float, float, float]) -> tuple[Tensor, list[int]]:
    """Return mean HU per cell, from every second voxel where a cell has enough, and its voxels (Z, Y, X)."""
    strides = [2 if mm <= CELL_MM / 4 else 1 for mm in spacing_mm]
    kernel = [max(1, round(CELL_MM / (mm * s))) for mm, s in zip(spacing_mm, strides, strict=True)]
    kernel = [min(n, -(-size // s)) for n, size, s in zip(kernel, volume_hu.shape, strides, strict=True)]
    thinned = volume_hu[:: strides[0], :: strides[1], :: strides[2]].float()
    cells = F.avg_pool3d(thinned[None, None], kernel)[0, 0]
    return cells, [n * s for n, s in zip(kernel, strides, strict=True)]


def _seen_before(mask: Tensor, axis: int) -> Tensor:
    return mask.to(torch.uint8).cummax(dim=axis).values.bool()


def _middle_of_box(mask: Tensor, axis: int) -> float:
    """Return the middle of the trimmed extent of a mask along one axis, as a fractional index."""
    profile = mask.sum(dim=[other for other in range(3) if other != axis]).double().cumsum(0)
    total = profile[-1]
    first = int((profile > TRIMMED_FRACTION * total).nonzero()[0])
    last = int((profile >= (1 - TRIMMED_FRACTION) * total).nonzero()[0])
    return (first + last) / 2
