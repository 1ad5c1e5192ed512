"""Decide whether stored voxels are Hounsfield units, and turn padding into air.

The rescale slope and intercept must have been applied exactly once. Files lie about it, so the values decide:
a scan of a body has air near -1000 and tissue near 0, in whatever format.
"""

import numpy as np

AIR_HU = -1000
LOWEST_HU = -1024  # of 12-bit CT: stored 0 with the usual intercept
AIR_SEEN_BELOW_HU = -200  # fat ends at about -150
TISSUE_SEEN_ABOVE_HU = -500
MIN_TISSUE_FRACTION = 0.01
# Below noise and overshoot. Resampling blurs padding into a thin rim; a second rescale moves whole organs.
PADDING_BELOW_HU, MAX_BLURRED_PADDING = -1500, 0.05
PEAK_BIN_HU = 8


def to_hounsfield(array: np.ndarray, name: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """Return ``array`` as int16 (float32 where values are not whole) with padding set to air, and notes.

    Noise of air below -1024 is clipped as well, without a note: it carries nothing.

    Args:
        array: Any shape, values as they are after the reader applied slope and intercept.
        name: What messages call the scan; must not identify a patient.

    Raises:
        TypeError: If the dtype is 8-bit, complex or not numeric.
        ValueError: If a voxel is not finite, or the values cannot be Hounsfield units.
    """
    if array.dtype.kind not in "iuf" or array.dtype.itemsize == 1:
        raise TypeError(
            f"{name} must hold 16-bit or float voxels, got {array.dtype}, too narrow for Hounsfield units. "
            "Pass the scan itself, not a mask or an exported picture."
        )
    low, high = array.min(), array.max()
    if not np.isfinite([low, high]).all():
        raise ValueError(
            f"{name} must be finite, got {low} to {high}. Set voxels outside the scan to {AIR_HU}."
        )
    _require_air_and_tissue(array, name, float(low), float(high))
    notes: tuple[str, ...] = ()
    if low < PADDING_BELOW_HU:
        num_padded = int(np.count_nonzero(array < PADDING_BELOW_HU))
        notes = (f"{num_padded} voxels of padding (lowest {low:g} HU) set to {LOWEST_HU} HU, which is air",)
    if low < LOWEST_HU:
        array = np.maximum(array, LOWEST_HU)
    return _narrowed(array, float(high)), notes


def _require_air_and_tissue(array: np.ndarray, name: str, low: float, high: float) -> None:
    if low > AIR_SEEN_BELOW_HU:
        peak = _peak(array)
        raise ValueError(
            f"{name} must be in Hounsfield units, got values from {low:g} to {high:g}, none of them air; the "
            f"most common is about {peak:g}. If that is air, apply RescaleIntercept {AIR_HU - peak:g} first; "
            "if the scan was windowed or normalized, go back to the original."
        )
    # Constant padding outside the field of view says nothing about the scale.
    scan = array[array != low] if low < PADDING_BELOW_HU else array
    is_deep = scan.size > 0 and np.count_nonzero(scan < PADDING_BELOW_HU) > MAX_BLURRED_PADDING * scan.size
    has_tissue = np.count_nonzero(array > TISSUE_SEEN_ABOVE_HU) >= MIN_TISSUE_FRACTION * array.size
    if is_deep or not has_tissue:
        peak = _peak(scan) if scan.size else low
        raise ValueError(
            f"{name} must be in Hounsfield units, got values from {low:g} to {high:g} with the air peak near "
            f"{peak:g} instead of {AIR_HU}. RescaleIntercept was applied twice, or is wrong; store the scan "
            "again with it applied once."
        )


def _peak(array: np.ndarray) -> float:
    """Return the most common value, to within a few units."""
    bins = np.floor(array[::2].ravel() / PEAK_BIN_HU)
    values, counts = np.unique(bins, return_counts=True)
    return float((values[counts.argmax()] + 0.5) * PEAK_BIN_HU)


def _narrowed(array: np.ndarray, high: float) -> np.ndarray:
    if high <= np.iinfo(np.int16).max:
        whole = array.astype(np.int16)
        if array.dtype.kind in "iu" or np.array_equal(whole, array):
            return whole
    return array.astype(np.float32)
