import numpy as np
import pytest
from sklearn import metrics as sk

from radtower.evaluation.ranked_scores import RankedScores


def one(scores, labels) -> np.ndarray:
    return RankedScores(np.asarray(scores, float), np.asarray(labels)).weighed(np.ones((len(scores), 1)))


def sensitivity(scores, labels, specificity: float) -> float:
    return float(one(scores, labels).sensitivity_at(specificity)[0])


def sensitivity_by_roc(scores, labels, specificity: float) -> float:
    """Every threshold there is, and one above all."""
    false_alarms, found, _ = sk.roc_curve(labels, scores, drop_intermediate=False)
    return float(found[1 - false_alarms >= specificity - 1e-9].max())


def make_sample(seed: int, n: int = 50) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 == 0).astype(float)
    return np.round(rng.normal(labels) * 3) / 3, labels


def test_sensitivity_at_specificity_by_hand():
    # Five negatives 1 to 5; positives 2.5, 4.5, 4.5, 6. At 0.8 four negatives must lie below the threshold.
    scores, labels = [1, 2, 3, 4, 5, 2.5, 4.5, 4.5, 6], [0, 0, 0, 0, 0, 1, 1, 1, 1]
    assert sensitivity(scores, labels, 0.8) == 0.75
    assert sensitivity(scores, labels, 0.81) == 0.25
    assert sensitivity(scores, labels, 0.4) == 1.0


def test_a_threshold_cannot_part_a_tie():
    # Half of the negatives tie with the positive: calling it positive calls them positive.
    assert sensitivity([0, 0, 1, 1, 1], [0, 0, 0, 0, 1], 0.5) == 1.0
    assert sensitivity([0, 0, 1, 1, 1], [0, 0, 0, 0, 1], 0.6) == 0.0


@pytest.mark.parametrize("specificity", [0.1, 0.3, 0.7, 0.9])
def test_a_specificity_that_is_reached_exactly_counts(specificity):
    # 0.1 * 3 * 10 is not 3 in floating point.
    for num_negative in (10, 30, 70, 110):
        scores = np.r_[np.arange(num_negative), round(specificity * num_negative) - 0.5]
        labels = np.r_[np.zeros(num_negative), 1]
        assert sensitivity(scores, labels, specificity) == 1.0
        assert sensitivity(scores - labels, labels, specificity) == 0.0


@pytest.mark.parametrize("seed", range(12))
def test_sensitivity_equals_the_best_point_of_the_roc_curve(seed):
    scores, labels = make_sample(seed)
    for specificity in (0.5, 0.8, 0.9, 0.95):
        expected = sensitivity_by_roc(scores, labels, specificity)
        assert sensitivity(scores, labels, specificity) == pytest.approx(expected, abs=1e-12)


def test_a_resample_has_an_operating_point_of_its_own():
    scores, labels = make_sample(3, n=40)
    counts = np.random.default_rng(0).integers(0, 3, size=(40, 25))
    together = RankedScores(scores, labels).weighed(counts.astype(float))
    for column, repeats in enumerate(counts.T):
        rows = np.repeat(np.arange(40), repeats)
        alone = one(scores[rows], labels[rows])
        assert together.sensitivity_at(0.9)[column] == pytest.approx(alone.sensitivity_at(0.9)[0])
        assert together.auroc()[column] == pytest.approx(sk.roc_auc_score(labels[rows], scores[rows]))
        precision = sk.average_precision_score(labels[rows], scores[rows])
        assert together.average_precision()[column] == pytest.approx(precision)


@pytest.mark.parametrize("seed", range(4))
def test_mostly_positive_samples_equal_scikit_learn(seed):
    scores, labels = make_sample(seed)
    ranks = one(scores, 1 - labels)
    assert ranks.auroc()[0] == pytest.approx(sk.roc_auc_score(1 - labels, scores), abs=1e-12)
    expected = sk.average_precision_score(1 - labels, scores)
    assert ranks.average_precision()[0] == pytest.approx(expected, abs=1e-12)


def test_equal_scores_for_all_know_nothing():
    labels = np.r_[1, np.zeros(9)]
    ranks = one(np.zeros(10), labels)
    assert (ranks.auroc()[0], ranks.average_precision()[0], ranks.sensitivity_at(0.9)[0]) == (0.5, 0.1, 0.0)


def test_the_order_of_rows_does_not_matter():
    scores, labels = make_sample(5)
    order = np.random.default_rng(1).permutation(len(scores))
    assert sensitivity(scores[order], labels[order], 0.8) == sensitivity(scores, labels, 0.8)


@pytest.mark.parametrize("labels", [[1, 1], [0, 0], [-100, -100], [1, -100], []])
def test_one_class_has_no_sensitivity_at_a_specificity(labels):
    assert np.isnan(sensitivity(np.arange(len(labels)), np.array(labels), 0.9))
