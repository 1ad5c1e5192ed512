import numpy as np
import pytest

from radtower.evaluation import bootstrap
from radtower.evaluation.bootstrap import (
    count_bootstrap,
    patient_bootstrap,
    percentile_interval,
    resample_counts,
)

PATIENTS = np.array(["b", "a", "c", "a", "b", "d", "d"])
VALUES = np.array([0.0, 1.0, 2.5, 3.0, 4.0, 7.0, 8.0])


def weighted_mean(counts: np.ndarray) -> np.ndarray:
    return counts @ VALUES / counts.sum(axis=1)


def test_a_resample_draws_whole_patients_as_many_as_there_are():
    counts = np.concatenate(list(resample_counts(PATIENTS, 300, seed=1)))
    assert counts.shape == (300, 7)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 4])
    np.testing.assert_array_equal(counts[:, 1], counts[:, 3])
    per_patient = counts[:, [1, 0, 2, 5]]
    assert (per_patient.sum(axis=1) == 4).all()
    # Each patient is drawn once on average, Poisson-like: 1 +- 0.87 / sqrt(300).
    np.testing.assert_allclose(per_patient.mean(axis=0), 1, atol=0.2)
    assert per_patient.max() > 1


def test_resamples_do_not_depend_on_the_block_size(monkeypatch):
    whole = np.concatenate(list(resample_counts(PATIENTS, 50, seed=3)))
    monkeypatch.setattr(bootstrap, "_BLOCK_ELEMENTS", 40)
    blocks = list(resample_counts(PATIENTS, 50, seed=3))
    assert len(blocks) == 10
    np.testing.assert_array_equal(np.concatenate(blocks), whole)


def test_resamples_follow_the_patient_not_the_row():
    order = np.array([6, 2, 0, 5, 1, 4, 3])
    one = np.concatenate(list(resample_counts(PATIENTS, 20, seed=0)))
    other = np.concatenate(list(resample_counts(PATIENTS[order], 20, seed=0)))
    np.testing.assert_array_equal(one[:, order], other)


def test_the_slow_and_the_fast_bootstrap_agree():
    slow = patient_bootstrap(lambda rows: float(VALUES[rows].mean()), PATIENTS, num_resamples=200, seed=5)
    values = count_bootstrap(weighted_mean, PATIENTS, num_resamples=200, seed=5)
    fast = percentile_interval(values, PATIENTS)
    assert (slow.low, slow.high) == pytest.approx((fast.low, fast.high), abs=1e-12)
    assert slow.low < VALUES.mean() < slow.high
    assert (slow.level, slow.num_resamples, slow.num_undefined) == (0.95, 200, 0)


def test_another_seed_gives_other_resamples():
    one, other = (count_bootstrap(weighted_mean, PATIENTS, 10, seed) for seed in (0, 1))
    assert (one != other).any()


def test_bounds_are_the_percentiles():
    interval = percentile_interval(np.arange(101.0), ["a", "b"], level=0.9)
    assert (interval.low, interval.high) == pytest.approx((5.0, 95.0))


def test_undefined_resamples_are_left_out_and_counted():
    values = np.r_[np.full(40, np.nan), np.arange(101.0)]
    interval = percentile_interval(values, ["a", "b"], level=0.9)
    assert (interval.low, interval.high) == pytest.approx((5.0, 95.0))
    assert (interval.num_undefined, interval.num_resamples) == (40, 141)


def test_mostly_undefined_is_no_interval():
    assert np.isnan(percentile_interval(np.array([1.0, np.nan, np.nan]), ["a", "b"]).low)
    assert percentile_interval(np.array([1.0, np.nan]), ["a", "b"]).low == 1.0
    nothing = percentile_interval(np.array([np.nan, np.nan]), ["a", "b"])
    assert np.isnan([nothing.low, nothing.high]).all()
    assert nothing.num_undefined == 2


def test_one_patient_is_no_interval():
    interval = percentile_interval(np.arange(10.0), ["a", "a", "a"])
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize("level", [0.0, 1.0, 95])
def test_a_level_outside_zero_to_one_is_refused(level):
    with pytest.raises(ValueError, match=f"level must be between 0 and 1, got {level}"):
        percentile_interval(np.arange(3.0), ["a", "b", "c"], level)


def test_nothing_to_resample_is_refused():
    with pytest.raises(ValueError, match="got 0 rows"):
        list(resample_counts([], 10, seed=0))
    with pytest.raises(ValueError, match="num_resamples must be at least 1, got 0"):
        list(resample_counts(["a"], 0, seed=0))


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(200):
        values = rng.normal(size=60) + np.repeat(rng.normal(size=30), 2)
        means = count_bootstrap(lambda c, v=values: c @ v / c.sum(axis=1), np.arange(60) // 2, 300, seed)
        interval = percentile_interval(means, np.arange(60) // 2)
        covered += interval.low <= 0 <= interval.high
    # Drawing rows instead of patients would cover 86 %.
    assert 0.90 <= covered / 200 <= 0.98
