"""Judge the headers of NIfTI, NRRD and MetaImage files before SimpleITK repairs them in silence.

SimpleITK fills a truncated NIfTI file with zeros, turns NaN into 0 and a spacing of zero into 1 mm, and
prefers the qform of a sheared image; it reads NRRD and MetaImage files that state no spacing as 1 mm.
"""

import gzip
import math
import re
import struct
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, NamedTuple, cast

import numpy as np

NIFTI_HEADER_BYTES, NIFTI2_HEADER_BYTES = 348, 540
GZIP_MAGIC = b"\x1f\x8b"
TEXT_HEADER_BYTES, CHUNK_BYTES = 1 << 16, 1 << 20
FLOAT_BY_DATATYPE = {16: "f4", 64: "f8"}
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: meter, millimeter, micrometer
NUMBER = r"[-+.\deEinfaINFA]+"


@dataclass(frozen=True)
class NiftiHeader:
    """What RadTower needs to know of a NIfTI-1 header."""

    slope: float
    intercept: float
    sform: np.ndarray | None  # (3, 3) voxel index -> RAS mm, without the offset; None when the file has none

    @property
    def is_rescaled(self) -> bool:
        """Whether a reader must change the stored values; a slope of 0 means none by the standard."""
        return self.slope not in (0.0, 1.0) or (self.slope != 0.0 and self.intercept != 0.0)


class _Layout(NamedTuple):
    offset: int  # bytes before the first voxel
    total_bytes: int  # of the file when not compressed
    float_dtype: str | None  # of the stored voxels; None when they are integers


def check_nifti(path: Path) -> NiftiHeader:
    """Return the header of a ``.nii`` or ``.nii.gz`` file.

    Raises:
        ValueError: If the file is damaged, truncated or holds NaN, or its spacing or orientation is unusable.
    """
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == GZIP_MAGIC
    try:
        with gzip.open(path) if is_gzip else path.open("rb") as content:
            header, layout = _parse_nifti(content.read(NIFTI_HEADER_BYTES), path)
            num_bytes = _check_content(path, cast(BinaryIO, content), layout, is_gzip)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise _truncated(path, str(error)) from error
    if num_bytes < layout.total_bytes:
        raise _truncated(path, f"{num_bytes} of {layout.total_bytes} bytes")
    return header


def check_text_header(path: Path) -> None:
    """Refuse an NRRD or MetaImage header that states no usable spacing.

    Raises:
        ValueError: If the spacing is missing, zero, negative or not a number.
    """
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
    _require_spacing([float(number) for number in found.group(1).split()], path)


def _parse_nifti(raw: bytes, path: Path) -> tuple[NiftiHeader, _Layout]:
    if len(raw) < NIFTI_HEADER_BYTES:
        raise _truncated(path, f"{len(raw)} of {NIFTI_HEADER_BYTES} header bytes")
    sizes = {order: struct.unpack_from(f"{order}i", raw, 0)[0] for order in "<>"}
    if NIFTI2_HEADER_BYTES in sizes.values():
        raise ValueError(f"path must be a NIfTI-1 file, got NIfTI-2 in {path}. Save it as NIfTI-1.")
    order = next((order for order, size in sizes.items() if size == NIFTI_HEADER_BYTES), None)
    if order is None:
        raise ValueError(f"path must be a NIfTI file, got other content in {path}. Check what it holds.")
    num_axes, *shape = struct.unpack_from(f"{order}8h", raw, 40)
    datatype, voxel_bits = struct.unpack_from(f"{order}2h", raw, 70)
    spacing = struct.unpack_from(f"{order}3f", raw, 80)
    offset, slope, intercept = struct.unpack_from(f"{order}3f", raw, 108)
    qform_code, sform_code = struct.unpack_from(f"{order}2h", raw, 252)
    _require_spacing(spacing[: min(num_axes, 3)], path)
    if qform_code <= 0 and sform_code <= 0:
        raise ValueError(
            f"qform_code or sform_code must be positive, got {qform_code} and {sform_code} in {path}: left "
            "and right are unknown. Set the affine of the scan with nibabel's set_sform(affine, 1)."
        )
    rows = np.array(struct.unpack_from(f"{order}12f", raw, 280), dtype=np.float64).reshape(3, 4)
    sform = rows[:, :3] * MM_PER_UNIT.get(raw[123] & 7, 1.0) if sform_code > 0 else None
    offset = max(int(offset), NIFTI_HEADER_BYTES)
    total_bytes = offset + math.prod(shape[:num_axes]) * voxel_bits // 8
    float_dtype = f"{order}{FLOAT_BY_DATATYPE[datatype]}" if datatype in FLOAT_BY_DATATYPE else None
    return NiftiHeader(slope, intercept, sform), _Layout(offset, total_bytes, float_dtype)


def _check_content(path: Path, content: BinaryIO, layout: _Layout, is_gzip: bool) -> int:
    """Return the number of bytes that are there, and refuse floats that are not finite."""
    if layout.float_dtype is None:
        if not is_gzip:
            return path.stat().st_size
        with path.open("rb") as compressed:
            compressed.seek(-4, 2)
            (size_in_trailer,) = struct.unpack("<I", compressed.read(4))
        # A whole gzip file ends with its size; a truncated one ends with anything, and is then read through.
        if size_in_trailer == layout.total_bytes % 2**32:
            return layout.total_bytes
    num_bytes = NIFTI_HEADER_BYTES + len(content.read(layout.offset - NIFTI_HEADER_BYTES))
    while chunk := content.read(min(CHUNK_BYTES, layout.total_bytes - num_bytes)):
        num_bytes += len(chunk)
        if layout.float_dtype is not None:
            itemsize = np.dtype(layout.float_dtype).itemsize  # a truncated file may end within a voxel
            _require_finite(np.frombuffer(chunk, layout.float_dtype, len(chunk) // itemsize), path)
    return num_bytes


def _require_finite(values: np.ndarray, path: Path) -> None:
    if not len(values):
        return
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError(
            f"the scan {path} must be finite, got {low} to {high}. Set voxels outside the scan to -1000."
        )


def _require_spacing(spacing_mm: list[float] | tuple[float, ...], path: Path) -> None:
    if not all(math.isfinite(value) and value > 0 for value in spacing_mm):
        raise ValueError(
            f"spacing must be positive and finite, got {tuple(spacing_mm)} (X, Y, Z) in {path}. "
            "Correct the header from the original scan."
        )


def _truncated(path: Path, reason: str) -> ValueError:
    return ValueError(f"path must be a whole file, got {reason} in {path}. Download or copy it again.")
