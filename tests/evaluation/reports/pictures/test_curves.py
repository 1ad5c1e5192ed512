import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import roc_curve

from radtower.evaluation.reports.pictures.curves import (
    GRID,
    ScoreMatrix,
    recall_curve,
    roc_curves,
    score_matrix,
)
from radtower.evaluation.retrieval.ranks import summarize_ranks


def sample(scores, labels, patients=None):
    scores, labels = np.asarray(scores, dtype=float), np.asarray(labels, dtype=float)
    patients = np.arange(len(scores)) if patients is None else np.asarray(patients)
    return ScoreMatrix(scores, labels, patients, tuple(f"f{i}" for i in range(scores.shape[1])))


def slow_sensitivities(scores, labels):
    """By scikit-learn, drawn as straight lines; the upper end of a vertical step."""
    known = labels >= 0
    fpr, tpr, _ = roc_curve(labels[known], scores[known], drop_intermediate=False)
    return np.interp(GRID, fpr, tpr)


@pytest.mark.parametrize("num_levels", [4, 1000])
def test_curves_are_those_of_scikit_learn(num_levels):
    rng = np.random.default_rng(0)
    scores = rng.integers(num_levels, size=(60, 3)) / num_levels  # ties, too
    labels = (rng.random((60, 3)) < 0.4).astype(float)
    labels[rng.random((60, 3)) < 0.2] = -100
    curves, mean = roc_curves(sample(scores, labels), num_resamples=5)
    expected = [slow_sensitivities(scores[:, f], labels[:, f]) for f in range(3)]
    for curve, wanted in zip(curves.values(), expected, strict=True):
        np.testing.assert_allclose(curve.y, wanted, atol=1e-9)
    np.testing.assert_allclose(mean.y, np.mean(expected, axis=0), atol=1e-9)


def test_the_band_is_that_of_resampled_patients():
    rng = np.random.default_rng(1)
    labels = (rng.random((40, 2)) < 0.5).astype(float)
    scores = rng.random((40, 2)) + 0.3 * labels
    patients = np.repeat(np.arange(20), 2)
    curves, mean = roc_curves(sample(scores, labels, patients), num_resamples=60, seed=4)
    # The same draws, one by one, with scikit-learn.
    draws = np.random.default_rng(4).multinomial(20, np.full(20, 1 / 20), size=60)
    slow = []
    for counts in draws:
        rows = np.repeat(np.arange(40), counts[patients])
        slow.append([slow_sensitivities(scores[rows, f], labels[rows, f]) for f in range(2)])
    slow = np.array(slow)
    # Not where the curve is vertical: there rounding picks one end of the step.
    for found, wanted in ((curves["f0"], slow[:, 0]), (mean, slow.mean(axis=1))):
        low, high = np.percentile(wanted, (2.5, 97.5), axis=0)
        assert np.median(np.abs(found.low - low)) < 1e-6
        assert np.median(np.abs(found.high - high)) < 1e-6
        assert (found.low <= found.high).all()
    assert mean.num_patients == 20


def test_bands_do_not_depend_on_how_many_resamples_are_in_memory(monkeypatch):
    rng = np.random.default_rng(2)
    one = sample(rng.random((12, 2)), np.array([[1, 0], [0, 1]] * 6))
    whole, mean = roc_curves(one, num_resamples=30)
    monkeypatch.setattr("radtower.evaluation.bootstrap._BLOCK_ELEMENTS", 12 * 7)
    monkeypatch.setattr("radtower.evaluation.reports.pictures.curves._BLOCK_ELEMENTS", 12 * 3)
    blocks, mean_of_blocks = roc_curves(one, num_resamples=30)
    for found, wanted in ((blocks["f0"], whole["f0"]), (blocks["f1"], whole["f1"]), (mean_of_blocks, mean)):
        np.testing.assert_allclose(found.low, wanted.low, atol=1e-6)
        np.testing.assert_allclose(found.high, wanted.high, atol=1e-6)


def test_a_perfect_and_a_useless_score():
    labels = [[1, 1], [1, 1], [0, 0], [0, 0]]
    scores = [[9, 5], [8, 5], [1, 5], [0, 5]]
    curves, mean = roc_curves(sample(scores, labels), num_resamples=20)
    assert (curves["f0"].y == 1).all()
    np.testing.assert_allclose(curves["f1"].y, GRID)  # all tied: the diagonal, not luck
    np.testing.assert_allclose(mean.y, (1 + GRID) / 2)


