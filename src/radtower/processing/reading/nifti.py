"""Read NIfTI-1 and NIfTI-2 from their bytes, once, and refuse what other readers repair in silence.

SimpleITK fills a truncated file with zeros, turns NaN into 0 and a spacing of zero into 1 mm, prefers the
qform of a sheared image and inflates after a check had to inflate before. Source: nifti1.h and nifti2.h.
"""

import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
from isal import isal_zlib

from radtower.processing.reading.stored_scan import (
    AS_STORED,
    GEOMETRY_TOLERANCE,
    LPS_FROM_RAS,
    StoredScan,
    header_readings,
    require_memory,
    require_spacing,
    require_volume,
    truncated,
)

GZIP_MAGIC = b"\x1f\x8b"
CHUNK_BYTES = 1 << 18  # fits the cache of a core
# The stub of isal declares the class as one of its instances.
DAMAGED: type[Exception] = isal_zlib.error  # type: ignore[assignment]
GZIP_WINDOW_BITS = 31  # zlib: a gzip header and its checksum
BYTE_ORDERS: tuple[tuple[str, Literal["little", "big"]], ...] = (("<", "little"), (">", "big"))
# Field: type and offset in NIfTI-1, in NIfTI-2, and the shape.
FIELDS: dict[str, tuple[tuple[str, int], tuple[str, int], tuple[int, ...]]] = {
    "dim": (("i2", 40), ("i8", 16), (8,)),
    "datatype": (("i2", 70), ("i2", 12), ()),
    "pixdim": (("f4", 76), ("f8", 104), (8,)),
    "vox_offset": (("f4", 108), ("i8", 168), ()),
    "scl_slope": (("f4", 112), ("f8", 176), ()),
    "scl_inter": (("f4", 116), ("f8", 184), ()),
    "xyzt_units": (("u1", 123), ("i4", 500), ()),
    "qform_code": (("i2", 252), ("i4", 344), ()),
    "sform_code": (("i2", 254), ("i4", 348), ()),
    "quatern": (("f4", 256), ("f8", 352), (3,)),
    "qoffset": (("f4", 268), ("f8", 376), (3,)),
    "srow": (("f4", 280), ("f8", 400), (3, 4)),
}
HEADER_BYTES = {1: 348, 2: 540}
BY_FIRST_BYTES = {
    size.to_bytes(4, name): (order, version)  # the first field is the size of the header
    for version, size in HEADER_BYTES.items()
    for order, name in BYTE_ORDERS
}
DTYPE_BY_DATATYPE = {
    **{2: "u1", 4: "i2", 8: "i4", 16: "f4", 32: "c8", 64: "f8"},
    **{256: "i1", 512: "u2", 768: "u4", 1024: "i8", 1280: "u8"},
}
VALUES_BY_COLOR_DATATYPE = {128: 3, 2304: 4}
IDENTITY_NOTE = (
    "the affine of the file is the identity, as if it was never set: left, right and the voxel size may be "
    "wrong"
)
QUATERNION_EPSILON = 3 * float(np.finfo(np.float32).eps)  # of the stored float32; below it, a is rounding
MM_PER_UNIT = {1: 1000.0, 2: 1.0, 3: 0.001}  # xyzt_units: meter, millimeter, micrometer


@dataclass(frozen=True, eq=False)
class NiftiHeader:
    """What RadTower needs of a header.

    Attributes:
        size: Voxels per axis, (X, Y, Z); trailing axes of length one are dropped.
        dtype: Of the stored voxels, byte order included.
        num_bytes: Of the header itself.
        offset: Bytes before the first voxel.
        slope: As stored; 0 means that there is no rescale.
        intercept: As stored.
        lps: ``(4, 4)`` voxel index (x, y, z) -> LPS millimeters.
        notes: What a user should know.
    """

    size: tuple[int, ...]
    dtype: np.dtype
    num_bytes: int
    offset: int
    slope: float
    intercept: float
    lps: np.ndarray
    notes: tuple[str, ...]

    @property
    def is_rescaled(self) -> bool:
        """Whether the header states a rescale; a slope of 0 means none by the standard, and NaN by custom."""
        is_stated = math.isfinite(self.slope) and math.isfinite(self.intercept) and self.slope != 0.0
        return is_stated and (self.slope, self.intercept) != (1.0, 0.0)


def read_nifti(path: Path, memory_limit_gb: float) -> StoredScan:
    """Read a ``.nii`` or ``.nii.gz`` file; the ending does not matter, the content does.

    Raises:
        ValueError: If the file is damaged or truncated, its spacing or orientation is unusable, or it is not
            one gray volume within the memory limit.
    """
    with path.open("rb") as stream:
        is_gzip = stream.read(2) == GZIP_MAGIC
    try:
        with path.open("rb") as stream:
            content: BinaryIO = io.BufferedReader(_Inflated(stream), CHUNK_BYTES) if is_gzip else stream
            header = _read_header(content, path)
            require_memory(header.size, header.dtype.itemsize, memory_limit_gb, f"the scan {path}")
            values = _read_voxels(content, header, path)
            content.read(1)  # the checksum of gzip is compared at its end only
    except (EOFError, DAMAGED) as error:
        raise truncated(path, str(error)) from error
    readings = (
        header_readings("NIfTI", header.slope, header.intercept, is_applied=False)
        if header.is_rescaled
        else (AS_STORED,)
    )
    return StoredScan(values, header.lps, "NIfTI", f"the scan {path}", readings, header.notes)


