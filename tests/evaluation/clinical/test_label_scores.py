"""Agreement of labels against scikit-learn, by hand, and where it is undefined."""

import numpy as np
import pytest
from sklearn.metrics import jaccard_score, precision_recall_fscore_support

from radtower.evaluation.clinical.label_answers import answers_of_rows, random_answers
from radtower.evaluation.clinical.label_scores import label_scores, without_macro_precision
from radtower.evaluation.results import Provenance

PROVENANCE = Provenance(dataset="d", class_set="c", label_source="s", protocol="top 1")
FINDINGS = ("a", "b", "c")


def _scores(truth, gallery, rows, findings=FINDINGS, patients=None):
    answers = answers_of_rows(truth, gallery, rows)
    return label_scores(
        answers, np.arange(len(truth)) if patients is None else patients, PROVENANCE, findings
    )


def _by_name(results):
    return {(m.metric, m.finding): m for m in results}


def test_the_numbers_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 2, (40, 3)).astype(np.float32)
    gallery = rng.integers(0, 2, (20, 3)).astype(np.float32)
    rows = rng.integers(0, 20, (40, 1))
    found = _by_name(_scores(truth, gallery, rows).results(num_resamples=50))
    predicted = gallery[rows[:, 0]]
    for average in ("macro", "micro"):
        expected = precision_recall_fscore_support(truth, predicted, average=average)[:3]
        got = [found[f"{average}_label_{name}", None].value for name in ("precision", "recall", "f1")]
        assert got == pytest.approx(expected)
    per_finding = precision_recall_fscore_support(truth, predicted, average=None)
    for row, name in enumerate(("precision", "recall", "f1")):
        got = [found[f"label_{name}", finding].value for finding in FINDINGS]
        assert got == pytest.approx(per_finding[row].tolist())
    assert [found["label_f1", f].n_positive for f in FINDINGS] == truth.sum(axis=0).tolist()
    has_any = (truth + predicted).any(axis=1)
    jaccards = np.ones(40)
    jaccards[has_any] = [jaccard_score(t, p) for t, p in zip(truth[has_any], predicted[has_any], strict=True)]
    assert found["label_jaccard", None].value == pytest.approx(jaccards.mean())
    assert found["label_exact_row", None].value == pytest.approx((truth == predicted).all(axis=1).mean())
    assert found["label_jaccard", None].direction == "image_to_report"


def test_masked_cells_of_the_truth_are_left_out_and_counted():
    truth = np.array([[1, -100], [0, 1], [-100, -100]], dtype=np.float32)
    gallery = np.array([[1, 1]], dtype=np.float32)
    found = _by_name(_scores(truth, gallery, np.zeros((3, 1), dtype=int), "ab").results(20))
    assert (found["label_precision", "a"].value, found["label_precision", "b"].value) == (0.5, 1.0)
    assert [found["label_f1", f].n for f in "ab"] == [2, 1]
    assert found["micro_label_precision", None].value == pytest.approx(2 / 3)
    assert found["macro_label_f1", None].value == pytest.approx((2 / 3 + 1) / 2)
    assert found["macro_label_f1", None].n == 2
    assert found["label_exact_row", None].n == 1
    assert (found["label_jaccard", None].n, found["label_jaccard", None].value) == (2, pytest.approx(0.75))


def test_what_is_undefined_is_null_with_its_reason():
    truth = np.array([[1, 0], [1, 0]], dtype=np.float32)
    gallery = np.zeros((1, 2), dtype=np.float32)
    found = _by_name(_scores(truth, gallery, np.zeros((2, 1), dtype=int), "ab").results(20))
    reasons = {key: m.note for key, m in found.items() if m.value is None}
    assert reasons == {
        ("macro_label_precision", None): "undefined: no answer names it, for all",
        ("micro_label_precision", None): "undefined: no answer names it, for all",
        ("label_precision", "a"): "undefined: no answer names it",
        ("label_precision", "b"): "undefined: no answer names it",
        ("label_recall", "b"): "undefined: no true report has it",
        ("label_f1", "b"): "undefined: no answer names it and no true report has it",
    }
    assert found["macro_label_f1", None].value == 0.0


def test_differences_are_paired_and_leave_macro_precision_out():
    rng = np.random.default_rng(1)
    truth = rng.integers(0, 2, (30, 3)).astype(np.float32)
    patients = np.repeat(np.arange(10), 3)
    rows = np.arange(30)[:, None]
    mine = without_macro_precision(_scores(truth, truth, rows, (), patients))
    same = without_macro_precision(_scores(truth, truth, rows, (), patients))
    random = label_scores(random_answers(truth, truth), patients, PROVENANCE)
    zero = mine.minus(same, "itself", 30)
    assert [m.metric for m in zero] == [
        f"{name}_difference"
        for name in (
            *("macro_label_recall", "macro_label_f1"),
            *("micro_label_precision", "micro_label_recall", "micro_label_f1"),
            *("label_exact_row", "label_jaccard"),
        )
    ]
    assert {(m.value, m.ci_low, m.ci_high) for m in zero} == {(0.0, 0.0, 0.0)}
    gain = _by_name(mine.minus(without_macro_precision(random), "random report", 30))
    named = truth.mean(axis=0)
    expected = 1 - np.mean(2 * truth.sum(axis=0) * named / (truth.sum(axis=0) + 30 * named))
    assert gain["macro_label_f1_difference", None].value == pytest.approx(expected)
    assert gain["macro_label_f1_difference", None].protocol == "top 1; model minus random report"
    assert gain["macro_label_f1_difference", None].ci_low > 0


def test_intervals_resample_patients():
    rng = np.random.default_rng(2)
    truth = rng.integers(0, 2, (40, 3)).astype(np.float32)
    gallery, rows = truth[rng.permutation(40)], np.arange(40)[:, None]
    alone = _by_name(_scores(truth, gallery, rows).results(200))["label_jaccard", None]
    twins = _scores(
        np.tile(truth, (2, 1)), gallery, np.tile(rows, (2, 1)), patients=np.tile(np.arange(40), 2)
    )
    together = _by_name(twins.results(200))["label_jaccard", None]
    assert (together.ci_low, together.ci_high) == pytest.approx((alone.ci_low, alone.ci_high))


def test_names_and_patients_must_fit():
    truth = np.ones((2, 3), dtype=np.float32)
    answers = answers_of_rows(truth, truth, np.zeros((2, 1), dtype=int))
    with pytest.raises(ValueError, match=r"must be 3 \(or none\) and 2, got 2 and 2"):
        label_scores(answers, [0, 1], PROVENANCE, "ab")
    with pytest.raises(ValueError, match=r"must be 3 \(or none\) and 2, got 0 and 3"):
        label_scores(answers, [0, 1, 2], PROVENANCE)