def test_a_finding_with_one_class_has_no_curve():
    scores = np.random.default_rng(0).random((6, 2))
    labels = np.array([[1, 1], [0, 1], [1, 1], [0, -100], [1, 1], [0, 1]])
    curves, mean = roc_curves(sample(scores, labels), num_resamples=10)
    assert list(curves) == ["f0"]
    np.testing.assert_array_equal(mean.y, curves["f0"].y)
    assert roc_curves(sample(scores[:, 1:], labels[:, 1:]), num_resamples=10) == ({}, None)


def test_a_single_patient_has_a_curve_without_a_band():
    curves, _ = roc_curves(sample([[1], [0]], [[1], [0]], ["p", "p"]), num_resamples=10)
    assert curves["f0"].low is None
    assert curves["f0"].high is None


def test_a_class_that_most_resamples_miss_has_no_band():
    # One patient has the positive, one the negative, eight have no label: four of ten resamples hold both.
    labels = np.full((10, 2), -100.0)
    labels[:2, 0] = (1, 0)
    labels[:, 1] = [1, 0] * 5
    curves, mean = roc_curves(sample(np.arange(20.0).reshape(10, 2), labels), num_resamples=400)
    assert curves["f0"].low is None
    assert curves["f1"].low is not None
    assert mean.low is not None


def test_recall_by_hand():
    curve = recall_curve(np.array([1.0, 3.0, 2.5, 9.0]), list("abcd"), 4, num_resamples=50)
    assert curve.x.tolist() == [1, 2, 3, 4]
    # A rank of 2.5, half a tie, is within 3 and not within 2.
    assert curve.y.tolist() == [0.25, 0.25, 0.75, 0.75]
    assert (np.diff(curve.low) >= 0).all()
    assert (curve.low <= curve.y).all()
    assert (curve.y <= curve.high).all()


def test_the_band_of_recall_is_that_of_recall_at_each_k():
    rng = np.random.default_rng(0)
    ranks, patients = rng.integers(1, 30, size=50).astype(float), rng.integers(20, size=50)
    curve = recall_curve(ranks, patients, 10, num_resamples=2000)
    measured = summarize_ranks(ranks, patients, (1, 5, 10))
    for k in (1, 5, 10):
        value, interval = measured[f"recall_at_{k}"]
        assert curve.y[k - 1] == pytest.approx(value)
        assert (curve.low[k - 1], curve.high[k - 1]) == pytest.approx((interval.low, interval.high))


@pytest.mark.parametrize(("ranks", "k"), [([], 3), ([0.0], 3), ([1.0], 0)])
def test_ranks_that_are_none_are_refused(ranks, k):
    with pytest.raises(ValueError, match=r"ranks and largest_k must be at least 1, got"):
        recall_curve(np.array(ranks), list(range(len(ranks))), k)


def frame(rows):
    return pd.DataFrame(rows, columns=["item_id", "patient_id", "finding", "score", "label"])


def test_rows_become_a_matrix_with_holes_masked():
    rows = [("b", "p2", "x", 0.5, 1.0), ("a", "p1", "y", 0.2, 0.0), ("a", "p1", "x", 0.1, -100.0)]
    matrix = score_matrix(frame(rows))
    assert matrix.findings == ("x", "y")
    assert matrix.patient_ids.tolist() == ["p1", "p2"]
    assert matrix.labels.tolist() == [[-100.0, 0.0], [1.0, -100.0]]
    assert matrix.scores[0].tolist() == [0.1, 0.2]
    assert not np.isnan(matrix.scores).any()


def test_rows_that_contradict_each_other_are_refused():
    with pytest.raises(ValueError, match="an item and finding once, got 1 more than once"):
        score_matrix(frame([("a", "p", "x", 0.5, 1.0), ("a", "p", "x", 0.6, 1.0)]))
    with pytest.raises(ValueError, match="an item must be of one patient, got one of several"):
        score_matrix(frame([("a", "p", "x", 0.5, 1.0), ("a", "q", "y", 0.6, 1.0)]))
