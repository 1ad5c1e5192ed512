"""Decide which reading of stored voxels is in Hounsfield units, and turn padding into air.

The rescale slope and intercept must have been applied exactly once. Headers and tables lie about it, so the
values decide: a scan of a body has air near -1000 and tissue near 0, in whatever format. What no scan can be
is objected to; of the readings that are left, the one whose values are spread most like those of a body wins.
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
# A value that many voxels share at the bottom is filled in, or air that was clipped; what is left must then
# hold air too, or at least not be dense: bone, contrast and metal stay below that share.
MIN_FILLED_FRACTION, DENSE_ABOVE_HU, MAX_DENSE_FRACTION = 0.02, 700, 0.15
# How likely values are in a body: below air, air and lung, between, soft tissue, contrast and bone, dense.
LIKELIHOOD_EDGES_HU = (-1100, -700, -200, 300, 700)
LOG_LIKELIHOODS = np.log([0.005, 0.25, 0.05, 0.65, 0.035, 0.01])
# Mean of the logarithms. Real scans and random crops of them had -0.5 to -2.4; read wrongly, mostly -2 to -5,
# and more than 0.2 less than the same crop read rightly.
LIKELY, CLEARLY_BETTER = -2.4, 0.2
# With the sign turned, whole scans lose 1.0 or more, and random crops win 0.23 at most.
UPSIDE_DOWN = 0.5
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

    The likeliest of the plausible readings is taken, the first unless another is clearly better; padding is
    set to air, and what lies below air (noise, overshoot of an interpolation) is clipped, the latter without
    a note: it carries nothing.

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
    under = [judged.under(reading) for reading in readings]
    objections = [_objection(after) for after in under]
    plausible = [index for index, objection in enumerate(objections) if objection is None]
    if not plausible:
        raise ValueError(_refusal(name, [words or "" for words in objections], readings))
    likelihoods = {index: _likelihood(under[index]) for index in plausible}
    chosen = plausible[0]
    for index in plausible[1:]:
        if likelihoods[index] > likelihoods[chosen] + CLEARLY_BETTER:
            chosen = index
    array, notes = _converted(values, readings[chosen], under[chosen])
    if likelihoods[chosen] < LIKELY:
        notes = (*notes, "the values are spread unlike those of a body: they may not be in Hounsfield units")
    notes += tuple(
        f"the values fit another reading as well: {readings[index].words}"
        for index in plausible
        if index != chosen
        and under[index].low != under[chosen].low
        and likelihoods[index] > likelihoods[chosen] - CLEARLY_BETTER
    )
    return array, readings[chosen].words, notes


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
    rest = _without_filling(values)
    is_dense = np.mean(rest > DENSE_ABOVE_HU) > MAX_DENSE_FRACTION
    for part, suffix in ((scan, ""), (rest, f" but the constant {low:g}"))[: 2 if is_dense else 1]:
        if np.count_nonzero(part < AIR_SEEN_BELOW_HU) < max(1, MIN_AIR_FRACTION * part.size):
            peak = _peak(part)
            return (
                f"{span}, none of them air{suffix}; the most common is about {peak:g}, which is air if "
                f"RescaleIntercept {AIR_HU - peak:g} is missing"
            )
    low_scan = scan[scan < AIR_SEEN_BELOW_HU]
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
    if _likelihood(_Values(-values.sample, -values.high, -low)) > _likelihood(values) + UPSIDE_DOWN:
        return f"{span}, more like those of a body with the sign turned"
    return None


def _without_filling(values: _Values) -> np.ndarray:
    """Return the sample without the lowest value, where that is padding or air clipped to a constant."""
    rest = values.sample[values.sample != values.low]
    num_filled = len(values.sample) - len(rest)
    is_filled = values.low < PADDING_BELOW_HU or (
        values.low < AIR_SEEN_BELOW_HU and num_filled > MIN_FILLED_FRACTION * len(values.sample)
    )
    return rest if is_filled and len(rest) else values.sample


def _likelihood(values: _Values) -> float:
    """Return the mean logarithm of how likely the values are in a body; always negative."""
    scan = _without_filling(values)
    below = [0, *(int(np.count_nonzero(scan < edge)) for edge in LIKELIHOOD_EDGES_HU), len(scan)]
    return float(np.diff(below) / len(scan) @ LOG_LIKELIHOODS)


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
