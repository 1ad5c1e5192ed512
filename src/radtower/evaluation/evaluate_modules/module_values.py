"""Lists -> arrays, and numbers -> plain Python with None where undefined: the ends of ``evaluate`` modules.

Axes: N rows, M numbers per row.
"""

import math
from collections.abc import Callable, Hashable, Sequence

import numpy as np

from radtower.evaluation.bootstrap import Interval, count_bootstrap, percentile_interval

Values = dict[str, object]


def matrix(name: str, rows: Sequence[Sequence[float]]) -> np.ndarray:
    """Return ``(N, M)`` float64 of N lists.

    Raises:
        ValueError: If there is no row, or rows differ in length or are empty.
    """
    lengths = sorted({len(row) for row in rows})
    if len(lengths) != 1 or lengths[0] == 0:
        raise ValueError(
            f"{name} must be lists of one length above 0, got {len(rows)} of the lengths {lengths[:5]}. Give "
            "every row all its numbers."
        )
    return np.array(rows, dtype=np.float64)


def number(value: float) -> float | None:
    """Return a float, or None for NaN: what is undefined is never 0 or 0.5."""
    return None if math.isnan(value) else float(value)


def with_intervals(
    values: Values,
    names: Sequence[str],
    weighted: Callable[[np.ndarray], np.ndarray],
    patient_ids: Sequence[Hashable] | None,
    num_resamples: int = 2000,
    seed: int = 0,
) -> Values:
    """Add ``NAME_ci`` (low and high, or None) for every name; without patients, return values as they are.

    Args:
        values: By name.
        names: Columns of ``weighted``.
        weighted: Counts ``(R, N)`` of rows -> values ``(R, M)``, NaN where undefined.
        patient_ids: N ids; rows of a patient are drawn together. None gives no intervals.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.
    """
    if patient_ids is None:
        return values
    resampled = count_bootstrap(weighted, patient_ids, num_resamples, seed)
    intervals = [percentile_interval(resampled[:, column], patient_ids) for column in range(len(names))]
    found = {f"{name}_ci": bounds(interval) for name, interval in zip(names, intervals, strict=True)}
    return {**values, **found, **said_of(intervals[0])}


def said_of(interval: Interval) -> Values:
    """Return the level and the method of an interval."""
    return {
        "ci_level": interval.level,
        "ci_method": f"{interval.method}, {interval.num_resamples} resamples",
    }


def bounds(interval: Interval) -> list[float] | None:
    """Return low and high of an interval; None where there is none."""
    if math.isnan(interval.low) or math.isnan(interval.high):
        return None
    return [interval.low, interval.high]


def check_patients(patient_ids: Sequence[Hashable] | None, num_rows: int) -> None:
    """Refuse another number of patients than of rows.

    Raises:
        ValueError: If they differ.
    """
    if patient_ids is not None and len(patient_ids) != num_rows:
        raise ValueError(
            f"patient_ids must have one id per row, got {len(patient_ids)} for {num_rows}. Give them in "
            "the order in which predictions were added."
        )
