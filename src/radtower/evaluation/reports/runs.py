"""A ``results.json`` with what lies beside it: rows of scores and queries, pictures."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from radtower.evaluation.comparison.runs import read_run
from radtower.evaluation.reports.figures import Picture, read_pictures
from radtower.evaluation.reports.wording import model_names
from radtower.evaluation.results import Results


@dataclass(frozen=True)
class Run:
    """One evaluation of one model; rows and pictures that do not lie beside it are None and empty."""

    name: str
    results: Results
    scores: pd.DataFrame | None
    queries: pd.DataFrame | None
    pictures: tuple[Picture, ...]


def read_runs(paths: Sequence[str | Path]) -> list[Run]:
    """Read results and what lies beside them; runs of one model id are numbered.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a file is no results file, rows or pictures are of another run, or a path comes twice.
    """
    if len({Path(path).resolve() for path in paths}) < len(paths):
        raise ValueError("results must be different files, got one of them twice. Name each once.")
    found = [read_run(path) for path in paths]
    names = model_names([run.results for run in found])
    return [
        Run(name, run.results, run.scores, run.queries, tuple(read_pictures(run.results, path)))
        for name, run, path in zip(names, found, paths, strict=True)
    ]
