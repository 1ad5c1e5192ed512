"""Studies whose report says nothing: a manifest may hold some, and no text tower can read them."""

import hashlib
from collections.abc import Callable

import pandas as pd

from radtower.processing.report_text import normalize_report


def with_reports(studies: pd.DataFrame, on_note: Callable[[str], None]) -> pd.DataFrame:
    """Leave the studies out whose report is empty, and say which they are.

    Args:
        studies: Rows of a manifest, with ``volume_id`` and ``report``.
        on_note: Takes a line for all that are left out, and one for each: a hash, as an id may be a name.

    Raises:
        ValueError: If none is left.
    """
    is_empty = studies["report"].map(lambda report: not normalize_report(report)).astype(bool)
    if is_empty.all():
        raise ValueError(
            f"at least one study must have a report, got {len(studies)} readable ones without. "
            "Fill the column report of the manifest."
        )
    if is_empty.any():
        on_note(f"{is_empty.sum()} of {len(studies)} studies are left out: their report is empty.")
    for volume_id in studies.loc[is_empty, "volume_id"]:
        on_note(f"  volume (sha256 {hashlib.sha256(str(volume_id).encode()).hexdigest()[:12]})")
    return studies[~is_empty]
