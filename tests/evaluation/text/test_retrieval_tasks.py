"""Retrieval among reports: what is a hit, what stands before it, and nDCG by hand."""

import numpy as np
import pytest

from radtower.evaluation.task_scores import NothingToMeasure
from radtower.evaluation.text.retrieval_tasks import LabelRetrieval, SectionRetrieval, ndcg


def values(task, scorer) -> dict[str, float]:
    scores = task.score(scorer)
    return dict(zip([metric.name for metric in scores.metrics], scores.values(), strict=True))


def test_equal_texts_and_the_answers_of_equal_findings_are_hits(table, oracle):
    told = {
        ("Nodule in the left lung.", "Left lung nodule."): 1.0,  # rank 1
        ("Small right pleural effusion. Hiatal hernia.", "Small right pleural effusion."): 0.5,  # rank 3
        ("Small right pleural effusion. Hiatal hernia.", "Nodule. Hernia."): 0.9,
        ("Small right pleural effusion. Hiatal hernia.", "Normal chest."): 0.5,  # a tie stands before
        ("No pneumothorax is seen.", "No acute disease."): 0.7,  # reads as its own impression
        ("Lungs are clear.", "Normal chest."): 0.8,  # of the other study with these findings: both are right
        ("Nodule and hiatal hernia.", "Nodule. Hernia."): -0.1,  # last of five
    }
    scores = SectionRetrieval(table, "toy", "findings_to_impression").score(oracle(told))
    assert scores.values() == pytest.approx([4 / 6, 1.0, 1.0, (1 + 1 / 3 + 1 + 1 + 1 + 1 / 5) / 6])
    assert [metric.n for metric in scores.metrics] == [6] * 4
    assert scores.metrics[0].note.startswith("5 distinct impression texts")
    assert scores.direction == "findings_to_impression"


def test_the_other_direction_asks_with_the_impression(table, oracle):
    told = {("No acute disease.", "Lungs are clear."): 1.0, ("1. No acute disease", "Lungs are clear."): 1.0}
    found = values(SectionRetrieval(table, "toy", "impression_to_findings"), oracle(told))
    # The two queries that read "no acute disease" are right with either findings; all others tie: 5 of 5.
    assert found["recall_at_1"] == pytest.approx(2 / 6)
    assert found["recall_at_5"] == 1.0
    assert found["mrr"] == pytest.approx((2 + 4 / 5) / 6)


def test_normal_queries_can_be_left_out_and_the_gallery_stays(table, oracle):
    told = {("Nodule in the left lung.", "Left lung nodule."): 1.0}
    scores = SectionRetrieval(table, "toy", "findings_to_impression", True).score(oracle(told))
    assert scores.patient_ids.tolist() == ["p0", "p1", "p5"]
    assert scores.values()[0] == pytest.approx(1 / 3)
    assert scores.metrics[0].note.startswith("5 distinct")


def test_ndcg_by_hand():
    gains = np.array([1.0, 0.5, 0.0, np.nan])
    best = 1 + 0.5 / np.log2(3)
    assert ndcg(np.array([0.9, 0.5, 0.1, 2.0]), gains, 2) == pytest.approx(1.0)
    assert ndcg(np.array([0.1, 0.5, 0.9, 2.0]), gains, 2) == pytest.approx(0.5 / np.log2(3) / best)
    assert ndcg(np.array([0.1, 0.9, 0.5, 2.0]), gains, 3) == pytest.approx((0.5 + 1 / 2) / best)
    # Ties, those of rounding too: the worst order.
    tied = np.array([0.5, 0.5 + 1e-8, 0.5, 2.0])
    assert ndcg(tied, gains, 3) == pytest.approx((0.5 / np.log2(3) + 1 / 2) / best)
    assert np.isnan(ndcg(tied, np.zeros(4), 3))


def test_label_retrieval_grades_by_overlap_and_leaves_the_query_out(make_table, oracle, studies):
    studies = [
        ("A.", "", 1, 1, 0),
        ("B.", "", 1, 0, 0),
        ("C.", "", 0, 0, 1),
        ("a", "", 1, 1, 0),  # reads like the first
        ("D.", "", -100, 1, 0),
    ]
    task = LabelRetrieval(make_table(studies), "toy", "3 labels", "hand")
    scores = task.score(
        oracle({("A. ", "B. "): 1.0, ("a ", "B. "): 0.5, ("B. ", "C. "): 1.0, ("B. ", "A. "): 0.5})
    )
    # Gains: A and a find B first (0.5, then 0); B finds C (0) before A (0.5); C has no gain anywhere.
    assert scores.values()[0] == pytest.approx((1 + 1 + 1 / np.log2(3)) / 3)
    assert len(scores.patient_ids) == 4
    assert scores.metrics[0].n == 4
    random = (0.25 + 0.25 + 0.25) * (1 + 1 / np.log2(3)) / 0.5 / 4
    assert f"a random order gives {random:.3f}" in scores.metrics[0].note


def test_reports_without_findings_are_all_alike(make_table, oracle):
    table = make_table([("A.", "", 0, 0, 0), ("B.", "", 0, 0, 0), ("C.", "", 1, 0, 0)])
    scores = LabelRetrieval(table, "toy", "3 labels", "hand").score(oracle({("A. ", "C. "): 1.0}))
    assert scores.values()[0] == pytest.approx((1 / np.log2(3) + 1 / np.log2(3)) / 2)


def test_without_queries_or_answers_nothing_is_measured(make_table, oracle):
    normal = make_table([("Clear.", "No acute disease.", -100), ("Lungs clear.", "Normal chest.", 1)])
    task = SectionRetrieval(normal, "toy", "findings_to_impression", is_abnormal_only=True)
    with pytest.raises(NothingToMeasure, match="findings_to_impression: 0 abnormal queries, 2 different"):
        task.score(oracle({}))
    same = make_table([("Clear.", "Normal."), ("Lungs clear.", "1. NORMAL")])
    with pytest.raises(NothingToMeasure, match="findings_to_impression: 2 queries, 1 different texts"):
        SectionRetrieval(same, "toy", "findings_to_impression").score(oracle({}))
    with pytest.raises(NothingToMeasure, match="label retrieval: 1 different reports"):
        LabelRetrieval(normal, "toy", "1 label", "hand").score(oracle({}))
