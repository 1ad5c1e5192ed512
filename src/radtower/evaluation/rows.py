"""The rows behind the numbers of a ``results.json``: scores of items, and outcomes of queries.

They lie beside it as parquet, ``results.scores.parquet`` and ``results.queries.parquet``. Curves are drawn
from them, and two models are compared on them, row by row. They name patients: an export leaves them at home.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.results import Results, file_name

_WHERE = ("dataset", "class_set", "label_source", "protocol")
SCORE_COLUMNS = (*_WHERE, "item_id", "patient_id", "finding", "score", "label")
QUERY_COLUMNS = (*_WHERE, "direction", "query_id", "patient_id", "metric", "value")
_NUMBERS = ("score", "label", "value")
_OF_RESULTS = ("model_id", "created")  # in the metadata: rows of another run are refused


_Rows = TypeVar("_Rows", "ScoreRows", "QueryRows")


@dataclass(frozen=True)
class ScoreRows:
    """One row per item and finding; the first columns are those of the ``Provenance`` of the metric.

    ``frame`` has the columns of ``SCORE_COLUMNS``. ``item_id`` is a volume, or a study where volumes are
    averaged. ``score`` is higher where the finding is likelier; ``label`` is 0, 1, or -100 where unknown.
    ``protocol`` names the read-out (prompt family, linear probe).
    """

    frame: pd.DataFrame

    def __post_init__(self) -> None:
        _check(self.frame, SCORE_COLUMNS)
        invalid = sorted(set(self.frame["label"]) - {0.0, 1.0, MASKED_TARGET})
        if invalid:
            raise ValueError(
                f"label must be 0, 1 or -100, got {invalid[:5]}. Mask what is neither with -100."
            )


@dataclass(frozen=True)
class QueryRows:
    """One row per query and metric.

    ``frame`` has the columns of ``QUERY_COLUMNS``. ``metric`` is ``rank`` of the best right answer (1 is
    first), or one that is averaged over queries (``map_at_50``); ``protocol`` says what counts as right.
    """

    frame: pd.DataFrame

    def __post_init__(self) -> None:
        _check(self.frame, QUERY_COLUMNS)


def scores_path(results: str | Path) -> Path:
    """Return where the scores behind a ``results.json`` lie."""
    return Path(results).with_suffix(".scores.parquet")


def queries_path(results: str | Path) -> Path:
    """Return where the query outcomes behind a ``results.json`` lie."""
    return Path(results).with_suffix(".queries.parquet")


def write_rows(rows: ScoreRows | QueryRows, results: Results, path: str | Path) -> Path:
    """Write rows beside the ``results.json`` at ``path``, atomically, with their name and time."""
    target = (scores_path if isinstance(rows, ScoreRows) else queries_path)(path)
    frame = rows.frame.astype({name: "category" for name in rows.frame if name not in _NUMBERS})
    table = pa.Table.from_pandas(frame, preserve_index=False)
    told = {name.encode(): str(getattr(results, name)).encode() for name in _OF_RESULTS}
    table = table.replace_schema_metadata({**(table.schema.metadata or {}), **told})
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent) as folder:
        temporary = Path(folder) / target.name
        pq.write_table(table, temporary, compression="zstd")
        temporary.chmod(0o600)  # it names patients
        temporary.replace(target)
    return target


def read_score_rows(results: Results, path: str | Path) -> ScoreRows:
    """Read the scores beside the ``results.json`` at ``path``.

    Raises:
        FileNotFoundError: If there are none.
        ValueError: If they are of another run, or a column is missing; the message names the file.
    """
    return _of_file(ScoreRows, scores_path(path), results)


def read_query_rows(results: Results, path: str | Path) -> QueryRows:
    """Read the query outcomes beside the ``results.json`` at ``path``; see :func:`read_score_rows`."""
    return _of_file(QueryRows, queries_path(path), results)


def _of_file(kind: Callable[[pd.DataFrame], _Rows], path: Path, results: Results) -> _Rows:
    frame = _read(results, path)
    try:
        return kind(frame)
    except ValueError as error:
        raise ValueError(f"{file_name(path)}: {error} Evaluate again.") from error


def _read(results: Results, path: Path) -> pd.DataFrame:
    if not path.is_file():
        raise FileNotFoundError(
            f"{file_name(path)} must lie beside the results, got no such file. Evaluate again."
        )
    try:
        table = pq.read_table(path)
    except pa.ArrowInvalid as error:
        raise ValueError(
            f"{file_name(path)} must be a parquet file, got something else. Evaluate again."
        ) from error
    metadata = table.schema.metadata or {}
    for name in _OF_RESULTS:
        found, wanted = metadata.get(name.encode(), b"").decode(), str(getattr(results, name))
        if found != wanted:
            raise ValueError(
                f"{file_name(path)} must be of the results beside it, got {name} {found!r} where they say "
                f"{wanted!r}. Evaluate again."
            )
    frame = table.to_pandas()
    return frame.astype({name: object for name in frame if name not in _NUMBERS})


def _check(frame: pd.DataFrame, columns: tuple[str, ...]) -> None:
    if tuple(frame.columns) != columns:
        missing = [name for name in columns if name not in frame]
        what = f"no {', '.join(missing)}" if missing else f"{', '.join(map(str, frame.columns))}"
        raise ValueError(f"rows must have the columns {', '.join(columns)}, got {what}.")
    for name in set(columns) & set(_NUMBERS):
        if frame[name].isna().any():
            raise ValueError(
                f"{name} must be a number in every row, got {int(frame[name].isna().sum())} missing. "
                "Leave out rows without one."
            )
