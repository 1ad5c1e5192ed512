"""The 95 % interval covers the truth in 93 to 97 % of 500 repeats, on data whose truth is known.

Patients have one to four scans that look alike to a model. A score is ``shift * label + patient + noise``,
both standard normal, so that the true AUROC is ``Phi(shift / 2)``.
"""

from statistics import NormalDist

import numpy as np
import pytest

from radtower.evaluation.bootstrap import FEW_PATIENTS, count_bootstrap, percentile_interval
from radtower.evaluation.metrics import binary_metrics, weighted_auroc

NORMAL = NormalDist()


def draw(rng: np.random.Generator, num_patients: int, prevalence: float, shift: float):
    patients = np.repeat(np.arange(num_patients), rng.integers(1, 5, num_patients))
    labels = (rng.random(num_patients) < prevalence).astype(float)[patients]
    alike = rng.normal(size=num_patients)[patients]
    return shift * labels + alike + rng.normal(size=len(patients)), labels, patients


def coverage(
    metric: str,
    truth: float,
    num_patients: int,
    *,
    prevalence: float = 0.5,
    num_resamples: int = 300,
    repeats: int = 500,
    by_patient: bool = True,
) -> float:
    """Share of intervals that hold the truth, of an AUROC or of the recall at a threshold."""
    rng = np.random.default_rng(1)
    # For the recall the threshold is 0, and the positives lie where they are above it as often as the truth.
    shift = NORMAL.inv_cdf(truth) * (2 if metric == "auroc" else 2**0.5)
    covered = 0
    for repeat in range(repeats):
        scores, labels, patients = draw(rng, num_patients, prevalence, shift)
        ids = patients if by_patient else np.arange(len(patients))

        def weighted(counts: np.ndarray, s: np.ndarray = scores, y: np.ndarray = labels) -> np.ndarray:
            return (
                weighted_auroc(s, y, counts)
                if metric == "auroc"
                else binary_metrics(s >= 0, y, counts).recall
            )

        interval = percentile_interval(count_bootstrap(weighted, ids, num_resamples, repeat), ids)
        covered += interval.low <= truth <= interval.high
    return covered / repeats


@pytest.mark.parametrize(("metric", "truth"), [("auroc", 0.8), ("recall", 0.8)])
def test_intervals_cover_the_truth_as_often_as_they_say(metric, truth):
    assert 0.93 <= coverage(metric, truth, 150) <= 0.97


def test_drawing_scans_instead_of_patients_would_not():
    assert coverage("recall", 0.8, 150, repeats=100, by_patient=False) < 0.9


@pytest.mark.slow
@pytest.mark.parametrize(("metric", "truth"), [("auroc", 0.7), ("auroc", 0.9), ("recall", 0.9)])
def test_intervals_of_a_rare_finding_cover_the_truth_as_often_as_they_say(metric, truth):
    assert 0.93 <= coverage(metric, truth, 400, prevalence=0.25, num_resamples=1000) <= 0.97


@pytest.mark.slow
def test_intervals_of_few_patients_are_too_narrow_as_the_notes_say():
    assert FEW_PATIENTS == 50
    for num_patients, prevalence, highest in ((20, 0.3, 0.9), (50, 0.3, 0.93), (100, 0.3, 0.94)):
        value = coverage("auroc", 0.9, num_patients, prevalence=prevalence, num_resamples=500)
        assert 0.8 < value < highest
