"""Find the CT series in a DICOM folder, sort its slices, and refuse stacks that are not a regular grid.

SimpleITK stacks whatever it is given and prints a warning at most, so each header is read here and judged.
Coordinates are DICOM's: LPS, millimeters. No message holds a value that identifies the patient.
"""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from radtower.processing.reading.sitk_image import (
    bytes_of_pixel,
    lps_of,
    read_or_refuse,
    require_gray_volume,
    silent_simpleitk,
)
from radtower.processing.reading.stored_scan import (
    Reading,
    StoredScan,
    header_readings,
    require_memory,
)

UID_TAG, MODALITY_TAG, SAMPLES_TAG = "0020|000e", "0008|0060", "0028|0002"
POSITION_TAG, ORIENTATION_TAG = "0020|0032", "0020|0037"
SLOPE_TAG, INTERCEPT_TAG = "0028|1053", "0028|1052"
CT_STORAGE = b"1.2.840.10008.5.1.4.1.1.2\0"  # SOP class of CT slices, as stored in the file header
# Positions are written with 5 to 6 digits; scanners jitter by hundredths of a millimeter.
GAP_TOLERANCE, GAP_TOLERANCE_MM = 0.05, 0.01
DIRECTION_TOLERANCE = 1e-3  # of a unit vector: 0.06 degrees


@dataclass(frozen=True)
class DicomSlice:
    """What the header of one slice says, and nothing about the patient."""

    path: Path
    series_uid: str
    modality: str
    num_samples: int  # per pixel: 1 for gray, 3 for color
    num_frames: int
    voxel_bytes: int
    grid: tuple[float, ...]  # columns, rows, in-plane spacing
    position_mm: np.ndarray | None  # (3,); None when the header has no ImagePositionPatient
    directions: np.ndarray | None  # (2, 3) of a row and a column; None as above
    rescale: tuple[float, float] | None  # slope, intercept; None when the header has neither


def read_dicom_folder(folder: Path, series_uid: str | None, memory_limit_gb: float) -> StoredScan:
    """Read the CT series of a folder.

    Raises:
        ValueError: If no or several series match, or the slices are not one regular CT stack.
    """
    with silent_simpleitk():
        slices, num_left_out = find_series(folder, series_uid)
        require_memory(
            (int(slices[0].grid[0]), int(slices[0].grid[1]), len(slices)),
            max(header.voxel_bytes for header in slices),
            memory_limit_gb,
            f"the scan {folder}",
        )
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(header.path) for header in slices])
        if len({header.rescale for header in slices}) > 1:
            reader.SetOutputPixelType(sitk.sitkFloat32)  # else the type that fits the first slice is used
        image = read_or_refuse(reader.Execute, folder)
    require_gray_volume(image, f"the scan {folder}")
    notes = () if num_left_out == 0 else (f"{num_left_out} files of the folder are not DICOM images",)
    values = sitk.GetArrayFromImage(image)
    return StoredScan(values, lps_of(image), "DICOM", f"the scan {folder}", _dicom_readings(slices), notes)


def _dicom_readings(slices: list[DicomSlice]) -> tuple[Reading, ...]:
    """Return what the values can mean after SimpleITK applied the slope and intercept of each slice."""
    pairs = {header.rescale for header in slices}
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


def find_series(folder: Path, series_uid: str | None = None) -> tuple[list[DicomSlice], int]:
    """Return the slices of one CT series in spatial order, checked, and the number of files left out.

    Files that are not DICOM images (licenses, structure sets, DICOMDIR) are left out.

    Args:
        folder: Holds the slices themselves; sub-folders are not searched.
        series_uid: SeriesInstanceUID to pick; None when the folder must hold one series.

    Raises:
        ValueError: If no or several series match, or the slices are not one regular CT stack.
    """
    files = sorted(path for path in folder.iterdir() if path.is_file())
    slices = [header for header in map(_read_header, files) if header is not None]
    if not slices:
        folders = sorted(path.name for path in folder.iterdir() if path.is_dir())
        raise ValueError(
            f"path must be a folder with DICOM slices, got {folder} with {len(files)} files, none of them a "
            f"DICOM image, and {len(folders)} sub-folders. Pass the folder that holds the slices themselves."
        )
    chosen = _choose_series(slices, series_uid)
    _require_gray_ct(chosen)
    return _sort_regular_stack(chosen), len(files) - len(slices)


