"""A CSV table of the user's, read as text; the one place that calls pandas for it.

Cells stay what was written: "007" is not 7, "NA" is a possible patient, and only the empty cell is missing.
pandas takes too many fields in silence: with ``usecols`` it drops what is behind an unquoted comma, and with
one more field in every row it takes the first column for an index, and each column gets the cells of its
neighbor. Too few it fills up with empty cells. So the fields are counted first.
"""

import csv
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pandas as pd

_AS_TEXT: dict[str, Any] = {"dtype": str, "keep_default_na": False, "na_values": [""]}


def read_csv_table(path: str | Path, columns: Collection[str] | None = None) -> pd.DataFrame:
    """Read a CSV table as text; an empty cell is missing (``pd.isna``).

    Args:
        path: The table; its first line holds the names of the columns.
        columns: Columns to read, in the order of the file; one that is not there is left out. None reads all.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: See :func:`check_csv_fields`; or if the file is empty, or no UTF-8.
    """
    check_csv_fields(Path(path))
    usecols = None if columns is None else lambda name: name in columns
    return pd.read_csv(path, usecols=usecols, **_AS_TEXT)


def csv_columns(path: str | Path) -> list[str]:
    """Check a CSV table and return the names of its columns; see :func:`read_csv_table`."""
    check_csv_fields(Path(path))
    return list(pd.read_csv(path, nrows=0, **_AS_TEXT).columns)


def stream_csv_table(path: str | Path, columns: Collection[str], num_rows: int) -> Iterator[pd.DataFrame]:
    """Read a table that :func:`csv_columns` has checked, ``num_rows`` at a time."""
    with pd.read_csv(path, usecols=list(columns), chunksize=num_rows, **_AS_TEXT) as chunks:
        yield from chunks


def check_csv_fields(path: Path) -> None:
    """Refuse a CSV table with a row of more or fewer fields than its header; reads it once, row by row.

    More come from an unquoted comma, fewer from an unquoted line break, which makes the rest of a report
    a row of its own. Few spreadsheets leave out empty cells at the end of a row, and nothing tells such rows
    from those of a broken report. The message holds no cell.

    Args:
        path: The table. Blank lines do not count.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row has another number of fields than the header, or a field is too long to be one.
    """
    # What is no UTF-8 is for the reader of the cells to refuse.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = csv.reader(file)
        num_columns, position, line = 0, -1, 1  # the header is no row
        try:
            for fields in lines:
                if not _is_blank(fields):
                    num_columns = num_columns or len(fields)
                    place = f"row {position} (line {line})"
                    _check_number(path.name, len(fields), num_columns, place)
                    position += 1
                line = lines.line_num + 1  # a row may have several
        except csv.Error as error:
            raise ValueError(
                f"a field of {path.name} must have at most {csv.field_size_limit()} characters, got a longer "
                f"one in row {position}. Close the quote that opens it."
            ) from error


def _check_number(name: str, num_fields: int, num_columns: int, place: str) -> None:
    if num_fields == num_columns:
        return
    advice = (
        "Put text that holds a comma in double quotes."
        if num_fields > num_columns
        else "Put text that holds a line break in double quotes, close every quote, and write the commas of "
        "empty cells at the end of a row, too."
    )
    raise ValueError(
        f"every row of {name} must have as many fields as its header, {num_columns}, got {num_fields} in "
        f"{place}. {advice}"
    )


def _is_blank(fields: list[str]) -> bool:
    """Whether pandas skips the line; a line of two quotes it does not."""
    return not fields or (len(fields) == 1 and fields[0] != "" and not fields[0].strip(" \t"))
