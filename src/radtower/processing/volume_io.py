"""Read a CT scan of any common format into Hounsfield units, spacing and one fixed orientation.

The files of ``reading/`` give stored values; here they become HU, once, and LPS. Spatial triples are
(Z, Y, X) here and everywhere after; the (X, Y, Z) of file headers ends in this file.
"""

import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import SimpleITK as sitk

from radtower.processing.hounsfield import to_hounsfield
from radtower.processing.reading.archive import read_archive
from radtower.processing.reading.dicom_series import read_dicom_file, read_dicom_folder
from radtower.processing.reading.functional_groups import is_dicom
from radtower.processing.reading.nifti import (
    GZIP_MAGIC,
    MM_PER_UNIT,
    identity_notes,
    read_nifti,
    require_orientation,
)
from radtower.processing.reading.npz import read_npz
from radtower.processing.reading.sitk_image import read_image_file
from radtower.processing.reading.stored_scan import (
    GEOMETRY_TOLERANCE,
    LPS_FROM_RAS,
    MEMORY_LIMIT_GB,
    Reading,
    StoredScan,
    header_readings,
    require_memory,
    require_spacing,
    require_volume,
)
from radtower.processing.scan_reference import ScanReference
from radtower.processing.volume_geometry import turned_to_lps, undo_tilt, with_spacing

ORIENTATION = "LPS"
FORMAT_BY_SUFFIX = {
    ".nii.gz": "NIfTI",
    ".nii": "NIfTI",
    ".nrrd": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
    ".npz": "npz",
}
WRITTEN_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".mhd")


@dataclass(frozen=True)
class VolumeSource:
    """Where a volume came from and what was done to its values.

    Attributes:
        format: ``"DICOM"``, ``"NIfTI"``, ``"NRRD"``, ``"MetaImage"``, ``"npz"``, ``"nibabel"``, or a
            generator's name.
        rescale: How slope and intercept were handled, in words.
        warnings: What a user should know although the scan is usable.
    """

    format: str
    rescale: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, repr=False)
class Volume:
    """A CT scan in Hounsfield units.

    Attributes:
        array_hu: ``(Z, Y, X)``, int16 or float32.
        spacing_mm: Voxel size in (Z, Y, X) order.
        affine: ``(4, 4)`` float64, voxel index in (x, y, z) order -> RAS+ millimeters, as nibabel's.
        orientation: Where the X, Y, Z axes point to; ``read_volume`` always gives ``"LPS"``.
        source: Format and history.

    Raises:
        TypeError: If ``array_hu`` is neither int16 nor float32.
        ValueError: If shapes are wrong, or ``spacing_mm`` and ``affine`` disagree.
    """

    array_hu: np.ndarray
    spacing_mm: tuple[float, float, float]
    affine: np.ndarray
    orientation: str
    source: VolumeSource

    def __post_init__(self) -> None:
        if self.array_hu.dtype not in (np.int16, np.float32):
            raise TypeError(
                f"array_hu must be int16 or float32, got {self.array_hu.dtype}. Convert it first."
            )
        if self.array_hu.ndim != 3:
            raise ValueError(f"array_hu must be (Z, Y, X), got shape {self.array_hu.shape}. Drop other axes.")
        if self.affine.shape != (4, 4):
            raise ValueError(
                f"affine must be (4, 4), got shape {self.affine.shape}. Use affine_from_spacing."
            )
        from_affine = np.linalg.norm(self.affine[:3, :3], axis=0)[::-1]
        if len(self.spacing_mm) != 3 or not np.allclose(
            from_affine, self.spacing_mm, rtol=GEOMETRY_TOLERANCE
        ):
            raise ValueError(
                f"spacing_mm must agree with affine, got {tuple(self.spacing_mm)} and "
                f"{tuple(from_affine.round(4).tolist())} (Z, Y, X). Use affine_from_spacing."
            )

    def __repr__(self) -> str:
        return (
            f"Volume(shape={self.array_hu.shape}, spacing_mm={self.spacing_mm}, "
            f"hu={self.array_hu.min():g} to {self.array_hu.max():g}, orientation={self.orientation!r}, "
            f"source={self.source})"
        )


@runtime_checkable
class SpatialImage(Protocol):
    """An image of nibabel, which is not a dependency."""

    affine: Any
    dataobj: Any


