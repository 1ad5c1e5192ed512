"""From a manifest and its labels to read-outs: rows by volume, the baseline from the training split."""

import numpy as np
import pandas as pd
import pytest
import torch

from radtower.data.finding_truth import FindingTruth
from radtower.data.manifest import Manifest
from radtower.evaluation.clinical.read_out_plan import plan_read_outs
from radtower.evaluation.clinical.text_read_outs import TextScoring
from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
from radtower.evaluation.retrieval.ranks import RetrievalOptions

# volume: split, report, labels of two findings.
VOLUMES = {
    "t0": ("train", "only b", [0, 1]),
    "t1": ("train", "only a", [1, 0]),
    "t2": ("train", "a again", [1, 0]),
    "x0": ("test", "has a", [1, 0]),
    "x1": ("test", "has b", [0, 1]),
    "x2": ("test", " ", [0, 0]),
    "v0": ("validation", "never read", [1, 1]),
}
FRAME = pd.DataFrame(
    {
        "volume_id": list(VOLUMES),
        "study_id": list(VOLUMES),
        "patient_id": list(VOLUMES),
        "split": [split for split, _, _ in VOLUMES.values()],
        "report": [report for _, report, _ in VOLUMES.values()],
    }
)
OPTIONS = RetrievalOptions(num_resamples=10)


def _read(manifest, unknown=()):
    rows = [[-100, -100] if v in unknown else VOLUMES[v][2] for v in manifest.frame["volume_id"]]
    return FindingTruth(("a", "b"), np.array(rows, dtype=np.float32), {}, {}, "columns")


def _pairs(order=("x1", "x0")):
    studies = FRAME.set_index("volume_id", drop=False).loc[list(order)].reset_index(drop=True)
    images = torch.tensor([[1.0, 0.1], [0.9, 0.2]])
    reports = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    return EmbeddedPairs(images, reports, studies, "cosine", {})


def _values(read_outs, metric):
    return {m.protocol: m.value for m in read_outs.metrics if m.metric == metric}


def test_labels_follow_the_volumes_and_the_training_split_gives_the_most_common_report():
    plan = plan_read_outs(Manifest(FRAME), "test", _read, "two")
    assert set(plan.rows) == {"t0", "t1", "t2", "x0", "x1"}
    read_outs = plan.measure(_pairs(), "D", (1,), OPTIONS)
    # Both scans find the report of x1: right for x1, wrong for x0.
    assert _values(read_outs, "label_jaccard") == {"top 1": 0.5}
    assert _values(read_outs, "label_jaccard_baseline")["top 1; most common report"] == 0.5
    assert _values(read_outs, "label_recall") == {"top 1": 1.0}
    assert read_outs.metrics[0].class_set == "two, 2 findings"
    item = {m.finding: m.value for m in read_outs.metrics if m.metric == "label_f1"}
    assert item == {"a": 0.0, "b": pytest.approx(2 / 3)}
    jaccard = read_outs.query_rows[read_outs.query_rows["metric"] == "label_jaccard"]
    assert dict(zip(jaccard["query_id"], jaccard["value"], strict=True)) == {"x1": 1.0, "x0": 0.0}


def test_texts_are_scored_where_asked_with_the_report_that_the_labels_chose():
    asked = []

    def score(found, true):
        asked.append((list(found), list(true)))
        return {"same": np.array([float(a == b) for a, b in zip(found, true, strict=True)])}

    plan = plan_read_outs(Manifest(FRAME), "test", _read, "two", TextScoring(score, "text by y"))
    read_outs = plan.measure(_pairs(), "D", (1,), OPTIONS)
    assert _values(read_outs, "report_same") == {"top 1": 0.5}
    assert asked[0] == (["has b", "has b"], ["has b", "has a"])
    assert (["only a", "only a"], ["has b", "has a"]) in asked


def test_without_training_labels_that_baseline_is_missing():
    frame = FRAME[FRAME["split"] != "train"]
    scoring = TextScoring(lambda found, true: {"one": np.ones(len(true))}, "text by y")
    for plan in (
        plan_read_outs(Manifest(frame), "test", _read, "two", scoring),
        plan_read_outs(Manifest(FRAME), "test", lambda m: _read(m, ("t0", "t1", "t2")), "two", scoring),
    ):
        read_outs = plan.measure(_pairs(), "D", (1,), OPTIONS)
        assert read_outs.not_measured[0].startswith("labels of the most common report: ")
        assert not [m for m in read_outs.metrics if "most common" in m.protocol]


def test_a_split_without_labels_is_refused_before_the_scans_are_read():
    with pytest.raises(
        ValueError, match="labels must be there for reports of the test split, got none for 2"
    ):
        plan_read_outs(Manifest(FRAME), "test", lambda m: _read(m, ("x0", "x1")), "two")
