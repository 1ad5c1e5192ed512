"""Read NRRD and MetaImage files through SimpleITK, and the parts of SimpleITK that DICOM needs as well.

SimpleITK takes 1 mm where an NRRD or MetaImage header states no spacing, so the header is judged first.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import numpy as np
import SimpleITK as sitk

from radtower.processing.reading.detached_data import require_data_beside
from radtower.processing.reading.stored_scan import (
    StoredScan,
    require_memory,
    require_spacing,
    require_volume,
)

TEXT_HEADER_BYTES = 1 << 16
NUMBER = r"[-+.\deEinfaINFA]+"
BYTES_BY_PIXEL = {
    **dict.fromkeys((sitk.sitkInt8, sitk.sitkUInt8), 1),
    **dict.fromkeys((sitk.sitkInt16, sitk.sitkUInt16), 2),
    **dict.fromkeys((sitk.sitkInt32, sitk.sitkUInt32, sitk.sitkFloat32), 4),
}  # the others have 8
Result = TypeVar("Result")


def read_image_file(path: Path, file_format: str, memory_limit_gb: float) -> StoredScan:
    """Read a ``.nrrd``, ``.mha`` or ``.mhd`` file.

    Raises:
        ValueError: If the header states no usable spacing or names a data file elsewhere, or the file is
            damaged or not one gray volume within the memory limit.
    """
    require_data_beside(path)
    _check_text_header(path)
    reader = sitk.ImageFileReader()
    reader.SetFileName(str(path))
    with silent_simpleitk():
        read_or_refuse(reader.ReadImageInformation, path)
        require_memory(
            reader.GetSize(), bytes_of_pixel(reader.GetPixelID()), memory_limit_gb, f"the scan {path}"
        )
        image = read_or_refuse(reader.Execute, path)
    require_gray_volume(image, f"the scan {path}")
    return StoredScan(sitk.GetArrayFromImage(image), lps_of(image), file_format, f"the scan {path}")


def require_gray_volume(image: sitk.Image, name: str) -> None:
    """Refuse color, vectors and anything that is not three-dimensional.

    Raises:
        ValueError: If the image is one of these.
    """
    if image.GetNumberOfComponentsPerPixel() != 1:
        raise ValueError(
            f"{name} must be gray, got {image.GetNumberOfComponentsPerPixel()} values per voxel (color or "
            "vector). Pass the scan itself, not a rendering or a deformation field."
        )
    require_volume(image.GetSize(), name)


def lps_of(image: sitk.Image) -> np.ndarray:
    """Return the affine ``(4, 4)`` from voxel index (x, y, z) to LPS millimeters."""
    lps = np.eye(4)
    lps[:3, :3] = np.array(image.GetDirection()).reshape(3, 3) * np.array(image.GetSpacing())
    lps[:3, 3] = image.GetOrigin()
    return lps


def bytes_of_pixel(pixel_id: int) -> int:
    """Return the size of one stored value of SimpleITK's pixel type."""
    return BYTES_BY_PIXEL.get(pixel_id, 8)


@contextmanager
def silent_simpleitk() -> Iterator[None]:
    """Keep SimpleITK from printing what this project refuses in its own words."""
    was_shown = sitk.ProcessObject.GetGlobalWarningDisplay()
    sitk.ProcessObject.SetGlobalWarningDisplay(False)
    try:
        yield
    finally:
        sitk.ProcessObject.SetGlobalWarningDisplay(was_shown)


def read_or_refuse(read: Callable[[], Result], path: Path) -> Result:
    """Return ``read()``, a method of a SimpleITK reader of ``path``.

    Raises:
        ValueError: If SimpleITK cannot read it.
    """
    try:
        return read()
    except RuntimeError as error:
        # The message of SimpleITK is many lines of its own source positions; the last one says what happened.
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(
            f"path must be a scan that SimpleITK can read, got {path}: {reason} The file may be truncated, "
            "damaged or sheared. Download or export it again."
        ) from error


def _check_text_header(path: Path) -> None:
    """Refuse an NRRD or MetaImage header that states no usable spacing."""
    with path.open("rb") as stream:
        text = stream.read(TEXT_HEADER_BYTES).decode("latin-1")
    if path.suffix.lower() == ".nrrd":
        text = text.split("\n\n", maxsplit=1)[0].split("\r\n\r\n", maxsplit=1)[0]
        if re.search(r"^space directions:", text, re.MULTILINE | re.IGNORECASE):
            return
        pattern = rf"^spacings:((?:[ \t]+{NUMBER})+)"
    else:
        text = re.split(r"^ElementDataFile.*$", text, maxsplit=1, flags=re.MULTILINE)[0]
        pattern = rf"^Element(?:Spacing|Size)\s*=((?:[ \t]+{NUMBER})+)"
    found = re.search(pattern, text, re.MULTILINE | re.IGNORECASE)
    if found is None:
        raise ValueError(f"the header of {path} must state the spacing, got none. Export the scan again.")
    require_spacing(tuple(float(number) for number in found.group(1).split()), str(path))
