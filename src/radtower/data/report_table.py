"""A table of reports that is no manifest: ids and texts, read from CSV or parquet."""

from pathlib import Path

import pandas as pd


def read_reports(
    path: str | Path, id_column: str, text_column: str, limit: int | None = None
) -> list[tuple[str, str]]:
    """Read report ids and texts.

    Args:
        path: CSV or parquet.
        id_column: Column of ids, which must be unique.
        text_column: Column of texts; an empty cell is an empty text.
        limit: Rows to read from the top. None reads all.

    Raises:
        ValueError: If the format or a column is unknown, or an id comes twice.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        frame = pd.read_parquet(path)
    elif path.suffix == ".csv":
        frame = pd.read_csv(path, dtype=str, keep_default_na=False)
    else:
        raise ValueError(f"path must end in .csv or .parquet, got {path.suffix!r}. Convert the table.")
    missing = [name for name in (id_column, text_column) if name not in frame]
    if missing:
        raise ValueError(
            f"the table must have the columns {id_column} and {text_column}, got no {missing} among "
            f"{list(frame.columns)}. Name the columns of your table."
        )
    frame = frame.head(limit) if limit is not None else frame
    num_repeated = int(frame[id_column].duplicated().sum())
    if num_repeated:
        raise ValueError(
            f"{id_column} must be unique, got {num_repeated} repeats. Give each report its own id."
        )
    return list(zip(frame[id_column].astype(str), frame[text_column].fillna("").astype(str), strict=True))
