from datetime import UTC, datetime
from functools import partial
from io import BytesIO

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from radtower.evaluation.reports.figures import Caption, Picture, write_pictures
from radtower.evaluation.reports.report import ReportOptions, write_report
from radtower.evaluation.results import MetricResult, Results, write_results
from radtower.evaluation.rows import QUERY_COLUMNS, SCORE_COLUMNS, QueryRows, ScoreRows, write_rows

CREATED = datetime(2026, 1, 1, tzinfo=UTC)
WHERE = ("scans, test split", "two findings", "manual", "prompt ensemble")


@pytest.fixture(scope="session")
def make_metric():
    """A metric of a small data set; a value of None is undefined."""

    def make(metric="auroc", value=0.8, half=0.05, **details):
        fields = {
            "dataset": "scans, test split",
            "class_set": "two findings",
            "label_source": "manual",
            "ci_method": "patient bootstrap, percentile, 1000 resamples",
            "n": 125,
            "ci_low": None if value is None else value - half,
            "ci_high": None if value is None else value + half,
            "note": "undefined: one class only" if value is None else None,
        }
        return MetricResult(metric=metric, value=value, **{**fields, **details})

    return make


@pytest.fixture(scope="session")
def make_results():
    def make(*metrics, model_id="tower", **details):
        fields = {"model_revision": None, "created": CREATED, "phantom": False}
        return Results(model_id=model_id, metrics=metrics, **{**fields, **details})

    return make


@pytest.fixture(scope="session")
def zero_shot_metrics(make_metric):
    """Two findings and their mean, one of them undefined in one metric."""

    def make(shift=0.0):
        common = {"protocol": "prompt ensemble"}
        return [
            make_metric("auroc", 0.7 + shift, finding="pleural_effusion", n_positive=30, **common),
            make_metric(
                "average_precision", 0.5 + shift, finding="pleural_effusion", n_positive=30, **common
            ),
            make_metric("auroc", None, finding="lung_nodule", n_positive=0, n=120, **common),
            make_metric("average_precision", None, finding="lung_nodule", n_positive=0, n=120, **common),
            make_metric("macro_auroc", 0.7 + shift, note="mean of 1 of 2 findings", **common),
        ]

    return make


@pytest.fixture(scope="session")
def retrieval_metrics(make_metric):
    def make(shift=0.0):
        return [
            make_metric(
                metric,
                value + (0 if metric == "median_rank" else shift),
                half,
                direction=direction,
                chance=chance,
                protocol="exact row",
                label_source="pairing",
                class_set="none",
                note="queries resampled, gallery fixed",
            )
            for direction in ("image_to_report", "report_to_image")
            for metric, value, half, chance in (
                ("recall_at_1", 0.16, 0.05, 0.008),
                ("recall_at_5", 0.46, 0.05, 0.04),
                ("median_rank", 6.0, 1.5, 63.0),
            )
        ]

    return make


@pytest.fixture(scope="session")
def write_run_in(make_results, zero_shot_metrics, retrieval_metrics):
    """Results with score rows, query rows and a picture beside them; returns the path of the results."""

    def write(parent, folder="run", model_id="tower", seed=0, *, has_rows=True, metrics=None, **details):
        path = parent / folder / "results.json"
        chosen = [*zero_shot_metrics(), *retrieval_metrics()] if metrics is None else metrics
        results = make_results(*chosen, model_id=model_id, **details)
        write_results(results, path)
        if has_rows:
            write_rows(_score_rows(seed), results, path)
            write_rows(_query_rows(seed), results, path)
            caption = Caption(
                file="map.png", title="A map", caption="Principal components, n = 3.", alt="Dots"
            )
            write_pictures([Picture(caption, _png())], results, path)
        return path

    return write


@pytest.fixture
def write_run(write_run_in, tmp_path):
    return partial(write_run_in, tmp_path)


@pytest.fixture(scope="session")
def whole_report(write_run_in, tmp_path_factory):
    """Files of a report of all that can lie beside results. Read-only."""
    folder = tmp_path_factory.mktemp("whole_report")
    path = write_run_in(folder, phantom=True, not_measured=("heat maps: no scans",))
    return write_report([path], folder / "out", ReportOptions(num_resamples=20))


def _png():
    buffer = BytesIO()
    Image.new("RGB", (40, 20), "#0072b2").save(buffer, "PNG")
    return buffer.getvalue()


def _score_rows(seed):
    rng = np.random.default_rng(seed)
    rows = []
    for item in range(40):
        for finding in ("pleural_effusion", "lung_nodule"):
            label = 0.0 if finding == "lung_nodule" else float(rng.random() < 0.4)
            score = rng.random() / 2 + label / 3
            rows.append((*WHERE, f"secret-scan-{item}", f"secret-patient-{item // 2}", finding, score, label))
    return ScoreRows(pd.DataFrame(rows, columns=list(SCORE_COLUMNS)))


def _query_rows(seed):
    rng = np.random.default_rng(seed)
    place = ("scans, test split", "none", "pairing", "exact row")
    rows = [
        (
            *place,
            direction,
            f"secret-scan-{i}",
            f"secret-patient-{i // 2}",
            "rank",
            float(rng.integers(1, 30)),
        )
        for direction in ("image_to_report", "report_to_image")
        for i in range(40)
    ]
    return QueryRows(pd.DataFrame(rows, columns=list(QUERY_COLUMNS)))
