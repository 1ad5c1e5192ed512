"""Sort the slices of a DICOM series, refuse what is not a regular stack, and read its voxels.

SimpleITK stacks whatever it is given and prints a warning at most, so each header is judged here and the
affine comes from the positions. Coordinates are DICOM's: LPS, millimeters.
"""

from pathlib import Path

import numpy as np
import SimpleITK as sitk

from radtower.processing.reading.dicom_header import DicomSlice
from radtower.processing.reading.sitk_image import read_or_refuse, silent_simpleitk
from radtower.processing.reading.stored_scan import Reading, StoredScan, header_readings, require_memory

# Positions are written with 5 to 6 digits; scanners jitter by hundredths of a millimeter.
GAP_TOLERANCE, GAP_TOLERANCE_MM = 0.05, 0.01
DIRECTION_TOLERANCE = 1e-3  # of a unit vector: 0.06 degrees
MAX_DRIFT = 0.5  # of a pixel: from the right angle, or from a straight line under a gantry tilt


def read_stack(slices: list[DicomSlice], path: Path, memory_limit_gb: float) -> StoredScan:
    """Read the slices, or frames, of one CT series.

    Args:
        slices: In any order.
        path: What messages call the scan.
        memory_limit_gb: As in ``read_volume``.

    Raises:
        ValueError: If they are not one regular stack of gray CT slices within the memory limit.
    """
    _require_gray_ct(slices)
    name = f"the scan {path}"
    columns, rows = (int(size) for size in slices[0].grid[:2])
    slices, lps, shear_mm, notes = _sort_regular_stack(slices)
    voxel_bytes = max(header.voxel_bytes for header in slices)
    require_memory((columns, rows, len(slices)), voxel_bytes, memory_limit_gb, name)
    readings = _readings(slices)
    with silent_simpleitk():
        values = _read_files(slices, path) if slices[0].frame is None else _read_frames(slices, path)
    return StoredScan(values, lps, "DICOM", name, readings, notes, shear_mm)


def _read_files(slices: list[DicomSlice], path: Path) -> np.ndarray:
    reader = sitk.ImageSeriesReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileNames([str(header.path) for header in slices])
    if len({header.rescale for header in slices}) > 1:
        reader.SetOutputPixelType(sitk.sitkFloat32)  # else the type that fits the first slice is used
    return sitk.GetArrayFromImage(read_or_refuse(reader.Execute, path))


def _read_frames(slices: list[DicomSlice], path: Path) -> np.ndarray:
    """Return the frames in the order of ``slices``; GDCM applied the first stored rescale to all."""
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(slices[0].path))
    values = sitk.GetArrayFromImage(read_or_refuse(reader.Execute, path))
    values = values[np.array([header.frame for header in slices])]
    if len({header.rescale for header in slices}) == 1:
        return values
    (first,) = (header.rescale for header in slices if header.frame == 0)
    values = values.astype(np.float32)
    slope, intercept = first or (1.0, 0.0)
    for frame, header in zip(values, slices, strict=True):
        own_slope, own_intercept = header.rescale or (1.0, 0.0)
        frame[:] = (frame - intercept) * (own_slope / slope) + own_intercept
    return values


def _readings(slices: list[DicomSlice]) -> tuple[Reading, ...]:
    """Return what the values can mean after SimpleITK applied the slope and intercept of each slice."""
    pairs = {header.rescale for header in slices}
    if any(pair is not None and pair[0] == 0 for pair in pairs):
        raise ValueError("RescaleSlope must not be 0, got 0 in a slice. Export the scan again.")
    if len(pairs) > 1:
        words = (
            f"{len(pairs)} different slopes and intercepts in the DICOM headers, applied once to each slice"
        )
        return (Reading(1.0, 0.0, words),)
    (pair,) = pairs
    if pair is None:
        words = "no RescaleSlope and RescaleIntercept in the DICOM header: stored values are taken as HU"
        return (Reading(1.0, 0.0, words),)
    return header_readings("DICOM", *pair, is_applied=True)


def _require_gray_ct(slices: list[DicomSlice]) -> None:
    for header in slices:
        if header.series.modality != "CT":
            raise ValueError(
                f"path must hold a CT, got modality {header.series.modality!r}. Only CT has Hounsfield units."
            )
        if header.num_samples != 1:
            raise ValueError(
                f"path must hold gray slices, got {header.num_samples} samples per pixel in "
                f"{header.path.name}. Leave out screenshots and dose reports."
            )
        if header.num_frames != 1:
            raise ValueError(
                f"a multi-frame file must be an Enhanced CT, got {header.num_frames} frames of another kind "
                f"in {header.path.name}. Export the original series."
            )
    if len({header.path for header in slices if header.frame is not None}) > 1 or (
        slices[0].frame is not None and any(header.frame is None for header in slices)
    ):
        files = {header.path for header in slices}
        raise ValueError(
            f"a multi-frame series must be one file, got {len(files)} files. "
            "Pass the file that holds the scan."
        )
    if len(slices) < 2:
        raise ValueError(
            f"path must hold a volume, got {len(slices)} slice in the series. Pass a whole scan."
        )


