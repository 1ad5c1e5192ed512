"""Read a CT scan of any common format into Hounsfield units, spacing and one fixed orientation.

SimpleITK reads and applies slope and intercept; this project judges what came out. Spatial triples are
(Z, Y, X) here and everywhere after; the (X, Y, Z) of SimpleITK and nibabel ends in this file.
"""

import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import SimpleITK as sitk

from radtower.processing.dicom_series import DicomSlice, find_series
from radtower.processing.hounsfield import to_hounsfield
from radtower.processing.scan_header import GZIP_MAGIC, NiftiHeader, check_nifti, check_text_header
from radtower.processing.scan_reference import ScanReference

ORIENTATION = "LPS"
FORMAT_BY_SUFFIX = {
    ".nii.gz": "NIfTI",
    ".nii": "NIfTI",
    ".nrrd": "NRRD",
    ".mha": "MetaImage",
    ".mhd": "MetaImage",
}
NO_RESCALE = "none in the file: stored values are taken as HU"
LPS_FROM_RAS = np.diag([-1.0, -1.0, 1.0, 1.0])  # its own inverse
GEOMETRY_TOLERANCE = 1e-3  # relative; NIfTI stores float32 quaternions


@dataclass(frozen=True)
class VolumeSource:
    """Where a volume came from and what was done to its values.

    Attributes:
        format: ``"DICOM"``, ``"NIfTI"``, ``"NRRD"``, ``"MetaImage"``, ``"nibabel"``, or a generator's name.
        rescale: How slope and intercept were handled, in words.
        warnings: What a user should know although the scan is usable.
    """

    format: str
    rescale: str
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
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


@runtime_checkable
class SpatialImage(Protocol):
    """An image of nibabel, which is not a dependency."""

    affine: Any
    dataobj: Any


def affine_from_spacing(spacing_mm: tuple[float, float, float]) -> np.ndarray:
    """Return the affine of a straight LPS volume whose first voxel is the origin; for generated volumes."""
    return LPS_FROM_RAS @ np.diag([*reversed(spacing_mm), 1.0])


def read_volume(
    path: str | Path | ScanReference | Mapping[str, Any] | SpatialImage, series_uid: str | None = None
) -> Volume:
    """Read one CT scan.

    Args:
        path: A folder with the slices of a DICOM series; a ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha`` or
            ``.mhd`` file; a nibabel image; or ``{"path", "bytes"}`` of ``datasets.Nifti``.
        series_uid: SeriesInstanceUID to pick from a folder with several; None when there is only one.

    Returns:
        The scan in LPS orientation. An oblique scan stays oblique: axes are swapped and flipped only.

    Raises:
        FileNotFoundError: If the path does not exist.
        TypeError: If ``path`` or the voxels are of a type that cannot be a CT scan.
        ValueError: If the scan is damaged, incomplete, irregular, not a CT volume or not in Hounsfield units.
    """
    if isinstance(path, ScanReference):
        return read_volume(path.path, path.series_uid)
    if isinstance(path, Mapping):
        return _read_mapping(path)
    if isinstance(path, SpatialImage):
        return _read_nibabel(path)
    if not isinstance(path, str | Path):
        raise TypeError(
            f"path must be a path, a nibabel image or a dict, got {type(path).__name__}. Pass a path."
        )
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"path must exist, got {path}. Check the spelling and the current folder.")
    if path.is_dir():
        return _read_dicom(path, series_uid)
    if series_uid is not None:
        raise ValueError(f"series_uid must be None for a file, got {series_uid!r}. Leave it out.")
    return _read_file(path)


def write_volume(volume: Volume, path: str | Path) -> None:
    """Write ``.nii``, ``.nii.gz``, ``.nrrd``, ``.mha`` or ``.mhd``, compressed where the format allows it.

    Raises:
        ValueError: If the ending is none of these.
    """
    path = Path(path)
    _format_of(path)
    lps = LPS_FROM_RAS @ volume.affine
    image = sitk.GetImageFromArray(volume.array_hu)
    _set_geometry(image, lps, np.array(volume.spacing_mm[::-1]))
    sitk.WriteImage(image, str(path), useCompression=path.suffix != ".nii")


def _read_dicom(folder: Path, series_uid: str | None) -> Volume:
    with _silent_simpleitk():
        slices, num_left_out = find_series(folder, series_uid)
        reader = sitk.ImageSeriesReader()
        reader.SetImageIO("GDCMImageIO")
        reader.SetFileNames([str(header.path) for header in slices])
        if len({header.rescale for header in slices}) > 1:
            reader.SetOutputPixelType(sitk.sitkFloat32)  # else the type that fits the first slice is used
        image = _execute(reader, folder)
    notes = () if num_left_out == 0 else (f"{num_left_out} files of the folder are not DICOM images",)
    return _to_volume(
        image, VolumeSource("DICOM", _describe_dicom_rescale(slices), notes), f"the scan {folder}"
    )


