"""Settings of the CT image processor: their names, and what they may be. Triples are (Z, Y, X)."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from transformers.processing_utils import ImagesKwargs

Triple = tuple[float, float, float]
ORIENTATIONS = ("LPS", "RAS")
CROPS = ("center", "lung")
MAX_SPACING_MM = 50.0  # the thickest slices ever used are 10 mm; more is another unit
CT_RANGE_HU = (-1024.0, 30_710.0)  # 12-bit CT begins at -1024; the extended scale for metal ends at 30710


class CT3DImageProcessorKwargs(ImagesKwargs, total=False):
    """Settings that ``from_pretrained`` may override, ``size`` among them; others would skip ``__init__``."""

    spacing_mm: Triple
    windows_hu: tuple[tuple[float, float], ...]
    fill_hu: float
    orientation: str
    antialias: bool
    crop: str
    cache_size: tuple[int, int, int] | None


# The names that it inherits are of pictures, all but one.
OWN_SETTINGS = (
    "spacing_mm",
    "size",
    "windows_hu",
    "fill_hu",
    "orientation",
    "antialias",
    "crop",
    "cache_size",
)


def refuse_foreign_settings(settings: Mapping[str, Any]) -> None:
    """Refuse what a scan has no use for.

    Raises:
        TypeError: If nobody knows a setting.
        ValueError: If it is one of pictures, such as ``do_resize``.
    """
    for name, value in settings.items():
        if name in OWN_SETTINGS:
            continue
        if name in ImagesKwargs.__annotations__:
            raise ValueError(
                f"{name} must be left out, got {value!r}: it is a setting of pictures. Scans have "
                f"{', '.join(OWN_SETTINGS)}."
            )
        raise TypeError(f"settings must be among {', '.join(OWN_SETTINGS)}, got {name}. Leave it out.")


def checked_spacing(name: str, spacing_mm: Sequence[float]) -> Triple:
    """Return millimeters (Z, Y, X), each > 0.

    Raises:
        ValueError: If they are not, or too large for millimeters.
    """
    values = tuple(float(value) for value in spacing_mm)
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(
            f"{name} must be 3 positive millimeters (Z, Y, X), got {values}. Read them from the image header."
        )
    if max(values) > MAX_SPACING_MM:
        raise ValueError(
            f"{name} must be at most {MAX_SPACING_MM:g} mm, got {values}. Convert it to millimeters."
        )
    return values[0], values[1], values[2]


def checked_size(name: str, size: Sequence[int]) -> tuple[int, int, int]:
    """Return numbers of voxels (Z, Y, X), each > 0.

    Raises:
        ValueError: If they are not.
    """
    values = tuple(size)
    if len(values) != 3 or not all(isinstance(value, int) and value > 0 for value in values):
        raise ValueError(
            f"{name} must be 3 positive whole numbers (Z, Y, X), got {values}. Use (96, 192, 192)."
        )
    return values[0], values[1], values[2]


def checked_cache_size(cache_size: Sequence[int], size: tuple[int, int, int]) -> tuple[int, int, int]:
    """Return voxels (Z, Y, X) in the middle of which ``size`` lies on the same grid.

    Raises:
        ValueError: If it does not.
    """
    values = checked_size("cache_size", cache_size)
    margins = [kept - cropped for kept, cropped in zip(values, size, strict=True)]
    if min(margins) < 0 or any(margin % 2 for margin in margins):
        raise ValueError(
            f"cache_size must exceed size {size} by an even number of voxels on each axis, or equal it, got "
            f"{values}. Add the same margin on both sides."
        )
    return values


def checked_windows(windows_hu: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    """Return (low, high) in HU of each channel.

    Raises:
        ValueError: If there is none, or low is not below high.
    """
    if not windows_hu:
        raise ValueError("windows_hu must hold at least one (low, high), got none. Use [[-1000, 200]].")
    for window in windows_hu:
        if len(window) != 2 or not all(map(math.isfinite, window)) or not window[0] < window[1]:
            raise ValueError(
                f"windows_hu must be (low, high) pairs with low < high, got {tuple(window)}. Swap or add one."
            )
    return tuple((float(low), float(high)) for low, high in windows_hu)


def checked_orientation(orientation: str) -> str:
    """Return where the axes point to.

    Raises:
        ValueError: If the name is unknown.
    """
    if orientation not in ORIENTATIONS:
        raise ValueError(
            f"orientation must be one of {ORIENTATIONS}, got {orientation!r}. Reorient the volume first."
        )
    return orientation
