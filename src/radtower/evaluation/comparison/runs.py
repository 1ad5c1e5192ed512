"""One evaluated model: its ``results.json`` and, where they lie beside it, the rows behind the numbers."""

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from radtower.evaluation.results import MetricResult, Results, read_results
from radtower.evaluation.rows import read_query_rows, read_score_rows

WHERE = ("dataset", "class_set", "label_source", "protocol")
_IDENTITY = (*WHERE, "threshold_source", "metric", "finding", "direction")
Identity = tuple[str | None, ...]


@dataclass(frozen=True)
class Run:
    """Results with their rows; None where there are none."""

    results: Results
    scores: pd.DataFrame | None
    queries: pd.DataFrame | None

    def metrics(self) -> dict[Identity, MetricResult]:
        """Return the metrics of the model itself by what they were measured on, in order.

        Differences to a baseline, which ``radtower evaluate text`` writes, are left out.
        """
        return {
            tuple(getattr(item, name) for name in _IDENTITY): item
            for item in self.results.metrics
            if not item.metric.endswith("_difference")
        }


def read_run(path: str | Path) -> Run:
    """Read a ``results.json`` with what lies beside it.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not valid, or rows beside it are of another run.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"results must be a file, got no {Path(path).name} there. Evaluate a model.")
    results = read_results(path)
    frames: list[pd.DataFrame | None] = []
    for read in (read_score_rows, read_query_rows):
        try:
            frames.append(read(results, path).frame)
        except FileNotFoundError:
            frames.append(None)
    return Run(results, *frames)


def rows_of(frame: pd.DataFrame, where: MetricResult) -> pd.DataFrame:
    """Return the rows that a metric was measured on."""
    is_it = pd.Series(True, index=frame.index)
    for name in (*WHERE, "direction"):
        if name in frame:
            wanted = getattr(where, name)
            is_it &= frame[name].isna() if wanted is None else frame[name] == wanted
    return frame[is_it]
