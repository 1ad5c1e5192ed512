"""Runs of models whose numbers are known, as files."""

from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from radtower.evaluation.decisions.finding_metrics import decision_results, ranking_results
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.decisions.thresholds import Threshold
from radtower.evaluation.results import Provenance, Results, write_results
from radtower.evaluation.rows import QUERY_COLUMNS, SCORE_COLUMNS, QueryRows, ScoreRows, write_rows

KEYS = ("nodule", "effusion")
SCORED = Provenance(dataset="toy, test", class_set="toy", label_source="drawn", protocol="prompts")
ASKED = SCORED.model_copy(update={"class_set": "none", "label_source": "pairing", "protocol": "exact row"})


def build_sample(skill: float, n: int = 80, **changes) -> FindingScores:
    """Labels are the same for every skill."""
    rng = np.random.default_rng(0)
    labels = (rng.random((n, 2)) < 0.4).astype(float)
    labels[:3, 0] = -100
    scores = rng.normal(size=(n, 2)) + skill * labels + rng.normal(size=(n, 2)) * skill / 2
    return FindingScores(
        **({"scores": scores, "labels": labels, "patient_ids": np.arange(n) // 2, "keys": KEYS} | changes)
    )


def score_rows(sample: FindingScores, provenance: Provenance = SCORED) -> pd.DataFrame:
    columns = sample.scored_columns
    keys = [sample.keys[column] for column in columns]
    num = len(sample.labels)
    frame = pd.DataFrame(
        {
            **provenance.model_dump(exclude={"threshold_source"}),
            "item_id": np.repeat([f"v{row}" for row in range(num)], len(keys)),
            "patient_id": np.repeat([f"p{patient}" for patient in sample.patient_ids], len(keys)),
            "finding": np.tile(keys, num),
            "score": sample.scores[:, columns].ravel(),
            "label": sample.labels[:, columns].ravel(),
        }
    )
    return frame[list(SCORE_COLUMNS)]


def write_run(
    path: Path,
    metrics: list,
    scores: pd.DataFrame | None = None,
    queries: pd.DataFrame | None = None,
    **changes,
) -> Path:
    parts = {"model_id": path.parent.name, "model_revision": None, "phantom": False} | changes
    results = Results(created=datetime.now(UTC), metrics=tuple(metrics), **parts)
    write_results(results, path)
    if scores is not None:
        write_rows(ScoreRows(scores), results, path)
    if queries is not None:
        write_rows(QueryRows(queries[list(QUERY_COLUMNS)]), results, path)
    return path


def write_scored(
    path: Path, sample: FindingScores, cut: float = 0.5, *, has_rows: bool = True, **changes
) -> Path:
    """Ranking metrics, and decisions at one threshold for all findings."""
    metrics = [
        *ranking_results(sample, SCORED, num_resamples=50),
        *decision_results(sample, [Threshold(cut, "by hand")] * 2, SCORED, num_resamples=50),
    ]
    return write_run(path, metrics, score_rows(sample) if has_rows else None, **changes)


@pytest.fixture
def toy() -> SimpleNamespace:
    """The functions above; tests cannot import a conftest."""
    return SimpleNamespace(
        sample=build_sample,
        score_rows=score_rows,
        write_run=write_run,
        write_scored=write_scored,
        scored=SCORED,
        asked=ASKED,
    )
