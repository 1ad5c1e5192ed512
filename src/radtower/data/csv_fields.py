"""The number of fields in the rows of a CSV table: pandas takes too many of them in silence.

With ``usecols`` it drops what is behind an unquoted comma; with one more field in every row it takes the
first column for an index, and each column gets the cells of its neighbor.
"""

import csv
from pathlib import Path


def check_csv_fields(path: Path) -> None:
    """Refuse a CSV table with a row of more fields than its header; reads it once, row by row.

    A shorter row passes: its last cells are empty. The message holds no cell.

    Args:
        path: The table. Blank lines do not count.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row has more fields than the header, or a field is too long to be one.
    """
    # What is no UTF-8 is for the reader of the cells to refuse.
    with path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
        lines = csv.reader(file)
        num_columns, position = 0, -1  # the header is no row
        try:
            for fields in lines:
                if len(fields) <= 1 and not "".join(fields).strip():
                    continue
                num_columns = num_columns or len(fields)
                if len(fields) > num_columns:
                    raise ValueError(
                        f"every row of {path.name} must have as many fields as its header, {num_columns}, "
                        f"got {len(fields)} in row {position} (line {lines.line_num}). Put text that holds a "
                        "comma in double quotes."
                    )
                position += 1
        except csv.Error as error:
            raise ValueError(
                f"a field of {path.name} must have at most {csv.field_size_limit()} characters, got a longer "
                f"one in row {position}. Close the quote that opens it."
            ) from error
