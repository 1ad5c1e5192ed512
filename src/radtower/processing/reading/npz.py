"""Read the npz files of RAD-ChestCT: an array in Hounsfield units and nothing about its geometry."""

import zipfile
import zlib
from pathlib import Path
from typing import IO

import numpy as np

from radtower.processing.reading.stored_scan import (
    StoredScan,
    require_memory,
    require_spacing,
    require_volume,
    truncated,
)

NPZ_KEY, NPY_MEMBER = "ct", "ct.npy"


def read_npz(path: Path, spacing_mm: tuple[float, float, float] | None, memory_limit_gb: float) -> StoredScan:
    """Read the array ``ct`` ``(Z, Y, X)`` of an ``.npz`` file of RAD-ChestCT; nothing is ever unpickled.

    Args:
        path: The file.
        spacing_mm: Voxel size (Z, Y, X), which the file does not state.
        memory_limit_gb: As in ``read_volume``.

    Raises:
        ValueError: If the spacing is missing, the array is not there or not a volume, or the file is damaged.
    """
    if spacing_mm is None:
        raise ValueError(
            f"spacing_mm must be given for an npz file, got None for {path}. Pass "
            "ScanReference(path, spacing_mm=(0.8, 0.8, 0.8)) for RAD-ChestCT."
        )
    if len(spacing_mm) != 3:
        raise ValueError(
            f"spacing_mm must be 3 numbers (Z, Y, X), got {tuple(spacing_mm)} for {path}. "
            "Pass (0.8, 0.8, 0.8) for RAD-ChestCT."
        )
    require_spacing(tuple(spacing_mm[::-1]), "the table")
    try:
        with zipfile.ZipFile(path) as archive:
            if NPY_MEMBER not in archive.namelist():
                raise ValueError(
                    f"{path} must hold the array {NPZ_KEY!r}, got {sorted(archive.namelist())}. "
                    "Save the scan under that key."
                )
            with archive.open(NPY_MEMBER) as member:
                shape, dtype = _read_npy_header(member)
        if dtype.hasobject:
            raise ValueError(
                f"{path} must hold numbers, got Python objects, which are never unpickled. "
                "Save the scan as int16."
            )
        require_volume(shape[::-1], f"the scan {path}")
        require_memory(shape, dtype.itemsize, memory_limit_gb, f"the scan {path}")
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays[NPZ_KEY]
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise truncated(path, str(error)) from error
    note = "an npz file states no orientation: (Z, Y, X) is taken as LPS"
    lps = np.diag([*reversed(spacing_mm), 1.0])
    return StoredScan(values, lps, "npz", f"the scan {path}", notes=(note,))


def _read_npy_header(member: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(member)
    return shape, dtype
