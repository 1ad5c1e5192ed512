import numpy as np
import pytest

from radtower.evaluation.calibration import fit_temperature, negative_log_likelihood, reliability


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


@pytest.mark.parametrize(
    ("scores", "labels", "message"),
    [
        ([0.5, 0.5], [1.0], r"one shape, got \(2,\) and \(1,\)"),
        ([0.5, 0.5], [-100.0, -100.0], "a known one, got 2 that are all -100"),
        ([0.5, 0.5], [-1.0, 1.0], r"in \[0, 1\] or -100, got -1.0 to 1.0"),
        ([0.5, 2.0], [0.0, 1.0], r"scores must be in \[0, 1\], got 0.5 to 2.0"),
    ],
)
def test_refuses_what_is_no_probability_or_label(scores, labels, message):
    with pytest.raises(ValueError, match=message):
        reliability(np.array(scores), np.array(labels))
