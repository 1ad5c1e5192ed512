"""What a reader hands over before anything is judged, and the checks that need a header only.

Spatial triples are (Z, Y, X); an affine maps voxel indices in (x, y, z) order to millimeters.
"""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
GEOMETRY_TOLERANCE = 1e-3  # relative; NIfTI stores float32 quaternions
# Voxels as stored; the largest scan of CT-RATE, 1024 x 1024 x 1617 at 16 bits, has 3.4 GB.
MEMORY_LIMIT_GB = 8.0
BYTES_PER_GB = 10**9
MIN_SPACING_MM, MAX_SPACING_MM = 0.01, 50.0
NO_RESCALE = "none in the file: stored values are taken as HU"


class Reading(NamedTuple):
    """One way to understand the values of a file as Hounsfield units: ``slope * value + intercept``."""

    slope: float
    intercept: float
    words: str  # what was done, for ``VolumeSource.rescale``


AS_STORED = Reading(1.0, 0.0, NO_RESCALE)


@dataclass(frozen=True, eq=False)
class StoredScan:
    """The content of a file or folder.

    Attributes:
        values: ``(Z, Y, X)`` in the axes of the file, any dtype. A reader that cannot read values without the
            rescale of the header hands over rescaled ones.
        lps: ``(4, 4)`` voxel index (x, y, z) -> LPS millimeters.
        format: As in ``VolumeSource``.
        name: What messages call the scan; must not identify a patient.
        readings: What ``values`` can mean, likeliest first; the last one gives the values as stored.
        notes: What a user should know.
        shear_mm: In-plane drift (x, y) from each slice to the next under a gantry tilt; None without tilt.
    """

    values: np.ndarray
    lps: np.ndarray
    format: str
    name: str
    readings: tuple[Reading, ...] = (AS_STORED,)
    notes: tuple[str, ...] = ()
    shear_mm: tuple[float, float] | None = None


def header_readings(
    file_format: str, slope: float, intercept: float, is_applied: bool
) -> tuple[Reading, Reading]:
    """Return the readings of values whose header states a rescale: applied, and already HU as stored."""
    pair = f"slope {slope:g} and intercept {intercept:g} of the {file_format} header"
    once, ignored = f"{pair}, applied once", f"{pair}, not applied: the stored values are already HU"
    if is_applied:
        return Reading(1.0, 0.0, once), Reading(1.0 / slope, -intercept / slope, ignored)
    return Reading(slope, intercept, once), Reading(1.0, 0.0, ignored)


def require_volume(size_xyz: tuple[int, ...], name: str) -> None:
    """Refuse fewer or more than three axes, and an axis of one voxel.

    Raises:
        ValueError: If the size is not that of one volume.
    """
    if len(size_xyz) != 3 or min(size_xyz) < 2:
        raise ValueError(
            f"{name} must be one 3-D volume, got size {tuple(size_xyz)} (X, Y, Z). "
            "Pass a whole scan, and split a time series."
        )


def require_memory(size: tuple[int, ...], voxel_bytes: int, limit_gb: float, name: str) -> None:
    """Refuse a scan whose voxels, as stored, would take more than ``limit_gb`` (10**9 bytes).

    Raises:
        ValueError: If it is larger.
    """
    needed_gb = math.prod(size) * voxel_bytes / BYTES_PER_GB
    if needed_gb > limit_gb:
        raise ValueError(
            f"{name} must fit the memory limit of {limit_gb:g} GB, got {needed_gb:.3g} GB for "
            f"{' x '.join(map(str, size))} voxels of {voxel_bytes} bytes. Raise memory_limit_gb if there is "
            "room, or resample the scan."
        )


def require_spacing(spacing_mm: tuple[float, ...], name: str) -> None:
    """Refuse a voxel size that no CT scanner makes; ``spacing_mm`` is in (X, Y, Z) order.

    Raises:
        ValueError: If it is not finite and positive, or outside 0.01 to 50 mm.
    """
    if not all(math.isfinite(value) and value > 0 for value in spacing_mm):
        raise ValueError(
            f"spacing must be positive and finite, got {tuple(spacing_mm)} (X, Y, Z) in {name}. "
            "Correct the header from the original scan."
        )
    if not all(MIN_SPACING_MM <= value <= MAX_SPACING_MM for value in spacing_mm):
        rounded = tuple(float(f"{value:.4g}") for value in spacing_mm)
        raise ValueError(
            f"spacing must be {MIN_SPACING_MM:g} to {MAX_SPACING_MM:g} mm, got {rounded} (X, Y, Z) in "
            f"{name}. Correct the header; the unit may be wrong."
        )


def truncated(path: Path, reason: str) -> ValueError:
    """Return the refusal of a file that ends too early or is damaged."""
    return ValueError(f"path must be a whole file, got {reason} in {path}. Download or copy it again.")
