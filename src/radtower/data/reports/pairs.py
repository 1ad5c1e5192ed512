"""The pairs table: what contrastive training of the text encoder reads. One row per query.

Columns: ``query``, ``positive``, ``negatives`` and ``negative_kinds`` (lists of equal length, may be empty),
``source`` (corpus/task), ``instruction`` and ``label_key`` (may be null; rows of equal ``label_key`` are no
negatives of each other), ``study_id``, ``split``.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from radtower.data.csv_table import read_csv_table
from radtower.data.manifest import identifier_hash
from radtower.data.splits import Split, check_splits
from radtower.processing.report_text import normalize_report

TEXT_COLUMNS = ("query", "positive", "source", "study_id", "split")
LIST_COLUMNS = ("negatives", "negative_kinds")
OPTIONAL_COLUMNS = ("instruction", "label_key")
COLUMNS = ("query", "positive", *LIST_COLUMNS, "source", *OPTIONAL_COLUMNS, "study_id", "split")


def read_pairs(path: str | Path, split: Split | None = None) -> pd.DataFrame:
    """Read and check a pairs table.

    Args:
        path: parquet; JSONL; or CSV, where the lists are JSON.
        split: Rows to keep. None keeps all.

    Returns:
        The columns above, in that order; lists are Python lists, and null is None.

    Raises:
        ValueError: If the format or a column is unknown, a row has too many or too few fields, a text is
            empty, a list is none, the kinds do not match the negatives, a negative is the positive, a split
            is unknown or empty, or a study is in two splits.
    """
    frame = _read(Path(path))
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise ValueError(
            f"a pairs table must have the columns {', '.join(COLUMNS)}, got no {missing}. "
            "Make one with `radtower reports pairs`."
        )
    rows = {name: list(frame[name]) for name in COLUMNS}
    for name in LIST_COLUMNS:
        rows[name] = [_as_list(name, cell, row) for row, cell in enumerate(rows[name])]
    for name in OPTIONAL_COLUMNS:
        rows[name] = [None if _is_null(cell) else str(cell) for cell in rows[name]]
    for name in TEXT_COLUMNS:
        _check_filled(name, rows[name])
    # object columns: pandas would turn None into NaN
    pairs = pd.DataFrame({name: pd.Series(cells, dtype=object) for name, cells in rows.items()})
    _check_negatives(pairs)
    _check_splits(pairs)
    if split is None:
        return pairs
    kept = pairs[pairs["split"] == split].reset_index(drop=True)
    if kept.empty:
        found = sorted(pairs["split"].unique())
        raise ValueError(f"split must be one of {', '.join(found)} in these pairs, got {split!r}.")
    return kept


def read_several_pairs(paths: Sequence[str | Path], split: Split) -> pd.DataFrame:
    """Read several tables as one; a study is known by its corpus, the first part of ``source``, and its id.

    Args:
        paths: See :func:`read_pairs`.
        split: Rows to keep; every table must have some.

    Raises:
        ValueError: If a table comes twice, or a study is in two splits of different tables.
    """
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError(f"pairs must name a table once, got {[path.name for path in resolved]}. Drop one.")
    kept = pd.concat([read_pairs(path, split) for path in resolved], ignore_index=True)
    everything = pd.concat([read_pairs(path) for path in resolved], ignore_index=True)
    corpora = everything["source"].str.split("/").str[0]
    _check_splits(everything.assign(study_id=corpora + "/" + everything["study_id"]))
    return kept


def write_pairs(pairs: pd.DataFrame, path: str | Path) -> None:
    """Write a pairs table, its folder included; see :func:`read_pairs`.

    Raises:
        ValueError: If the format is unknown.
    """
    path = Path(path)
    _check_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".parquet":
        pairs.to_parquet(path, index=False)
    elif path.suffix == ".jsonl":
        pairs.to_json(path, orient="records", lines=True, force_ascii=False)
    else:
        lists = {name: pairs[name].map(lambda cell: json.dumps(list(cell))) for name in LIST_COLUMNS}
        pairs.assign(**lists).to_csv(path, index=False)


def _read(path: Path) -> pd.DataFrame:
    _check_suffix(path)
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    if path.suffix == ".jsonl":
        return pd.read_json(path, orient="records", lines=True, dtype=False)
    frame = read_csv_table(path)
    for name in {*LIST_COLUMNS} & set(frame):
        frame[name] = [_parsed(cell) for cell in frame[name]]
    return frame


def _parsed(cell: Any) -> Any:
    try:
        return json.loads(cell)
    except (TypeError, ValueError):
        return cell  # refused with its row by _as_list


def _as_list(name: str, cell: Any, row: int) -> list[str]:
    if isinstance(cell, str) or not hasattr(cell, "__iter__"):
        raise ValueError(
            f"{name} must be a list of texts, got {type(cell).__name__} at row {row}. Write [] for none."
        )
    texts = list(cell)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{name} must hold texts, got an empty one or another type at row {row}. Drop it.")
    return texts


def _is_null(cell: Any) -> bool:
    return cell is None or (isinstance(cell, float) and pd.isna(cell)) or cell == ""


def _check_filled(name: str, cells: Sequence[Any]) -> None:
    for row, cell in enumerate(cells):
        if not isinstance(cell, str) or not cell.strip():
            kind = "an empty one" if isinstance(cell, str) or _is_null(cell) else type(cell).__name__
            raise ValueError(f"{name} must be a text in every row, got {kind} at row {row}. Drop the row.")


def _check_negatives(pairs: pd.DataFrame) -> None:
    columns = zip(pairs["positive"], pairs["negatives"], pairs["negative_kinds"], strict=True)
    for row, (positive, negatives, kinds) in enumerate(columns):
        if len(negatives) != len(kinds):
            raise ValueError(
                f"negative_kinds must name every negative, got {len(kinds)} for {len(negatives)} at row "
                f"{row}. Write 'other' where there is no name."
            )
        if normalize_report(positive) in {normalize_report(negative) for negative in negatives}:
            raise ValueError(f"negatives must differ from the positive, got the same at row {row}. Drop it.")


def _check_splits(pairs: pd.DataFrame) -> None:
    check_splits(pairs["split"])
    num_splits = pairs.groupby("study_id")["split"].nunique()
    leaking = num_splits[num_splits > 1]
    if len(leaking):
        raise ValueError(
            f"a study must be in one split, got {len(leaking)} in several, first "
            f"{identifier_hash(str(leaking.index[0]))}. Split before pairing."
        )


def _check_suffix(path: Path) -> None:
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(
            f"path must end in .parquet, .jsonl or .csv, got {path.suffix!r}. Convert the table."
        )