def _describe_dicom_rescale(slices: list[DicomSlice]) -> str:
    pairs = {header.rescale for header in slices}
    if pairs == {None}:
        return "no RescaleSlope and RescaleIntercept in the DICOM header: stored values are taken as HU"
    if len(pairs) > 1:
        return (
            f"{len(pairs)} different slopes and intercepts in the DICOM headers, applied once to each slice"
        )
    ((slope, intercept),) = (pair for pair in pairs if pair is not None)
    return f"slope {slope:g} and intercept {intercept:g} of the DICOM header, applied once"


def _read_file(path: Path) -> Volume:
    file_format = _format_of(path)
    nifti: NiftiHeader | None = None
    if file_format == "NIfTI":
        nifti = check_nifti(path)
    else:
        check_text_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with _silent_simpleitk():
        image = _execute(reader, path)
    if nifti is not None:
        _require_same_axes(image, nifti, path)
    rescale = NO_RESCALE
    if nifti is not None and nifti.is_rescaled:
        rescale = f"slope {nifti.slope:g} and intercept {nifti.intercept:g} of the NIfTI header, applied once"
    return _to_volume(image, VolumeSource(file_format, rescale), f"the scan {path}")


def _read_mapping(sample: Mapping[str, Any]) -> Volume:
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
        return read_volume(path)
    suffix = ".nii.gz" if content[:2] == GZIP_MAGIC else ".nii"
    with tempfile.TemporaryDirectory() as folder:  # SimpleITK reads from files only
        file = Path(folder) / f"scan{suffix}"
        file.write_bytes(content)
        return _read_file(file)


def _read_nibabel(image: SpatialImage) -> Volume:
    stored = np.asanyarray(image.dataobj)
    while stored.ndim > 3 and stored.shape[-1] == 1:
        stored = stored[..., 0]
    _require_volume(stored.shape, "the nibabel image")
    lps = LPS_FROM_RAS @ np.asarray(image.affine, dtype=np.float64)
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
    native = stored.astype(stored.dtype.newbyteorder("="), copy=False)
    straight = sitk.GetImageFromArray(np.ascontiguousarray(native.T))
    _set_geometry(straight, lps, spacing_xyz)
    source = VolumeSource("nibabel", "slope and intercept of the header, applied once by nibabel")
    return _to_volume(straight, source, "the nibabel image")


def _to_volume(image: sitk.Image, source: VolumeSource, name: str) -> Volume:
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"{name} must be gray, got {image.GetNumberOfComponentsPerPixel()} values per voxel (color or "
            "vector). Pass the scan itself, not a rendering or a deformation field."
        )
    _require_volume(image.GetSize(), name)
    image = sitk.DICOMOrient(image, ORIENTATION)
    array_hu, notes = to_hounsfield(sitk.GetArrayViewFromImage(image), name)
    spacing_xyz = np.array(image.GetSpacing())
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * spacing_xyz
    lps[:3, 3] = image.GetOrigin()
    z_mm, y_mm, x_mm = spacing_xyz[::-1].tolist()
    source = VolumeSource(source.format, source.rescale, source.warnings + notes)
    return Volume(array_hu, (z_mm, y_mm, x_mm), LPS_FROM_RAS @ lps, ORIENTATION, source)


def _require_volume(size_xyz: tuple[int, ...], name: str) -> None:
    if len(size_xyz) != 3 or min(size_xyz) < 2:
        raise ValueError(
            f"{name} must be one 3-D volume, got size {tuple(size_xyz)} (X, Y, Z). "
            "Pass a whole scan, and split a time series."
        )


def _require_same_axes(image: sitk.Image, header: NiftiHeader, path: Path) -> None:
    """Refuse a NIfTI file whose sform says something else than what SimpleITK took."""
    if header.sform is None or image.GetDimension() != 3:
        return
    taken = LPS_FROM_RAS[:3, :3] @ np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    if not np.allclose(taken, header.sform, atol=10 * GEOMETRY_TOLERANCE * np.abs(taken).max()):
        raise ValueError(
            f"the sform of {path} must describe the same right-angled grid as its qform and pixdim, got "
            f"{header.sform.round(3).tolist()} and {taken.round(3).tolist()}. Resample or re-export the scan."
        )


def _set_geometry(image: sitk.Image, lps: np.ndarray, spacing_xyz: np.ndarray) -> None:
    image.SetSpacing(spacing_xyz.tolist())
    image.SetDirection((lps[:3, :3] / spacing_xyz).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())


def _execute(reader: sitk.ImageFileReader | sitk.ImageSeriesReader, path: Path) -> sitk.Image:
    try:
        return reader.Execute()
    except RuntimeError as error:
        # The message of SimpleITK is many lines of its own source positions; the last one says what happened.
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"path must be a scan that SimpleITK can read, got {path}: {reason} The file may be truncated, "
            "damaged or sheared. Download or export it again."
        ) from error


def _format_of(path: Path) -> str:
    for suffix, file_format in FORMAT_BY_SUFFIX.items():
        if path.name.lower().endswith(suffix):
            return file_format
    raise ValueError(
        f"path must end in one of {', '.join(FORMAT_BY_SUFFIX)}, got {path.name!r}. "
        "For DICOM, pass the folder that holds the slices."
    )


@contextmanager
def _silent_simpleitk() -> Iterator[None]:
    """Keep SimpleITK from printing what this module refuses in its own words."""
    was_shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(was_shown)