def _read_header(path: Path) -> DicomSlice | None:
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        _require_not_damaged(path)
        return None

    def text(tag: str) -> str:
        return reader.GetMetaData(tag).strip().strip("\0") if reader.HasMetaDataKey(tag) else ""

    def numbers(tag: str, count: int) -> np.ndarray | None:
        values = np.array([float(part) for part in text(tag).split("\\") if part.strip()])
        return values if len(values) == count and np.isfinite(values).all() else None

    directions = numbers(ORIENTATION_TAG, 6)
    slope, intercept = numbers(SLOPE_TAG, 1), numbers(INTERCEPT_TAG, 1)
    rescale = None
    if slope is not None and intercept is not None:
        rescale = (float(slope[0]), float(intercept[0]))
    return DicomSlice(
        path=path,
        series_uid=text(UID_TAG),
        modality=text(MODALITY_TAG),
        num_samples=int(text(SAMPLES_TAG) or 1),
        num_frames=reader.GetSize()[2] if reader.GetDimension() > 2 else 1,
        voxel_bytes=bytes_of_pixel(reader.GetPixelID()),
        grid=(*reader.GetSize()[:2], *reader.GetSpacing()[:2]),
        position_mm=numbers(POSITION_TAG, 3),
        directions=None if directions is None else directions.reshape(2, 3),
        rescale=rescale,
    )


def _require_not_damaged(path: Path) -> None:
    """Refuse a CT slice whose header or pixels are cut off: without it the stack may look complete."""
    with path.open("rb") as stream:
        start = stream.read(1024)
    if start[128:132] == b"DICM" and CT_STORAGE in start:
        raise ValueError(f"every slice must be whole, got a truncated file {path.name}. Copy it again.")


def _choose_series(slices: list[DicomSlice], series_uid: str | None) -> list[DicomSlice]:
    sizes = Counter((header.series_uid, header.modality) for header in slices)
    listing = "; ".join(f"{uid} ({modality}, {size} slices)" for (uid, modality), size in sizes.items())
    uids = {header.series_uid for header in slices}
    if series_uid is None and len(uids) > 1:
        raise ValueError(
            f"path must hold one DICOM series, got {len(uids)}: {listing}. Pick one with series_uid."
        )
    if series_uid is not None and series_uid not in uids:
        raise ValueError(f"series_uid must be in the folder, got {series_uid!r}. Pick one of: {listing}.")
    return [header for header in slices if series_uid in (None, header.series_uid)]


def _require_gray_ct(slices: list[DicomSlice]) -> None:
    for header in slices:
        if header.modality != "CT":
            raise ValueError(
                f"path must hold a CT, got modality {header.modality!r}. Only CT has Hounsfield units."
            )
        if header.num_samples != 1:
            raise ValueError(
                f"path must hold gray slices, got {header.num_samples} samples per pixel in "
                f"{header.path.name}. Leave out screenshots and dose reports."
            )
        if header.num_frames != 1:
            raise ValueError(
                f"path must hold one slice per file, got {header.num_frames} frames in {header.path.name}. "
                "Convert the multi-frame DICOM to NIfTI, for example with dcm2niix."
            )
    if len(slices) < 2:
        raise ValueError(
            f"path must hold a volume, got {len(slices)} slice in the series. Pass a whole scan."
        )


def _sort_regular_stack(slices: list[DicomSlice]) -> list[DicomSlice]:
    positions, directions = _geometry(slices)
    normal = np.cross(directions[0], directions[1])
    order = np.argsort(positions @ normal, kind="stable")
    slices, positions = [slices[i] for i in order], positions[order]
    offsets_mm = positions @ normal
    _require_even_gaps(np.diff(offsets_mm), offsets_mm)
    drift_mm = np.linalg.norm(positions - positions[0] - np.outer(offsets_mm - offsets_mm[0], normal), axis=1)
    if drift_mm.max() > 0.5 * min(slices[0].grid[2:]):
        tilt = np.degrees(np.arctan2(drift_mm[-1], offsets_mm[-1] - offsets_mm[0]))
        raise ValueError(
            f"slices must be stacked at a right angle, got a drift of {drift_mm.max():.1f} mm (gantry tilt "
            f"{tilt:.1f} degrees). Resample the scan to a straight grid first, for example with dcm2niix."
        )
    return slices


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
