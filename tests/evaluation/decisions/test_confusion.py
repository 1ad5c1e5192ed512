import warnings

import numpy as np
import pytest
from sklearn import metrics as sk

from radtower.evaluation.decisions.confusion import Confusion, count_decisions

ONCE = np.ones((30, 1))


def make_decisions(seed: int, findings: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.random((30, findings)) < 0.4, (rng.random((30, findings)) < 0.3).astype(float)


@pytest.mark.parametrize("seed", range(10))
def test_every_metric_equals_scikit_learn(seed):
    called, labels = make_decisions(seed)
    labels[:4, 1] = -100
    decisions = count_decisions(called, labels, ONCE)
    for column in range(3):
        known = labels[:, column] >= 0
        truth, answer = labels[known, column], called[known, column]
        expected = {
            "accuracy": sk.accuracy_score(truth, answer),
            "balanced_accuracy": sk.balanced_accuracy_score(truth, answer),
            "precision": sk.precision_score(truth, answer),
            "recall": sk.recall_score(truth, answer),
            "specificity": sk.recall_score(truth, answer, pos_label=0),
            "f1": sk.f1_score(truth, answer),
            "weighted_f1": sk.f1_score(truth, answer, average="weighted"),
            "kappa": sk.cohen_kappa_score(truth, answer),
        }
        for name, value in expected.items():
            assert getattr(decisions, name)()[column, 0] == pytest.approx(value, abs=1e-12), name


def test_counts_mean_repeats():
    called, labels = make_decisions(1)
    counts = np.random.default_rng(0).integers(0, 4, size=(30, 8))
    together = count_decisions(called, labels, counts.astype(float))
    for column, repeats in enumerate(counts.T):
        rows = np.repeat(np.arange(30), repeats)
        alone = count_decisions(called[rows], labels[rows], np.ones((len(rows), 1)))
        for name in ("tp", "fp", "fn", "tn"):
            np.testing.assert_array_equal(getattr(together, name)[:, column], getattr(alone, name)[:, 0])


def test_weighted_f1_is_not_the_f1_of_the_positive_class():
    # One of 10 is positive and missed, one negative is called: F1 0, and 9/10 of 16/18.
    decisions = Confusion(*(np.array([float(count)]) for count in (0, 1, 1, 8)))
    assert decisions.f1()[0] == 0.0
    assert decisions.weighted_f1()[0] == pytest.approx(0.8)


@pytest.mark.parametrize(("called", "truth"), [(1, 1), (0, 0), (1, 0), (0, 1)])
def test_weighted_f1_of_one_item_equals_scikit_learn(called, truth):
    decisions = count_decisions(np.array([[called == 1]]), np.array([[float(truth)]]), np.ones((1, 1)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = sk.f1_score([truth], [called], average="weighted")
    assert decisions.weighted_f1()[0, 0] == expected


def test_what_has_nothing_to_divide_by_is_undefined():
    nothing = Confusion(*(np.zeros(1) for _ in range(4)))
    names = ("accuracy", "precision", "recall", "specificity", "f1", "weighted_f1", "kappa")
    assert all(np.isnan(getattr(nothing, name)()[0]) for name in names)
    assert np.isnan(Confusion(*(np.array([x]) for x in (3.0, 0.0, 1.0, 0.0))).balanced_accuracy()[0])
