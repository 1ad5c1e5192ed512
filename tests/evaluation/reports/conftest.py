from datetime import UTC, datetime

import pytest

from radtower.evaluation.results import MetricResult, Results

CREATED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
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


@pytest.fixture
def make_results():
    def make(*metrics, model_id="tower", **details):
        fields = {"model_revision": None, "created": CREATED, "phantom": False}
        return Results(model_id=model_id, metrics=metrics, **{**fields, **details})

    return make


@pytest.fixture
def zero_shot_metrics(make_metric):
    """Two findings and their mean, one of them undefined in one metric."""

    def make(shift=0.0):
        common = {"protocol": "prompt ensemble"}
        return [
            make_metric("auroc", 0.7 + shift, finding="pleural_effusion", n_positive=30, **common),
            make_metric("average_precision", 0.5 + shift, finding="pleural_effusion", n_positive=30, **common),
            make_metric("auroc", None, finding="lung_nodule", n_positive=0, n=120, **common),
            make_metric("average_precision", None, finding="lung_nodule", n_positive=0, n=120, **common),
            make_metric("macro_auroc", 0.7 + shift, note="mean of 1 of 2 findings", **common),
        ]

    return make


@pytest.fixture
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
