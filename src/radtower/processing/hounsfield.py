"""Decide which reading of stored voxels is in Hounsfield units, and turn padding into air.

The rescale slope and intercept must have been applied exactly once. Headers and tables lie about it, so the
values decide: a scan of a body has air near -1000 and tissue near 0, in whatever format.
"""

from typing import NamedTuple

import numpy as np

from radtower.processing.reading.stored_scan import AS_STORED, Reading

AIR_HU = -1000
LOWEST_HU = -1024  # of 12-bit CT: stored 0 with the usual intercept
LARGEST_HU = 100_000  # extended CT scales end near 65,000
AIR_SEEN_BELOW_HU = -200  # fat ends at about -150
# Of the voxels that are not padding. Cropped abdomens have least air; overshoot of a filter is rarer.
MIN_AIR_FRACTION = 2e-4
TISSUE_SEEN_ABOVE_HU = -500
MIN_TISSUE_FRACTION = 0.01
# Below noise and overshoot. Resampling blurs padding into a thin rim; a second rescale moves whole organs.
PADDING_BELOW_HU, MAX_BLURRED_PADDING = -1500, 0.05
# Where the peak below fat lies, outer air or lung; a peak holds that share of them within its half width.
AIR_PEAK_HU, MIN_PEAK_SHARE, PEAK_HALF_WIDTH_HU, PEAK_BIN_HU = (-1150, -600), 0.3, 50, 8
MIN_PEAK_FRACTION = 0.05  # of the scan: a little bowel gas says nothing
NUM_JUDGED = 1 << 20  # voxels; more do not change a fraction


class _Values(NamedTuple):
    """A regular sample of the voxels and the exact range of all of them."""

    sample: np.ndarray  # (N,)
    low: float
    high: float

    def under(self, reading: Reading) -> "_Values":
        slope, intercept, _ = reading
        low, high = sorted(
            (self.low * slope + intercept, self.high * slope + intercept)
        )  # a slope may be < 0
        return _Values(self.sample * slope + intercept, low, high)


