import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from radtower.evaluation.decisions.delong import CLUSTERED, INDEPENDENT, delong_test, holm


def slow_variance(first, second, labels, patients) -> float:
    """DeLong 1988, summed per patient as in Obuchowski 1997, pair by pair, with a 2 x 2 matrix."""
    positives, negatives = np.flatnonzero(labels == 1), np.flatnonzero(labels == 0)
    aurocs, sums = [], []
    for scores in (first, second):
        kernel = {
            (i, j): 1.0 if scores[i] > scores[j] else 0.5 if scores[i] == scores[j] else 0.0
            for i in positives
            for j in negatives
        }
        auroc = sum(kernel.values()) / len(kernel)
        of_positives = dict.fromkeys(patients, 0.0)
        of_negatives = dict.fromkeys(patients, 0.0)
        for i in positives:
            of_positives[patients[i]] += sum(kernel[i, j] for j in negatives) / len(negatives) - auroc
        for j in negatives:
            of_negatives[patients[j]] += sum(kernel[i, j] for i in positives) / len(positives) - auroc
        aurocs.append(auroc)
        sums.append((of_positives, of_negatives))
    num_with = [len({patients[i] for i in rows}) for rows in (positives, negatives)]
    num_patients = len(set(patients))
    covariance = np.zeros((2, 2))
    for a in range(2):
        for b in range(2):
            s10 = sum(sums[a][0][p] * sums[b][0][p] for p in set(patients)) * num_with[0] / (num_with[0] - 1)
            s01 = sum(sums[a][1][p] * sums[b][1][p] for p in set(patients)) * num_with[1] / (num_with[1] - 1)
            s11 = (
                sum(sums[a][0][p] * sums[b][1][p] for p in set(patients)) * num_patients / (num_patients - 1)
            )
            t11 = (
                sum(sums[b][0][p] * sums[a][1][p] for p in set(patients)) * num_patients / (num_patients - 1)
            )
            m, n = len(positives), len(negatives)
            covariance[a, b] = s10 / m**2 + s01 / n**2 + (s11 + t11) / (m * n)
    contrast = np.array([-1, 1])
    return float(contrast @ covariance @ contrast)


def make_models(seed: int, n: int = 30) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 == 0).astype(float)
    shared = rng.normal(labels)
    first, second = (np.round(2 * (shared + rng.normal(size=n))) / 2 for _ in range(2))
    return first, second, labels


def test_a_case_by_hand():
    # First: 3 beats both negatives, 1 beats one of them: 0.75. Second: 1. Placements differ by 0 and 0.5 in
    # both classes, whose variance is 0.125 / 2 each: z = 0.25 / sqrt(0.125).
    first, second = np.array([3, 1, 2, 0]), np.array([2, 3, 1, 0])
    result = delong_test(first, second, np.array([1, 1, 0, 0]), range(4))
    assert (result.first, result.second, result.value) == (0.75, 1.0, 0.25)
    assert result.standard_error == pytest.approx(math.sqrt(0.125))
    assert result.p_value == pytest.approx(0.4795001, abs=1e-7)
    assert (result.low, result.high) == pytest.approx((0.25 - 0.6929519, 0.25 + 0.6929519), abs=1e-6)
    assert result.method == INDEPENDENT


