"""A table of reports that is no manifest: ids and texts, streamed from CSV, JSONL, parquet or the Hub."""

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from datasets import DatasetBuilder, IterableDataset, load_dataset_builder

from radtower.data.csv_table import check_csv_fields, csv_columns, stream_csv_table
from radtower.data.jsonl_table import check_unicode, jsonl_rows

HUB_PREFIX = "hf:"
_ROWS_AT_ONCE = 500


class ReportStream:
    """Report ids and texts of a table; every ``for`` reads it from the top, a few hundred rows at a time.

    Args:
        source: CSV, JSONL (``.jsonl``) or parquet file; or ``hf:NAME``, ``hf:NAME:SPLIT`` or
            ``hf:NAME:CONFIG:SPLIT`` for a data set of the Hub or a folder of one. Without a split: ``train``.
        id_column: Column of ids.
        text_column: Column of texts; an empty cell is an empty text.

    Raises:
        FileNotFoundError: If there is no such file or data set.
        ValueError: If the format or a column is unknown, or a row of a CSV table has too many or too few
            fields; while reading, if a row has no id, something else than text in its text column, or
            half a character.
    """

    def __init__(self, source: str | Path, id_column: str, text_column: str) -> None:
        self.source = str(source)
        self.id_column = id_column
        self.text_column = text_column
        columns = _columns(self.source)
        if columns is not None:
            self._check_columns(columns, 0)

    def __iter__(self) -> Iterator[tuple[str, str]]:
        for position, row in enumerate(_rows(self.source, (self.id_column, self.text_column))):
            self._check_columns(list(row), position)
            report_id, text = row[self.id_column], row[self.text_column]
            # A float was made of what somebody wrote: "007" would have become 7.0.
            if report_id == "" or not isinstance(report_id, str | int):
                kind = "none" if report_id is None or report_id == "" else f"a {type(report_id).__name__}"
                raise ValueError(
                    f"{self.id_column} must be text or a whole number, got {kind} in row {position}. "
                    "Give each report an id."
                )
            if text is not None and not isinstance(text, str):
                raise ValueError(
                    f"{self.text_column} must be text, got a {type(text).__name__} in row {position}. "
                    "Name the column of the reports."
                )
            check_unicode(self.id_column, str(report_id), position)
            check_unicode(self.text_column, text or "", position)
            yield str(report_id), text or ""

    def _check_columns(self, columns: list[str], position: int) -> None:
        """Refuse a table without them. Their names stay unsaid: without a header, the first report is one."""
        missing = [name for name in (self.id_column, self.text_column) if name not in columns]
        if missing:
            raise ValueError(
                f"the table must have the columns {self.id_column} and {self.text_column}, got no {missing} "
                f"among {len(columns)} columns in row {position}. Name the columns of your table; the first "
                "line of a CSV file must hold their names."
            )


def read_reports(
    source: str | Path, id_column: str, text_column: str, limit: int | None = None
) -> list[tuple[str, str]]:
    """Read report ids and texts into memory.

    Args:
        source: As in ``ReportStream``.
        id_column: Column of ids, which must be unique.
        text_column: Column of texts; an empty cell is an empty text.
        limit: Rows to read from the top. None reads all.

    Raises:
        FileNotFoundError: If there is no such file or data set.
        ValueError: If the format or a column is unknown, or an id is missing or comes twice.
    """
    reports = list(islice(ReportStream(source, id_column, text_column), limit))
    num_repeated = len(reports) - len({report_id for report_id, _ in reports})
    if num_repeated:
        raise ValueError(
            f"{id_column} must be unique, got {num_repeated} repeats. Give each report its own id."
        )
    return reports


def _columns(source: str) -> list[str] | None:
    """Names of the columns; None where only reading tells."""
    if source.startswith(HUB_PREFIX):
        features = _hub_set(source, ()).features
        return None if features is None else list(features)
    path = Path(source)
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        raise ValueError(
            f"source must end in .csv, .jsonl or .parquet, or begin with {HUB_PREFIX}, got {path.suffix!r}. "
            "Convert the table."
        )
    if not path.is_file():
        raise FileNotFoundError(
            f"source must be an existing file, got {source!r}. Correct the path; a data set of the Hub is "
            f"written {HUB_PREFIX}NAME."
        )
    if path.suffix == ".parquet":
        return pq.read_schema(path).names
    if path.suffix == ".csv":
        return csv_columns(path)  # checks every row, before a label is paid for
    return list(next(jsonl_rows(path), {}))


def _rows(source: str, columns: Sequence[str]) -> Iterator[Mapping[Any, Any]]:
    if source.startswith(HUB_PREFIX):
        return _hub_rows(source, columns)
    path = Path(source)
    if path.suffix == ".jsonl":
        return jsonl_rows(path)
    return _parquet_rows(path, columns) if path.suffix == ".parquet" else _csv_rows(path, columns)


def _csv_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[Any, Any]]:
    for chunk in stream_csv_table(path, columns, _ROWS_AT_ONCE):
        yield from chunk.fillna("").to_dict("records")


def _parquet_rows(path: Path, columns: Sequence[str]) -> Iterator[Mapping[Any, Any]]:
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(batch_size=_ROWS_AT_ONCE, columns=list(columns)):
            yield from batch.to_pylist()


def _hub_rows(source: str, columns: Sequence[str]) -> Iterator[Mapping[Any, Any]]:
    rows = _hub_set(source, columns)
    yield from rows if rows.features is None else rows.select_columns(list(columns))


def _hub_set(source: str, columns: Sequence[str]) -> IterableDataset:
    name, *rest = source.removeprefix(HUB_PREFIX).split(":")
    if not name or len(rest) > 2:
        raise ValueError(
            f"source must be {HUB_PREFIX}NAME, {HUB_PREFIX}NAME:SPLIT or {HUB_PREFIX}NAME:CONFIG:SPLIT, "
            f"got {source!r}. Take the colons out."
        )
    split = rest[-1] if rest else "train"
    config = rest[0] if len(rest) == 2 else None
    builder = load_dataset_builder(name, config)
    if builder.name == "csv":
        if not columns:  # before a label is paid for, and not again for every reading
            _check_local_csv(builder, split)
        # Else ids such as 007 would be read as numbers, and NA as nothing.
        options = {"converters": dict.fromkeys(columns, str), "keep_default_na": False}
        builder = load_dataset_builder(name, config, **options)
    return builder.as_streaming_dataset(split)


def _check_local_csv(builder: DatasetBuilder, split: str) -> None:
    """Check the CSV files of a folder; those of the Hub would be downloaded twice."""
    config: Any = builder.config
    if config.sep != "," or config.skiprows is not None:
        return
    for path in map(Path, (config.data_files or {}).get(split, ())):
        if path.suffix == ".csv" and path.is_file():
            check_csv_fields(path)