def to_hounsfield(
    values: np.ndarray, name: str, readings: tuple[Reading, ...] = (AS_STORED,)
) -> tuple[np.ndarray, str, tuple[str, ...]]:
    """Return Hounsfield units as int16 (float32 where not whole), how they came about, and notes.

    The first reading whose values are plausible is taken, padding is set to air, and what lies below air
    (noise, overshoot of an interpolation) is clipped, the latter without a note: it carries nothing.

    Args:
        values: Any shape, as the reader gives them; may be changed, for a copy is a second scan in memory.
        name: What messages call the scan; must not identify a patient.
        readings: What the values can mean, likeliest first.

    Raises:
        TypeError: If the dtype is 8-bit, complex or not numeric.
        ValueError: If a voxel is not finite, or no reading gives Hounsfield units.
    """
    if values.dtype.kind not in "iuf" or values.dtype.itemsize == 1:
        raise TypeError(
            f"{name} must hold 16-bit or float voxels, got {values.dtype}, too narrow for Hounsfield units. "
            "Pass the scan itself, not a mask or an exported picture."
        )
    low, high = values.min(), values.max()
    if not np.isfinite([low, high]).all():
        raise ValueError(
            f"{name} must be finite, got {low} to {high}. Set voxels outside the scan to {AIR_HU}."
        )
    step = max(1, values.size // NUM_JUDGED) | 1  # odd: even steps meet the same columns again and again
    sample = values.ravel(order="K")[::step].astype(np.float64)
    judged = _Values(sample, float(low), float(high))
    objections = []
    for reading in readings:
        after = judged.under(reading)
        objection = _objection(after)
        if objection is None:
            array, notes = _converted(values, reading, after)
            return array, reading.words, notes
        objections.append(objection)
    raise ValueError(_refusal(name, objections, readings))


def _objection(values: _Values) -> str | None:
    """Return why the values cannot be Hounsfield units, or None.

    Constant padding outside the field of view says nothing about the scale and is left out.
    """
    scan, low = values.sample, values.low
    if low < PADDING_BELOW_HU:
        scan = scan[scan != low]
    if not scan.size:
        return f"nothing but {low:g}"
    span = f"values from {low:g} to {values.high:g}"
    if max(values.high, -values.low) > LARGEST_HU:
        return f"{span}, beyond {LARGEST_HU}, which no scale of CT reaches"
    low_scan = scan[scan < AIR_SEEN_BELOW_HU]
    if len(low_scan) < max(1, MIN_AIR_FRACTION * scan.size):
        peak = _peak(scan)
        return (
            f"{span}, none of them air; the most common is about {peak:g}, which is air if RescaleIntercept "
            f"{AIR_HU - peak:g} is missing"
        )
    num_deep = np.count_nonzero(low_scan < PADDING_BELOW_HU)
    num_tissue = np.count_nonzero(scan > TISSUE_SEEN_ABOVE_HU)
    peak = _peak(low_scan)
    is_peak = np.mean(np.abs(low_scan - peak) < PEAK_HALF_WIDTH_HU) > MIN_PEAK_SHARE
    is_common = len(low_scan) > MIN_PEAK_FRACTION * scan.size
    is_off = is_peak and is_common and not AIR_PEAK_HU[0] < peak < AIR_PEAK_HU[1]
    if is_off or num_deep > MAX_BLURRED_PADDING * scan.size:
        return f"{span} with the air peak near {peak:g} instead of {AIR_HU}"
    if num_tissue < MIN_TISSUE_FRACTION * scan.size:
        return f"{span} with {num_tissue / scan.size:.2%} of tissue above {TISSUE_SEEN_ABOVE_HU}"
    return None


def _refusal(name: str, objections: list[str], readings: tuple[Reading, ...]) -> str:
    got = objections[0]
    if len(objections) > 1:
        got = "; ".join(
            f"{objection} ({reading.words})" for objection, reading in zip(objections, readings, strict=True)
        )
    return (
        f"{name} must be in Hounsfield units, got {got}. Hand over the rescale that is missing with "
        "ScanReference; if the scan was rescaled twice, windowed or normalized, go back to the original."
    )


def _peak(values: np.ndarray) -> float:
    """Return the most common value, to within a few units."""
    bins = np.floor(values / PEAK_BIN_HU).astype(np.int64)
    first = bins.min()
    return float((np.bincount(bins - first).argmax() + first + 0.5) * PEAK_BIN_HU)


def _converted(values: np.ndarray, reading: Reading, after: _Values) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return Hounsfield units with padding as air, and notes."""
    if (reading.slope, reading.intercept) != (1.0, 0.0):
        # float32 holds every 16-bit value exactly
        is_short = values.dtype.itemsize <= 2 or values.dtype == np.float32
        values = values.astype(np.float32 if is_short else np.float64)
        values *= reading.slope
        values += reading.intercept
    notes: tuple[str, ...] = ()
    if after.low < PADDING_BELOW_HU:
        num_padded = int(np.count_nonzero(values < PADDING_BELOW_HU))
        notes = (
            f"{num_padded} voxels of padding (lowest {after.low:g} HU) set to {LOWEST_HU} HU, which is air",
        )
    if after.low < LOWEST_HU:
        np.maximum(values, LOWEST_HU, out=values)
    return _narrowed(values, after.high), notes


def _narrowed(array: np.ndarray, high: float) -> np.ndarray:
    """Return int16 where every value is whole; slice by slice, for memory and because many are not."""
    if high > np.iinfo(np.int16).max:
        return array.astype(np.float32, copy=False)
    if array.dtype.kind in "iu":
        return array.astype(np.int16, copy=False)
    narrow = np.empty(array.shape, np.int16)
    for part, whole in zip(array, narrow, strict=True):
        whole[...] = part.astype(np.int16)
        if not np.array_equal(part, whole):
            return array.astype(np.float32, copy=False)
    return narrow