@pytest.mark.parametrize("seed", range(8))
def test_it_equals_the_formulas_pair_by_pair_with_ties(seed):
    first, second, labels = make_models(seed)
    for patients in (np.arange(30), np.arange(30) // 2, np.arange(30) % 7):
        result = delong_test(first, second, labels, patients)
        assert result.first == pytest.approx(roc_auc_score(labels, first), abs=1e-12)
        assert result.second == pytest.approx(roc_auc_score(labels, second), abs=1e-12)
        expected = slow_variance(first, second, labels, patients.tolist())
        assert result.standard_error**2 == pytest.approx(expected, rel=1e-9)
        assert result.method == (INDEPENDENT if len(set(patients)) == 30 else CLUSTERED)


def test_exchanging_the_models_turns_the_sign_and_nothing_else():
    first, second, labels = make_models(1)
    one, other = delong_test(first, second, labels, range(30)), delong_test(second, first, labels, range(30))
    assert (one.value, one.low, one.high) == pytest.approx((-other.value, -other.high, -other.low))
    assert one.p_value == pytest.approx(other.p_value)


def test_the_order_of_items_and_the_scale_of_scores_do_not_matter():
    first, second, labels = make_models(2)
    order = np.random.default_rng(0).permutation(30)
    one = delong_test(first, second, labels, np.arange(30) // 2)
    other = delong_test(np.exp(first[order]), second[order], labels[order], order // 2)
    assert (one.value, one.p_value) == pytest.approx((other.value, other.p_value))


def test_unknown_labels_are_left_out_with_their_patients():
    first, second, labels = make_models(3)
    labels[5:10] = -100
    keep = labels >= 0
    patients = np.where(keep, np.arange(30), 0)  # only unknown items repeat a patient
    one = delong_test(first, second, labels, patients)
    other = delong_test(first[keep], second[keep], labels[keep], np.arange(25))
    assert one == other
    assert one.method == INDEPENDENT


def test_another_level_is_another_interval():
    first, second, labels = make_models(4)
    wide, narrow = (delong_test(first, second, labels, range(30), level) for level in (0.95, 0.5))
    assert (wide.high - wide.value) / (narrow.high - narrow.value) == pytest.approx(1.959964 / 0.6744898)
    assert narrow.level == 0.5


def test_what_cannot_be_tested_says_why():
    first, second, labels = make_models(5)
    alike = delong_test(first, 2 * first + 1, labels, range(30))
    assert alike.value == 0.0
    assert np.isnan([alike.standard_error, alike.low, alike.high, alike.p_value]).all()
    assert "too little varies" in alike.undefined_because
    opposite = delong_test(labels, -labels, labels, range(30))
    assert (opposite.value, opposite.undefined_because) == (-1.0, alike.undefined_because)
    one_class = delong_test(first, second, np.ones(30), range(30))
    assert np.isnan([one_class.first, one_class.second, one_class.value, one_class.p_value]).all()
    assert one_class.undefined_because == "one class only"
    single = delong_test(first[:3], second[:3], np.array([1, 0, 0]), range(3))
    assert single.undefined_because == "a class has one patient only"
    assert not np.isnan(single.value)


def rejections(seed: int, repeats: int, is_clustered: bool, are_patients_known: bool) -> float:
    """Share of p-values below 0.05 for two models that are equally good."""
    rng = np.random.default_rng(seed)
    rejected = 0
    patients = np.arange(120) // (3 if is_clustered else 1)
    num = patients[-1] + 1
    for _ in range(repeats):
        labels = (rng.random(num) < 0.4).astype(float)[patients]
        shared = rng.normal(labels)
        models = []
        for _ in range(2):
            # Scans of one patient look alike to a model.
            own = rng.normal(size=num)[patients] if is_clustered else rng.normal(size=120)
            models.append(shared + own + 0.3 * rng.normal(size=120))
        ids = patients if are_patients_known else np.arange(120)
        rejected += delong_test(*models, labels, ids).p_value < 0.05
    return rejected / repeats


def test_equal_models_are_told_apart_in_five_percent():
    assert 0.04 < rejections(1, 2000, False, True) < 0.06


def test_several_scans_per_patient_need_the_clustered_variance():
    assert 0.04 < rejections(1, 2000, True, True) < 0.07
    assert rejections(1, 300, True, False) > 0.15


def test_holm_by_hand():
    # Sorted: 0.01 * 4, 0.02 * 3, 0.03 * 2 (not below the one before), 0.5 * 1.
    assert holm([0.03, 0.01, 0.5, 0.02]) == pytest.approx([0.06, 0.04, 0.5, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_leaves_out_what_is_undefined():
    corrected = holm([math.nan, 0.01, 0.04])
    assert math.isnan(corrected[0])
    assert corrected[1:] == pytest.approx([0.02, 0.04])


def test_what_does_not_fit_is_refused():
    first, second, labels = make_models(6)
    with pytest.raises(ValueError, match="level must be between 0 and 1, got 95"):
        delong_test(first, second, labels, range(30), level=95)
    with pytest.raises(ValueError, match=r"must be \(N,\), got shapes \(29,\) and \(30,\)"):
        delong_test(first, second[1:], labels, range(30))
    with pytest.raises(ValueError, match=r"must be \(N,\), got shapes \(29,\) and \(30,\)"):
        delong_test(first[1:], second, labels, range(30))
    with pytest.raises(ValueError, match="patient_ids must be one per item, got 3 for 30 items"):
        delong_test(first, second, labels, range(3))