class _Inflated(io.RawIOBase):
    """The content of a gzip file, of several members too; ``gzip.open`` takes three times as long.

    Each member's checksum is compared. Raises EOFError where the file ends within one.
    """

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._member = isal_zlib.decompressobj(GZIP_WINDOW_BITS)
        self._waiting = b""  # read, not inflated yet

    def readable(self) -> bool:
        return True

    def readinto(self, target: Any) -> int:
        while True:
            self._waiting = self._waiting or self._stream.read(CHUNK_BYTES)
            if self._member.eof:
                self._waiting = self._waiting.lstrip(b"\0")  # writers may pad to a block
                if not self._waiting:
                    return 0
                self._member = isal_zlib.decompressobj(GZIP_WINDOW_BITS)
            elif not self._waiting:
                raise EOFError("Compressed file ended before the end of its data")
            inflated = self._member.decompress(self._waiting, len(target))
            self._waiting = self._member.unused_data if self._member.eof else self._member.unconsumed_tail
            if inflated:
                target[: len(inflated)] = inflated
                return len(inflated)


def _read_voxels(content: BinaryIO, header: NiftiHeader, path: Path) -> np.ndarray:
    """Return the voxels ``(Z, Y, X)``; the stream stands behind the header.

    Floats that are whole numbers, as most writers of CT store them, become int16 on the way: half the memory.
    """
    content.read(header.offset - header.num_bytes)
    num_voxels, dtype = math.prod(header.size), header.dtype
    if dtype.kind != "f":
        return _fill(content, np.empty(num_voxels, dtype), 0, header, path).reshape(header.size[::-1])
    narrow = np.empty(num_voxels, np.int16)
    chunk = np.empty(CHUNK_BYTES // dtype.itemsize + 1, dtype)
    for start in range(0, num_voxels, len(chunk)):
        part = _fill(content, chunk[: num_voxels - start], start, header, path)
        stop = start + len(part)
        with np.errstate(invalid="ignore"):  # NaN and what is out of range: found to differ
            narrow[start:stop] = part
        if not np.array_equal(narrow[start:stop], part):
            voxels = np.empty(num_voxels, dtype)
            voxels[:start], voxels[start:stop] = narrow[:start], part
            _fill(content, voxels[stop:], stop, header, path)
            return voxels.reshape(header.size[::-1])
    return narrow.reshape(header.size[::-1])


def _fill(
    content: BinaryIO, voxels: np.ndarray, num_before: int, header: NiftiHeader, path: Path
) -> np.ndarray:
    """Fill ``voxels`` from the stream, ``num_before`` voxels behind the first, and return it."""
    target = memoryview(voxels.view(np.uint8).data)
    num_bytes = 0
    while num_bytes < len(target):
        count = content.readinto(target[num_bytes : num_bytes + CHUNK_BYTES])  # type: ignore[attr-defined]
        if not count:
            found = header.offset + num_before * header.dtype.itemsize + num_bytes
            whole = header.offset + math.prod(header.size) * header.dtype.itemsize
            raise truncated(path, f"{found} of {whole} bytes")
        num_bytes += count
    return voxels


def _read_header(content: BinaryIO, path: Path) -> NiftiHeader:
    raw = content.read(4)
    order, version = BY_FIRST_BYTES.get(raw, ("<", 1))
    if len(raw) == 4 and raw not in BY_FIRST_BYTES:
        raise ValueError(f"path must be a NIfTI file, got other content in {path}. Check what it holds.")
    raw += content.read(HEADER_BYTES[version] - 4)
    if len(raw) < HEADER_BYTES[version]:
        raise truncated(path, f"{len(raw)} of {HEADER_BYTES[version]} header bytes")
    fields = {}
    for name, (first, second, shape) in FIELDS.items():
        kind, offset = first if version == 1 else second
        fields[name] = np.ndarray(shape, order + kind, raw, offset)
    size = _size(fields, path)
    require_volume(size, f"the scan {path}")
    lps, notes = _lps(fields, path)
    return NiftiHeader(
        size=size,
        dtype=_dtype(int(fields["datatype"]), order, path),
        num_bytes=HEADER_BYTES[version],
        offset=max(int(fields["vox_offset"]), HEADER_BYTES[version]),
        slope=float(fields["scl_slope"]),
        intercept=float(fields["scl_inter"]),
        lps=lps,
        notes=notes,
    )


def _size(fields: dict[str, np.ndarray], path: Path) -> tuple[int, ...]:
    num_axes, *sizes = fields["dim"].tolist()
    if not 1 <= num_axes <= 7 or min(sizes[:num_axes]) < 1:
        raise ValueError(
            f"dim must be the number of axes and positive sizes, got {[num_axes, *sizes]} in {path}. "
            "The header is damaged; export the scan again."
        )
    while num_axes > 3 and sizes[num_axes - 1] == 1:
        num_axes -= 1
    return tuple(sizes[:num_axes])


def _dtype(datatype: int, order: str, path: Path) -> np.dtype:
    if datatype in VALUES_BY_COLOR_DATATYPE:
        raise ValueError(
            f"the scan {path} must be gray, got {VALUES_BY_COLOR_DATATYPE[datatype]} values per voxel "
            "(color). Pass the scan itself, not a rendering."
        )
    if datatype not in DTYPE_BY_DATATYPE:
        raise ValueError(
            f"datatype must be one of {sorted(DTYPE_BY_DATATYPE)}, got {datatype} in {path}. Save the scan "
            "as 16-bit integers."
        )
    return np.dtype(order + DTYPE_BY_DATATYPE[datatype])


def _lps(fields: dict[str, np.ndarray], path: Path) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return the affine to LPS millimeters, and notes; sform before qform, and they must agree."""
    pixdim = fields["pixdim"].astype(np.float64)
    mm_per_unit = MM_PER_UNIT.get(int(fields["xyzt_units"]) & 7, 1.0)
    require_spacing(tuple((pixdim[1:4] * mm_per_unit).tolist()), str(path))
    qform_code, sform_code = int(fields["qform_code"]), int(fields["sform_code"])
    require_orientation(qform_code, sform_code, str(path))
    ras = np.eye(4)
    ras[:3] = fields["srow"] if sform_code > 0 else _qform(fields, pixdim)
    spacing = np.linalg.norm(ras[:3, :3], axis=0)
    require_spacing(tuple((spacing * mm_per_unit).tolist()), str(path))
    axes = ras[:3, :3] / spacing
    if sform_code > 0:
        other = _qform(fields, pixdim)[:, :3] if qform_code > 0 else axes * pixdim[1:4]
        _require_same_axes(ras[:3, :3], other, path)
    _require_right_angles(axes, path)
    notes = identity_notes(ras)
    ras[:3] *= mm_per_unit
    return LPS_FROM_RAS @ ras, notes


def identity_notes(ras: np.ndarray) -> tuple[str, ...]:
    """Return a note if the affine is what writers put in where they know none: the identity of RAS or LPS."""
    is_unset = np.array_equal(ras, np.eye(4)) or np.array_equal(ras, LPS_FROM_RAS)
    return (IDENTITY_NOTE,) if is_unset else ()


def require_orientation(qform_code: int, sform_code: int, name: str) -> None:
    """Refuse a header that leaves left and right open.

    Raises:
        ValueError: If neither code is positive.
    """
    if qform_code <= 0 and sform_code <= 0:
        raise ValueError(
            f"qform_code or sform_code must be positive, got {qform_code} and {sform_code} in {name}: left "
            "and right are unknown. Set the affine of the scan with nibabel's set_sform(affine, 1)."
        )


def _qform(fields: dict[str, np.ndarray], pixdim: np.ndarray) -> np.ndarray:
    """Return ``(3, 4)`` RAS; nifti1.h, method 2."""
    b, c, d = fields["quatern"].astype(np.float64).tolist()
    a_squared = 1.0 - b * b - c * c - d * d
    a = math.sqrt(a_squared) if a_squared > QUATERNION_EPSILON else 0.0
    rotation = np.array(
        [
            [a * a + b * b - c * c - d * d, 2 * (b * c - a * d), 2 * (b * d + a * c)],
            [2 * (b * c + a * d), a * a + c * c - b * b - d * d, 2 * (c * d - a * b)],
            [2 * (b * d - a * c), 2 * (c * d + a * b), a * a + d * d - b * b - c * c],
        ]
    )
    handedness = -1.0 if pixdim[0] < 0 else 1.0
    axes = rotation * pixdim[1:4] * [1.0, 1.0, handedness]
    return np.column_stack([axes, fields["qoffset"].astype(np.float64)])


def _require_same_axes(sform: np.ndarray, other: np.ndarray, path: Path) -> None:
    if not np.allclose(sform, other, atol=10 * GEOMETRY_TOLERANCE * np.abs(other).max()):
        raise ValueError(
            f"the sform of {path} must describe the same right-angled grid as its qform and pixdim, got "
            f"{sform.round(3).tolist()} and {other.round(3).tolist()}. Resample or re-export the scan."
        )


def _require_right_angles(axes: np.ndarray, path: Path) -> None:
    if not np.allclose(axes.T @ axes, np.eye(3), atol=GEOMETRY_TOLERANCE):
        raise ValueError(
            f"the axes of {path} must be at right angles, got {axes.round(3).tolist()} (sheared). "
            "Resample the scan to a straight grid first."
        )
