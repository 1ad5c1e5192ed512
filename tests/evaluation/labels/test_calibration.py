import numpy as np
import pytest

from radtower.evaluation.labels.calibration import reliability, weighted_ece

SCORES = np.array([0.05, 0.95, 1.0, 0.92, 0.31, np.nan])
LABELS = np.array([0.0, 1.0, 1.0, 0.0, -100.0, 1.0])
# Bins: .05 alone (gap .05); .95, 1 and .92 together (2.87 against 2).
ECE = (0.05 + 0.87) / 4


def test_a_curve_by_hand():
    curve = reliability(SCORES, LABELS)
    assert curve.num_scores.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert curve.mean_score[[0, 9]] == pytest.approx([0.05, 2.87 / 3])
    assert curve.share_present[[0, 9]] == pytest.approx([0, 2 / 3])
    assert np.isnan(curve.share_present[1:9]).all()
    assert curve.ece == pytest.approx(ECE)


def test_the_error_of_resamples_counts_rows():
    counts = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 0, 1, 5, 5], [0, 0, 0, 0, 3, 3]])
    values = weighted_ece(SCORES, LABELS, counts)
    assert values[:2] == pytest.approx([ECE, (2 * 0.05 + 0.92) / 3])
    assert np.isnan(values[2])


def test_pooled_findings_share_their_bins():
    # 0.9 too high and 0.8 too low cancel in no bin of their own, but do in the shared one.
    scores, labels = np.array([[0.95, 0.9], [0.1, 0.5]]), np.array([[0.0, 1.0], [0.0, -100.0]])
    both = weighted_ece(scores, labels, np.ones((1, 2)))[0]
    assert both == pytest.approx((abs(0.95 - 0.1) + 0.1) / 3)
    assert both == pytest.approx(reliability(scores, labels).ece)
    assert weighted_ece(scores, labels, np.array([[2, 0]]))[0] == pytest.approx(2 * 0.85 / 4)


def test_scores_that_mean_what_they_say_have_almost_no_error():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    labels = (rng.random(20_000) < scores).astype(float)
    assert reliability(scores, labels).ece < 0.02
    assert reliability(1 - scores, labels).ece == pytest.approx(0.5, abs=0.02)


def test_nothing_known_is_undefined():
    assert np.isnan(reliability(np.array([np.nan, 0.5]), np.array([1.0, -100.0])).ece)


@pytest.mark.parametrize("function", [reliability, lambda s, y: weighted_ece(s, y, np.ones((1, len(s))))])
def test_logits_and_other_shapes_are_refused(function):
    with pytest.raises(ValueError, match=r"scores must be in \[0, 1\], got 1.5"):
        function(np.array([1.5]), np.array([1.0]))
    with pytest.raises(ValueError, match=r"one shape, got \(2,\) and \(1,\)"):
        function(np.array([0.5, 0.5]), np.array([1.0]))
