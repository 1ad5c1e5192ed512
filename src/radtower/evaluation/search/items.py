"""The table beside the vectors: what an item is called, and by what it can be filtered.

Patient ids and paths of files never enter it, report texts only where they are asked for.
"""

import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
import pandas as pd

from radtower.data.targets import MASKED_TARGET

FINDING = "finding"  # a filter by this name is one by a finding
ITEMS_FILE = "items.parquet"
ITEM_ID, STUDY_ID, SPLIT, REPORT_HASH, REPORT = "item_id", "study_id", "split", "report_sha256", "report"


def make_items(
    ids: Sequence[str],
    columns: dict[str, Sequence[str]] | None = None,
    findings: pd.DataFrame | None = None,
) -> pd.DataFrame:
    """Return the table of items.

    Args:
        ids: One per item; no two alike.
        columns: Texts by the name of their column: ``study_id``, ``split``, ``report_sha256``, ``report``, or
            any other to filter by. An empty text is missing.
        findings: One column per finding, of 1, 0 and -100 (unknown).

    Raises:
        ValueError: If an id is empty, repeated or a path of this machine, a column has another length or is
            that of a finding, too, or a label is something else.
    """
    frame = pd.DataFrame({ITEM_ID: [str(item) for item in ids]}, dtype=object)
    _check_ids(frame[ITEM_ID])
    for name, values in (columns or {}).items():
        if name in (FINDING, ITEM_ID):
            raise ValueError(f"a column must not be called {name!r}, which means something else. Rename it.")
        if len(values) != len(frame):
            raise ValueError(f"{name} must have one value per item, {len(frame)}, got {len(values)}.")
        cells = [None if value is None or value == "" else str(value) for value in values]
        frame[name] = pd.Series(cells, dtype=object)
    if findings is None:
        return frame
    taken = sorted(set(findings.columns) & {*frame.columns, FINDING})
    if taken:
        raise ValueError(f"findings must have columns of their own, got {taken} twice. Rename them.")
    labels = findings.to_numpy(dtype=np.float32)
    is_invalid = ~np.isin(labels, (0, 1, MASKED_TARGET))
    if len(labels) != len(frame) or is_invalid.any():
        raise ValueError(
            f"findings must be 0, 1 or -100 for {len(frame)} items, got {len(labels)} rows, and "
            f"{int(is_invalid.sum())} other values."
        )
    known = findings.where(findings != MASKED_TARGET).astype("Int8").reset_index(drop=True)
    return pd.concat([frame, known], axis=1)


def write_items(items: pd.DataFrame, folder: Path) -> None:
    """Write ``items.parquet``."""
    items.to_parquet(folder / ITEMS_FILE, index=False, compression="zstd")
    (folder / ITEMS_FILE).chmod(0o600)  # it names studies, and may hold reports


def read_items(folder: Path, count: int, findings: Sequence[str], *, has_text: bool) -> pd.DataFrame:
    """Read ``items.parquet`` and check it against what ``index.json`` says.

    Raises:
        ValueError: If the number of rows, the columns or the ids are not those of the index.
    """
    items = pd.read_parquet(folder / ITEMS_FILE)
    missing = [name for name in (ITEM_ID, *findings, *((REPORT,) if has_text else ())) if name not in items]
    surplus = [REPORT] if REPORT in items and not has_text else []
    if missing or surplus or len(items) != count:
        raise ValueError(
            f"{ITEMS_FILE} must have {count} rows and the columns of index.json, got {len(items)} rows, "
            f"no {missing}, and {surplus} too much. Build the index again."
        )
    texts: dict[str, pd.Series] = {
        str(name): items[name].astype(object).where(items[name].notna(), None) for name in items
    }
    if SPLIT in texts:  # filters of a million rows by it take no time
        texts[SPLIT] = texts[SPLIT].astype("category")
    return items.assign(**{**texts, **{name: items[name].astype("Int8") for name in findings}})


def present_findings(items: pd.DataFrame, findings: Sequence[str], row: int) -> list[str]:
    """Names of the findings that an item has."""
    cells = items.iloc[row]
    return [name for name in findings if not pd.isna(cells[name]) and cells[name] == 1]


def plain_name(name: str) -> str:
    """A column as a person types it: "Pleural effusion" is ``pleural_effusion``."""
    return re.sub(r"\W+", "_", name.strip().lower()).strip("_")


def _check_ids(ids: pd.Series) -> None:
    if not len(ids):
        raise ValueError("an index must have at least one item, got 0. Embed some first.")
    num_empty = int((ids.str.strip() == "").sum())
    num_repeats = int(ids.duplicated().sum())
    if num_empty or num_repeats:
        raise ValueError(
            f"item ids must be filled and differ, got {num_empty} empty and {num_repeats} repeats. Give each "
            "item its own."
        )
    num_paths = sum(PurePosixPath(i).is_absolute() or PureWindowsPath(i).is_absolute() for i in ids)
    if num_paths:
        raise ValueError(
            f"item ids must not be paths of this machine, got {num_paths}. Embed again, which gives ids "
            "without their folder, or embed a manifest."
        )
