"""Bring a volume onto the straight grid of the patient: undo a gantry tilt, turn to LPS, replace the spacing.

Arrays are (Z, Y, X); an affine maps voxel indices (x, y, z) to LPS millimeters.
"""

import math

import numpy as np

from radtower.processing.hounsfield import LOWEST_HU
from radtower.processing.reading.stored_scan import GEOMETRY_TOLERANCE, require_spacing


def undo_tilt(
    array_hu: np.ndarray, lps: np.ndarray, shear_mm: tuple[float, float]
) -> tuple[np.ndarray, np.ndarray]:
    """Shift the slices of a tilted gantry onto a straight grid wide enough for all; air fills the rest.

    The slices are parallel, and each lies a little further along its own plane than the one before. Linear
    interpolation within the slice. Nothing moves between slices: their distance is along the normal already.

    Args:
        array_hu: ``(Z, Y, X)``, int16 or float32, slices as acquired.
        lps: ``(4, 4)``, of a straight stack that begins where the first slice does.
        shear_mm: Drift (x, y) within the plane from each slice to the next.

    Returns:
        The array, wider by the drift, and its affine.
    """
    spacing_xy = np.linalg.norm(lps[:3, :2], axis=0)
    lps = lps.copy()
    for axis, drift_mm in ((2, shear_mm[0]), (1, shear_mm[1])):
        spacing_mm = float(spacing_xy[2 - axis])
        array_hu, first = _sheared(array_hu, axis, drift_mm / spacing_mm)
        lps[:3, 3] += lps[:3, 2 - axis] * first
    return array_hu, lps


def _sheared(array_hu: np.ndarray, axis: int, drift: float) -> tuple[np.ndarray, int]:
    """Return ``array_hu`` with slice k moved by ``k * drift`` voxels, and where its first voxel now lies."""
    num_slices, width = array_hu.shape[0], array_hu.shape[axis]
    moves = np.arange(num_slices) * drift
    first, last = math.floor(moves.min()), math.ceil(moves.max())
    shape = list(array_hu.shape)
    shape[axis] = width + last - first
    straight = np.full(shape, LOWEST_HU, array_hu.dtype)
    pad = [(1, 1) if other == axis - 1 else (0, 0) for other in range(2)]
    for plane, target, move in zip(array_hu, straight, moves, strict=True):
        whole = math.floor(move)
        rest = move - whole
        padded = np.moveaxis(np.pad(plane.astype(np.float32), pad, constant_values=LOWEST_HU), axis - 1, 0)
        # Voxel i of the slice lies at i + move: position j takes from j - whole and its neighbor before.
        moved = (1.0 - rest) * padded[1:] + rest * padded[:-1]
        moved = np.rint(moved) if straight.dtype.kind == "i" else moved
        begin = whole - first
        room = np.moveaxis(target, axis - 1, 0)[begin : begin + width + 1]
        room[:] = moved[: len(room)]
    return straight, first


def with_spacing(
    lps: np.ndarray, spacing_mm: tuple[float, float, float]
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the affine with the voxel size (Z, Y, X) of a table, and a note if the file says another."""
    if len(spacing_mm) != 3:
        raise ValueError(
            f"spacing_mm must be 3 numbers (Z, Y, X), got {tuple(spacing_mm)}. Correct the table."
        )
    require_spacing(tuple(spacing_mm[::-1]), "the table")
    stated = np.linalg.norm(lps[:3, :3], axis=0)
    lps = lps.copy()
    lps[:3, :3] *= np.array(spacing_mm[::-1]) / stated
    if np.allclose(stated[::-1], spacing_mm, rtol=GEOMETRY_TOLERANCE):
        return lps, ()
    own = tuple(stated[::-1].round(4).tolist())
    return lps, (f"spacing {tuple(spacing_mm)} mm (Z, Y, X) of the table instead of {own} of the file",)


def turned_to_lps(array: np.ndarray, lps: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Swap and flip the axes of ``array`` (Z, Y, X) so that they point left, back and up, nearest first.

    May change ``array``.
    """
    closeness = np.abs(lps[:3, :3] / np.linalg.norm(lps[:3, :3], axis=0))  # of patient axis to voxel axis
    source = [0, 0, 0]  # which voxel axis becomes x, y, z
    for _ in range(3):
        patient_axis, voxel_axis = np.unravel_index(closeness.argmax(), (3, 3))
        source[patient_axis] = int(voxel_axis)
        closeness[patient_axis], closeness[:, voxel_axis] = -1.0, -1.0
    array = np.ascontiguousarray(array.transpose([2 - source[2], 2 - source[1], 2 - source[0]]))
    turned = lps[:, [*source, 3]]
    backward = [axis for axis in range(3) if turned[axis, axis] < 0]
    for axis in backward:
        turned[:3, 3] += turned[:3, axis] * (array.shape[2 - axis] - 1)
        turned[:3, axis] *= -1
    _flip_in_place(array, [2 - axis for axis in backward])
    return array, turned


def _flip_in_place(array: np.ndarray, axes: list[int]) -> None:
    """Reverse axes, slice by slice: a flipped copy would be a second scan in memory."""
    in_plane = tuple(axis - 1 for axis in axes if axis > 0)
    if in_plane:
        for plane in array:
            plane[...] = np.flip(plane, in_plane).copy()
    if 0 in axes:
        for low in range(len(array) // 2):
            high = len(array) - 1 - low
            array[low], array[high] = array[high].copy(), array[low].copy()