def affine_from_spacing(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return the affine of a straight LPS volume whose first voxel is the origin; for generated volumes."""
    return LPS_FROM_RAS @ np.diag([*reversed(spacing_mm), 1.0])


def read_volume(
    path: str | Path | ScanReference | Mapping[str, Any] | SpatialImage,
    series_uid: str | None = None,
    memory_limit_gb: float = MEMORY_LIMIT_GB,
) -> Volume:
    """Read one CT scan.

    Args:
        path: A folder, its sub-folders included, or a ``.zip`` of the slices of a DICOM series; an Enhanced
            CT in one DICOM file; a ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha`` or ``.mhd`` file; a
            ``ScanReference``; a nibabel image; or ``{"path", "bytes"}`` of ``datasets.Nifti``. An ``.npz``
            file of RAD-ChestCT needs a ``ScanReference`` with its spacing.
        series_uid: SeriesInstanceUID to pick from a folder or zip with several; None for the only one, or the
            one chest series with the thinnest slices.
        memory_limit_gb: Refuse a scan whose stored voxels take more (10**9 bytes), before they are read.

    Returns:
        The scan in LPS orientation. An oblique scan stays oblique: axes are swapped and flipped only.

    Raises:
        FileNotFoundError: If the path does not exist.
        TypeError: If ``path`` or the voxels are of a type that cannot be a CT scan.
        ValueError: If the scan is damaged, incomplete, irregular, too large, not a CT volume or not in
            Hounsfield units by any reading of its header and table.
    """
    if isinstance(path, ScanReference):
        if series_uid is not None:
            raise ValueError(
                f"series_uid must be None beside a ScanReference, got {series_uid!r}. "
                "Put it into the reference."
            )
        reference = path
        stored = _read_path(Path(path.path), path, memory_limit_gb)
    elif isinstance(path, str | Path):
        reference = ScanReference(path, series_uid)
        stored = _read_path(Path(path), reference, memory_limit_gb)
    elif isinstance(path, Mapping):
        reference = ScanReference("", series_uid)
        stored = _read_mapping(path, reference, memory_limit_gb)
    elif isinstance(path, SpatialImage):
        reference = ScanReference("")
        stored = _read_nibabel(path, memory_limit_gb)
    else:
        raise TypeError(
            f"path must be a path, a nibabel image or a dict, got {type(path).__name__}. Pass a path."
        )
    return _to_volume(stored, reference)


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha`` or ``.mhd``, compressed where the format allows it.

    Raises:
        ValueError: If the ending is none of these.
    """
    path = Path(path)
    if not path.name.lower().endswith(WRITTEN_SUFFIXES):
        raise ValueError(
            f"path must end in one of {', '.join(WRITTEN_SUFFIXES)}, got {path.name!r}. Rename it."
        )
    lps, spacing_xyz = LPS_FROM_RAS @ volume.affine, np.array(volume.spacing_mm[::-1])
    image = sitk.GetImageFromArray(volume.array_hu)
    image.SetSpacing(spacing_xyz.tolist())
    image.SetDirection((lps[:3, :3] / spacing_xyz).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    sitk.WriteImage(image, str(path), useCompression=path.suffix != ".nii")


def _read_path(path: Path, reference: ScanReference, memory_limit_gb: float) -> StoredScan:
    if not path.exists():
        raise FileNotFoundError(f"path must exist, got {path}. Check the spelling and the current folder.")
    if path.is_dir():
        return read_dicom_folder(path, reference.series_uid, memory_limit_gb)
    if path.suffix.lower() == ".zip":
        return read_archive(path, reference.series_uid, memory_limit_gb)
    if reference.series_uid is not None:
        raise ValueError(f"series_uid must be None for a file, got {reference.series_uid!r}. Leave it out.")
    if is_dicom(path):
        return read_dicom_file(path, memory_limit_gb)
    file_format = _format_of(path)
    if file_format == "NIfTI":
        return read_nifti(path, memory_limit_gb)
    if file_format == "npz":
        return read_npz(path, reference.spacing_mm, memory_limit_gb)
    return read_image_file(path, file_format, memory_limit_gb)


def _read_mapping(sample: Mapping[str, Any], reference: ScanReference, memory_limit_gb: float) -> StoredScan:
    if "bytes" not in sample and "path" not in sample:
        raise ValueError(
            f"path must be a dict with path or bytes, got keys {sorted(sample)}. Pass one of them."
        )
    content, path = sample.get("bytes"), sample.get("path")
    if content is None:
        if path is None:
            raise ValueError(
                "path must be a dict with path or bytes, got None for both. Fill in one of them."
            )
        return _read_path(Path(path), reference, memory_limit_gb)
    suffix = ".nii.gz" if content[:2] == GZIP_MAGIC else ".nii"
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / f"scan{suffix}"
        file.write_bytes(content)
        return _read_path(file, reference, memory_limit_gb)


def _read_nibabel(image: SpatialImage, memory_limit_gb: float) -> StoredScan:
    name = "the nibabel image"
    size = tuple(image.dataobj.shape)
    while len(size) > 3 and size[-1] == 1:
        size = size[:-1]
    require_volume(size, name)
    require_memory(size, image.dataobj.dtype.itemsize, memory_limit_gb, name)
    stored = np.asarray(image.dataobj).reshape(size).copy(order="K")  # the image stays as it is
    ras, notes = _nibabel_affine(image, name)
    lps = LPS_FROM_RAS @ ras
    spacing_xyz = np.linalg.norm(lps[:3, :3], axis=0)
    if not np.isfinite(lps).all() or not (spacing_xyz > 0).all():
        raise ValueError(
            f"the affine of the nibabel image must give a positive, finite spacing, got "
            f"{spacing_xyz.tolist()} (X, Y, Z). Correct it from the original scan."
        )
    axes = lps[:3, :3] / spacing_xyz
    if not np.allclose(axes.T @ axes, np.eye(3), atol=GEOMETRY_TOLERANCE):
        raise ValueError(
            f"the axes of the nibabel image must be at right angles, got {axes.round(3).tolist()}. "
            "Resample the scan to a straight grid first."
        )
    return StoredScan(stored.T, lps, "nibabel", name, _nibabel_readings(image), notes)


def _nibabel_affine(image: SpatialImage, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the affine to RAS millimeters, and notes, judged like that of a file."""
    ras = np.array(image.affine, dtype=np.float64)
    notes = identity_notes(ras)
    header: Any = getattr(image, "header", None)
    if "qform_code" in getattr(header, "keys", tuple)():  # the headers of other formats have no such field
        require_orientation(int(header["qform_code"]), int(header["sform_code"]), name)
        ras[:3] *= MM_PER_UNIT.get(int(header["xyzt_units"]) & 7, 1.0)
    return ras, notes


def _nibabel_readings(image: SpatialImage) -> tuple[Reading, ...]:
    """Return what the values can mean: nibabel has applied the header, which may lie."""
    slope, intercept = getattr(image.dataobj, "slope", 1.0), getattr(image.dataobj, "inter", 0.0)
    if (slope, intercept) == (1.0, 0.0):  # none, or an array in memory
        return (Reading(1.0, 0.0, "slope and intercept of the header, applied once by nibabel"),)
    once, ignored = header_readings("NIfTI", float(slope), float(intercept), is_applied=True)
    return once._replace(words=f"{once.words} by nibabel"), ignored


def _to_volume(stored: StoredScan, reference: ScanReference) -> Volume:
    array_hu, rescale, notes = to_hounsfield(stored.values, stored.name, _readings(stored, reference.rescale))
    lps = stored.lps
    if stored.shear_mm is not None:
        array_hu, lps = undo_tilt(array_hu, lps, stored.shear_mm)
    array_hu, lps = turned_to_lps(array_hu, lps)
    spacing_note: tuple[str, ...] = ()
    if reference.spacing_mm is not None:
        lps, spacing_note = with_spacing(lps, reference.spacing_mm)
    spacing_xyz = np.linalg.norm(lps[:3, :3], axis=0)
    require_spacing(tuple(spacing_xyz.tolist()), stored.name)
    source = VolumeSource(stored.format, rescale, stored.notes + notes + spacing_note)
    z_mm, y_mm, x_mm = spacing_xyz[::-1].tolist()
    return Volume(array_hu, (z_mm, y_mm, x_mm), LPS_FROM_RAS @ lps, ORIENTATION, source)


def _readings(stored: StoredScan, table: tuple[float, float] | None) -> tuple[Reading, ...]:
    """Return what the values can mean; the rescale of the table is the last resort, never a second one."""
    if table is None:
        return stored.readings
    slope, intercept = table
    if not np.isfinite(table).all() or slope == 0:
        raise ValueError(
            f"rescale must be a finite slope, not 0, and an intercept, got {tuple(table)}. Correct the table."
        )
    pair = f"slope {slope:g} and intercept {intercept:g} of the table"
    as_stored = stored.readings[-1]
    applied = Reading(
        slope * as_stored.slope, slope * as_stored.intercept + intercept, f"{pair}, applied once"
    )
    return (
        *(
            reading._replace(words=f"{reading.words}; {pair} not applied, the values are already HU")
            for reading in stored.readings
        ),
        applied,
    )


def _format_of(path: Path) -> str:
    for suffix, file_format in FORMAT_BY_SUFFIX.items():
        if path.name.lower().endswith(suffix):
            return file_format
    raise ValueError(
        f"path must end in one of {', '.join(FORMAT_BY_SUFFIX)}, got {path.name!r}. "
        "For DICOM, pass the folder that holds the slices."
    )
