"""A ``results.json`` with what lies beside it: rows of scores and queries, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from radtower.evaluation.reports.figures import Picture, read_pictures
from radtower.evaluation.reports.wording import model_names
from radtower.evaluation.results import Results, read_results
from radtower.evaluation.rows import (
    QueryRows,
    ScoreRows,
    queries_path,
    read_query_rows,
    read_score_rows,
    scores_path,
)


@dataclass(frozen=True)
class Run:
    """One evaluation of one model; what does not lie beside the results is None or empty."""

    name: str
    results: Results
    scores: ScoreRows | None
    queries: QueryRows | None
    pictures: tuple[Picture, ...]


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read results and what lies beside them; runs of one model id are numbered.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no results file, rows or pictures are of another run, or a path comes twice.
    """
    resolved = [Path(path).resolve() for path in paths]
    if len(set(resolved)) < len(resolved):
        raise ValueError("results must be different files, got one of them twice. Name each once.")
    runs = [_read(Path(path)) for path in paths]
    names = model_names([run.results for run in runs])
    return [replace(run, name=name) for run, name in zip(runs, names, strict=True)]


def _read(path: Path) -> Run:
    if not path.is_file():
        raise FileNotFoundError(f"results must be a file that radtower evaluate wrote, got {path.name}.")
    results = read_results(path)
    return Run(
        results.model_id,
        results,
        read_score_rows(results, path) if scores_path(path).is_file() else None,
        read_query_rows(results, path) if queries_path(path).is_file() else None,
        tuple(read_pictures(results, path)),
    )
