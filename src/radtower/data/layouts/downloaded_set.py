"""What the layouts of public data sets have in common: the result, and tables keyed by scan."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from radtower.data.csv_table import read_csv_table
from radtower.data.manifest import Manifest, identifier_hash


@dataclass(frozen=True)
class DownloadedSet:
    """A data set on disk, as a manifest, and what was left out of it.

    Attributes:
        manifest: One row per scan that is on disk and not excluded.
        num_excluded: Scans on disk that an exclusion list names.
        num_not_downloaded: Scans of the tables that are not on disk.
        exclusion_lists: Names of the lists that were read.
        not_downloaded: File names of the latter, where the tables say them.
    """

    manifest: Manifest
    num_excluded: int
    num_not_downloaded: int
    exclusion_lists: tuple[str, ...]
    not_downloaded: tuple[str, ...] = ()


def read_columns(path: Path, key: str, columns: Iterable[str]) -> pd.DataFrame:
    """Read some columns of a CSV table as text, indexed by ``key``; only the empty cell is missing.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a column is missing, a row has too many or too few fields, or ``key`` is empty or
            repeated.
    """
    wanted = [key, *columns]
    if not path.is_file():
        raise FileNotFoundError(f"{path.name} must exist, got none at {path}. Download the table, too.")
    frame = read_csv_table(path, wanted)
    missing = [name for name in wanted if name not in frame]
    if missing:
        raise ValueError(f"{path.name} must have {len(wanted)} columns, got no {missing}. Download it again.")
    is_bad = frame[key].isna() | frame[key].duplicated()
    if is_bad.any():
        raise ValueError(
            f"{key} must be filled and unique in {path.name}, got {int(is_bad.sum())} rows that are not, "
            f"first row {int(is_bad.to_numpy().argmax())}. Download it again."
        )
    return frame.set_index(key)


def rows_of(table: pd.DataFrame, scan_ids: list[str], name: str) -> pd.DataFrame:
    """Return the rows of the scans, in their order.

    Raises:
        ValueError: If a scan has none.
    """
    unknown = [scan_id for scan_id in scan_ids if scan_id not in table.index]
    if unknown:
        raise ValueError(
            f"{name} must have a row for every scan on disk, got none for {len(unknown)}, such as "
            f"sha256 {identifier_hash(unknown[0])}. Use tables and scans of one release."
        )
    return table.loc[scan_ids]
