"""Retrieved reports against answers that never saw the scan, on the same rows."""

import numpy as np
import pandas as pd
import pytest
import torch

from radtower.data.finding_truth import FindingTruth
from radtower.evaluation.clinical.report_labels import ReportLabels, report_labels
from radtower.evaluation.clinical.report_read_outs import measure_read_outs
from radtower.evaluation.clinical.report_search import FoundReports, find_reports
from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
from radtower.evaluation.results import Results
from radtower.evaluation.retrieval.ranks import RetrievalOptions
from radtower.evaluation.rows import QueryRows

KEYS = ("a", "b")
# Volumes 0 and 1 are two scans of one study.
TRUTH = np.array([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=np.float32)
STUDIES = pd.DataFrame(
    {
        "volume_id": list("vwxy"),
        "study_id": ["s", "s", "t", "u"],
        "patient_id": ["p", "p", "q", "r"],
        "report": ["one", "one ", "two", "three"],
    }
)


UNKNOWN = [[-100, -100]] * 4


def _targets(values):
    return ReportLabels(KEYS, np.asarray(values, dtype=np.float32), "labels by x; rule", "two, 2 findings")


def _found(rows):
    return FoundReports(np.array([0, 2, 3]), np.asarray(rows))


def _measure(rows, training=None, labels=None, **options):
    labels = labels or _targets(TRUTH)
    return measure_read_outs(
        _found(rows), STUDIES, labels, training, "D", options=RetrievalOptions(num_resamples=30), **options
    )


def _values(read_outs, metric, finding=None):
    return {
        m.protocol: pytest.approx(m.value)
        for m in read_outs.metrics
        if (m.metric, m.finding) == (metric, finding)
    }


def test_each_report_is_searched_once_and_the_most_similar_comes_first():
    images = torch.tensor([[1.0, 0], [0, 1], [1, 1], [3, 1]])
    reports = torch.tensor([[1.0, 0], [1, 0], [0, 1], [-1, 0]])
    found = find_reports(EmbeddedPairs(images, reports, STUDIES, "cosine", {}), (1, 2, 9))
    assert found.gallery.tolist() == [0, 2, 3]
    assert found.rows.tolist() == [[0, 1], [1, 0], [0, 1], [0, 1]]
    assert found.volumes.tolist() == [[0, 2], [2, 0], [0, 2], [0, 2]]
    long = torch.tensor([[1.0, 0], [1, 0], [0, 5], [-1, 0]])
    for similarity, first in (("cosine", [0, 1, 0, 0]), ("dot", [0, 1, 1, 1])):
        assert (
            find_reports(EmbeddedPairs(images, long, STUDIES, similarity, {}), (1,)).rows[:, 0].tolist()
            == first
        )
    one = EmbeddedPairs(images[:2], reports[:2], STUDIES[:2], "dot", {})
    assert find_reports(one, (5,)).rows.tolist() == [[0], [0]]


def test_found_and_baselines_by_hand():
    training = _targets([[1, 0], [1, 0], [0, 1]])
    read_outs = _measure([[0], [2], [0], [2]], training, ks=(1,))
    # Found: 1, 1/2, 0, 1; {a} always: 1, 1, 0, 1/2; random of {a}, {b}, {a, b}: 1/2, for the last 2/3.
    assert _values(read_outs, "label_jaccard") == {"top 1": 2.5 / 4}
    assert _values(read_outs, "label_jaccard_baseline") == {
        "top 1; random report": (3 * (1 + 0 + 0.5) / 3 + 2 / 3) / 4,
        "top 1; most common report": 2.5 / 4,
    }
    assert _values(read_outs, "label_jaccard_difference") == {
        "top 1; model minus random report": 2.5 / 4 - (1.5 + 2 / 3) / 4,
        "top 1; model minus most common report": 0.0,
    }
    assert _values(read_outs, "label_f1", "b") == {"top 1": 2 * 1 / (2 + 2)}
    assert read_outs.not_measured == ()
    item = next(m for m in read_outs.metrics if m.metric == "label_exact_row")
    assert (item.n, item.dataset, item.class_set) == (4, "D", "two, 2 findings")
    assert (item.label_source, item.direction) == ("labels by x; rule", "image_to_report")
    assert item.note == "3 different reports searched; queries resampled, gallery fixed"


def test_the_mean_and_the_best_of_several_and_their_baselines():
    training = _targets([[1, 0], [1, 0], [0, 1]])
    read_outs = _measure([[0, 1], [2, 0], [0, 1], [2, 1]], training, ks=(1, 2, 7))
    assert _values(read_outs, "label_jaccard") == {
        "top 1": 2.5 / 4,
        "mean of top 2": (0.5 + 0.75 + 0.5 + 0.75) / 4,
        "best of top 2": 4 / 4,
    }
    assert _values(read_outs, "label_jaccard_baseline") == {
        "top 1; random report": (1.5 + 2 / 3) / 4,
        "top 1; most common report": 2.5 / 4,
        "mean of top 2; random report": (1.5 + 2 / 3) / 4,
        "mean of top 2; most common report": 2.5 / 4,
        # Two of three: the best is 1 in two of three draws, else 1/2.
        "best of top 2; random report": (3 * (2 / 3 + 0.5 / 3) + (2 / 3 + 0.5 / 3)) / 4,
        "best of top 2; most common report": 3.5 / 4,
    }
    assert read_outs.not_measured == ("labels of the first 7 reports: only 3 differ",)
    Results(
        model_id="m",
        model_revision=None,
        created="2026-01-01T00:00:00Z",
        phantom=True,
        metrics=read_outs.metrics,
    )


def test_without_training_labels_the_baseline_is_named_as_missing():
    rows = [[0], [0], [0], [0]]
    for training, reason in (
        (None, "the manifest has no training split"),
        (_targets(UNKNOWN), "no report of the training split is labeled"),
    ):
        read_outs = _measure(rows, training)
        assert read_outs.not_measured[0] == f"labels of the most common report: {reason}"
        assert not any("most common" in m.protocol for m in read_outs.metrics)


def test_what_is_masked_or_not_labeled_is_counted_in_the_note():
    values = TRUTH.copy()
    values[2] = -100
    labels = _targets(values)
    read_outs = _measure([[0], [0], [0], [1]], labels=labels, ks=(1,))
    item = next(m for m in read_outs.metrics if m.metric == "label_jaccard")
    assert (item.n, item.value) == (3, pytest.approx(2 / 3))  # what is masked states nothing
    assert "2 of their 6 labels are masked: not stated as present" in item.note
    assert "1 volumes without labels of their report left out" in item.note


def test_query_rows_are_those_of_the_first_report():
    rows = QueryRows(_measure([[0], [2], [0], [2]], ks=(1,)).query_rows).frame
    jaccard = rows[rows["metric"] == "label_jaccard"]
    assert jaccard["query_id"].tolist() == list("vwxy")
    assert jaccard["patient_id"].tolist() == ["p", "p", "q", "r"]
    assert jaccard["value"].tolist() == pytest.approx([1, 0.5, 0, 1])
    assert rows[rows["metric"] == "label_exact_row"]["value"].tolist() == [1, 0, 0, 1]
    assert set(rows["protocol"]) == {"top 1"}


def test_tables_that_do_not_fit_are_refused():
    rows = [[0], [0], [0], [0]]
    with pytest.raises(ValueError, match="labels must be there for the reports, got none for 4 volumes"):
        _measure(rows, labels=_targets(UNKNOWN))
    with pytest.raises(ValueError, match="must be of the same volumes, got 4, 3 and 4 rows"):
        _measure(rows, labels=_targets(TRUTH[:3]))
    with pytest.raises(ValueError, match="must be of the same volumes, got 4, 4 and 2 rows"):
        _measure(rows[:2])
    other = ReportLabels(("a",), TRUTH[:, :1], "s", "one")
    with pytest.raises(ValueError, match="must have the same findings, got 1 and 2"):
        _measure(rows, other)


def test_findings_without_labels_are_left_out():
    truth = FindingTruth(
        keys=("a", "gone", "b"),
        labels=np.array([[1, -100, 0], [-100, -100, -100]], dtype=np.float32),
        left_out={"gone": "there is no column of labels"},
        unlabeled={},
        source="labels by x; rule",
    )
    labels = report_labels(truth, "three")
    assert (labels.keys, labels.class_set) == (KEYS, "three, 2 findings")
    assert labels.values.tolist() == [[1, 0], [-100, -100]]
    assert labels.is_labeled.tolist() == [True, False]
    assert labels.at([1, 0]).values.tolist() == [[-100, -100], [1, 0]]
