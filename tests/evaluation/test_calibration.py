import numpy as np
import pytest

from radtower.evaluation.calibration import (
    fit_temperature,
    negative_log_likelihood,
    reliability,
    weighted_error,
)

SCORES = np.array([0.05, 0.95, 1.0, 0.92, 0.31, np.nan])
LABELS = np.array([0.0, 1.0, 1.0, 0.0, -100.0, 1.0])
# Bins: .05 alone (gap .05); .95, 1 and .92 together (2.87 against 2).
ECE = (0.05 + 0.87) / 4


def test_the_likelihood_is_that_of_the_scaled_probabilities():
    logits = np.array([[2 * np.log(3.0), -2 * np.log(4.0)]])
    # At temperature 2 the odds are 3 and 1/4: P = 3/4 and 1/5.
    expected = (-np.log(3 / 4) - np.log(4 / 5)) / 2
    assert negative_log_likelihood(logits, np.array([[1.0, 0.0]]), 2.0) == pytest.approx(expected)
    soft = -0.3 * np.log(3 / 4) - 0.7 * np.log(1 / 4)
    assert negative_log_likelihood(logits, np.array([[0.3, -100.0]]), 2.0) == pytest.approx(soft)


def test_the_likelihood_of_a_large_logit_is_finite():
    assert negative_log_likelihood(np.array([1000.0, -1000.0]), np.array([0.0, 0.0])) == pytest.approx(500.0)


def test_finds_the_temperature_by_which_the_logits_are_too_large():
    # 3 of 4 are present where the logit says 9 of 10 to the power of two: log(81) / T = log(3), so T = 4.
    logits = np.full(4, 4 * np.log(3.0))
    fit = fit_temperature(logits, np.array([1.0, 1.0, 1.0, 0.0]))
    assert fit.is_found
    assert fit.temperature == pytest.approx(4.0, rel=1e-4)
    assert fit.num_labels == 4
    entropy = -0.75 * np.log(0.75) - 0.25 * np.log(0.25)
    assert fit.nll[1] == pytest.approx(entropy)
    assert fit.nll[0] == pytest.approx(np.log1p(1 / 81) + np.log(81) / 4)
    assert fit.error == pytest.approx((81 / 82 - 0.75, 0.0), abs=1e-6)
    assert "temperature 4.000, fitted on 4 held-out labels: NLL 1.1109 -> 0.5623" in fit.describe()


def test_sharpens_logits_that_are_too_small_and_skips_unknown_labels():
    logits = np.array([[0.5 * np.log(4.0)] * 5, [9.0] * 5])
    labels = np.array([[1.0, 1.0, 1.0, 1.0, 0.0], [-100.0] * 5])
    fit = fit_temperature(logits, labels)
    assert fit.temperature == pytest.approx(0.5, rel=1e-4)
    assert fit.num_labels == 5


@pytest.mark.parametrize("labels", [[1.0, 0.0], [0.0, 1.0]])
def test_keeps_one_where_no_temperature_is_best(labels):
    logits = np.array([3.0, -3.0])  # all right: the lower the better; all wrong: the higher
    fit = fit_temperature(logits, np.array(labels))
    assert (fit.temperature, fit.is_found) == (1.0, False)
    assert fit.nll[0] == fit.nll[1]
    assert fit.describe().startswith("Label temperature 1, unchanged: 2 held-out labels have no best one")


def test_reliability_compares_means_per_bin():
    scores = np.array([0.05, 0.15, 0.15, 1.0, 0.95, 0.5])
    labels = np.array([0.0, 1.0, 0.0, 1.0, 1.0, -100.0])
    found = reliability(scores, labels)
    assert found.counts.tolist() == [1, 2, 0, 0, 0, 0, 0, 0, 0, 2]
    np.testing.assert_allclose(found.mean_score[[0, 1, 9]], [0.05, 0.15, 0.975])
    np.testing.assert_allclose(found.mean_label[[0, 1, 9]], [0.0, 0.5, 1.0])
    assert np.isnan(found.mean_score[2])
    assert found.error == pytest.approx((0.05 + 2 * 0.35 + 2 * 0.025) / 5)


def test_reliability_may_have_other_bins():
    found = reliability(np.array([0.2, 0.4]), np.array([0.0, 1.0]), num_bins=1)
    assert found.error == pytest.approx(0.2)


def test_a_curve_by_hand():
    curve = reliability(SCORES, LABELS)
    assert curve.counts.tolist() == [1, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert curve.mean_score[[0, 9]] == pytest.approx([0.05, 2.87 / 3])
    assert curve.mean_label[[0, 9]] == pytest.approx([0, 2 / 3])
    assert np.isnan(curve.mean_label[1:9]).all()
    assert curve.error == pytest.approx(ECE)


def test_the_error_of_resamples_counts_rows():
    counts = np.array([[1, 1, 1, 1, 1, 1], [2, 0, 0, 1, 5, 5], [0, 0, 0, 0, 3, 3]])
    values = weighted_error(SCORES, LABELS, counts)
    assert values[:2] == pytest.approx([ECE, (2 * 0.05 + 0.92) / 3])
    assert np.isnan(values[2])


def test_pooled_findings_share_their_bins():
    # 0.9 too high and 0.8 too low cancel in no bin of their own, but do in the shared one.
    scores, labels = np.array([[0.95, 0.9], [0.1, 0.5]]), np.array([[0.0, 1.0], [0.0, -100.0]])
    both = weighted_error(scores, labels, np.ones((1, 2)))[0]
    assert both == pytest.approx((abs(0.95 - 0.1) + 0.1) / 3)
    assert both == pytest.approx(reliability(scores, labels).error)
    assert weighted_error(scores, labels, np.array([[2, 0]]))[0] == pytest.approx(2 * 0.85 / 4)


def test_scores_that_mean_what_they_say_have_almost_no_error():
    rng = np.random.default_rng(0)
    scores = rng.random(20_000)
    labels = (rng.random(20_000) < scores).astype(float)
    assert reliability(scores, labels).error < 0.02
    assert reliability(1 - scores, labels).error == pytest.approx(0.5, abs=0.02)


def test_nothing_known_is_undefined():
    assert np.isnan(reliability(np.array([np.nan, 0.5]), np.array([1.0, -100.0])).error)


@pytest.mark.parametrize("function", [reliability, lambda s, y: weighted_error(s, y, np.ones((1, len(s))))])
@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.5, 0.5], [1.0], r"one shape, got \(2,\) and \(1,\)"),
        ([0.5, 0.5], [-1.0, 1.0], r"in \[0, 1\] or -100, got -1.0 to 1.0"),
        ([0.5, 2.0], [0.0, 1.0], r"scores must be in \[0, 1\], got 2.0. Give probabilities"),
    ],
)
def test_refuses_what_is_no_probability_or_label(function, scores, labels, message):
    with pytest.raises(ValueError, match=message):
        function(np.array(scores), np.array(labels))


def test_a_float32_score_on_the_border_of_two_bins_is_in_one_bin_for_both():
    scores = np.array([0.3, 0.7, 0.6], dtype=np.float32)
    labels = np.array([1.0, 0.0, 1.0], dtype=np.float32)
    resampled = weighted_error(scores, labels, np.ones((1, 3)))[0]
    assert resampled == pytest.approx(reliability(scores, labels).error, abs=1e-12)


def test_no_temperature_without_a_label():
    with pytest.raises(ValueError, match="a known one, got 2 that are all -100"):
        fit_temperature(np.array([0.5, 0.5]), np.array([-100.0, -100.0]))