def _sort_regular_stack(
    slices: list[DicomSlice],
) -> tuple[list[DicomSlice], np.ndarray, tuple[float, float] | None, tuple[str, ...]]:
    """Return the slices in spatial order, the affine without tilt, the shear of a tilt, and notes."""
    positions, directions = _geometry(slices)
    normal = np.cross(directions[0], directions[1])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    offsets_mm = positions @ normal
    _require_even_gaps(np.diff(offsets_mm), offsets_mm)
    steps = np.arange(len(slices))
    gap_mm = (offsets_mm[-1] - offsets_mm[0]) / steps[-1]
    lps = np.eye(4)
    x_mm, y_mm = slices[0].grid[2:]
    lps[:3, :3] = np.column_stack([directions[0] * x_mm, directions[1] * y_mm, normal * gap_mm])
    lps[:3, 3] = positions[0]
    drift_mm = positions - positions[0] - np.outer(offsets_mm - offsets_mm[0], normal)
    max_drift_mm = MAX_DRIFT * min(x_mm, y_mm)
    if np.linalg.norm(drift_mm, axis=1).max() <= max_drift_mm:
        return slices, lps, None, ()
    step_mm = drift_mm[-1] / steps[-1]
    tilt = np.degrees(np.arctan2(np.linalg.norm(step_mm), gap_mm))
    bend_mm = np.linalg.norm(drift_mm - np.outer(steps, step_mm), axis=1).max()
    if bend_mm > max_drift_mm:
        raise ValueError(
            f"slices must be stacked along a straight line, got a drift that bends by {bend_mm:.1f} mm "
            f"(gantry tilt {tilt:.1f} degrees on average). Split the series where the tilt changes."
        )
    note = f"gantry tilt of {tilt:.1f} degrees undone: slices shifted in their plane, linear interpolation"
    return slices, lps, (float(step_mm @ directions[0]), float(step_mm @ directions[1])), (note,)


def _geometry(slices: list[DicomSlice]) -> tuple[np.ndarray, np.ndarray]:
    """Return positions (N, 3) and the directions (2, 3) that all slices share."""
    positions, directions = [], []
    for header in slices:
        if header.position_mm is None or header.directions is None:
            raise ValueError(
                "every slice must have ImagePositionPatient and ImageOrientationPatient, got none in "
                f"{header.path.name}. Export the original axial series, not a derived one."
            )
        positions.append(header.position_mm)
        directions.append(header.directions)
    first = slices[0]
    for header, own in zip(slices, directions, strict=True):
        if np.abs(own - directions[0]).max() > DIRECTION_TOLERANCE:
            raise ValueError(
                f"slices must share one orientation, got {own.round(3).tolist()} in {header.path.name} and "
                f"{directions[0].round(3).tolist()}. Remove the localizer or the reformatted slices."
            )
        if not np.allclose(header.grid, first.grid, rtol=1e-4):
            raise ValueError(
                f"slices must share one grid (columns, rows, spacing), got {header.grid} in "
                f"{header.path.name} and {first.grid} before. Split the series."
            )
    return np.array(positions), directions[0]


def _require_even_gaps(gaps_mm: np.ndarray, offsets_mm: np.ndarray) -> None:
    usual_mm = float(np.median(gaps_mm))
    repeated = np.flatnonzero(gaps_mm < GAP_TOLERANCE_MM)
    if len(repeated):
        raise ValueError(
            f"slices must have distinct positions, got {len(repeated)} repeated, the first at "
            f"{offsets_mm[repeated[0]]:.2f} mm. Remove the duplicates, or split the series by time or kernel."
        )
    uneven = np.flatnonzero(np.abs(gaps_mm - usual_mm) > GAP_TOLERANCE * usual_mm + GAP_TOLERANCE_MM)
    if not len(uneven):
        return
    ratios = gaps_mm[uneven] / usual_mm
    where = f"{offsets_mm[uneven[0]]:.2f} and {offsets_mm[uneven[0] + 1]:.2f} mm"
    if (np.abs(ratios - ratios.round()) < GAP_TOLERANCE * ratios.round()).all() and (ratios > 1.5).all():
        raise ValueError(
            f"no slice must be missing, got gaps for {int(ratios.round().sum()) - len(ratios)} slices of "
            f"{usual_mm:.2f} mm, the first between {where}. Copy the missing files and read again."
        )
    raise ValueError(
        f"slices must be evenly spaced, got gaps from {gaps_mm.min():.2f} to {gaps_mm.max():.2f} mm, the "
        f"first odd one between {where}. Resample the scan, or split the series."
    )
