import numpy as np
import pytest
from sklearn import metrics as sk

from radtower.evaluation.bootstrap import patient_bootstrap
from radtower.evaluation.metrics import (
    auroc,
    auroc_per_finding,
    average_precision,
    binary_metrics,
    bootstrap_auroc,
    macro_auroc,
    macro_mean,
    weighted_auroc,
    weighted_average_precision,
)


def make_sample(seed: int, n: int = 60, findings: int = 1, levels: int = 8) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, findings)) < 0.35).astype(np.float64)
    scores = np.round(rng.normal(labels, 1.0) * levels / 4) / levels
    return scores, labels


def test_auroc_by_hand_with_a_tie():
    # Pairs (positive, negative): 0.8 wins both, 0.4 ties with 0.4 and beats 0.1: 3.5 of 4.
    scores, labels = np.array([0.8, 0.4, 0.4, 0.1]), np.array([1, 1, 0, 0])
    assert auroc(scores, labels) == pytest.approx(0.875)
    assert auroc(-scores, labels) == pytest.approx(0.125)
    assert auroc(np.zeros(4), labels) == 0.5


def test_average_precision_by_hand():
    # Positives at ranks 1 and 3: (1/1 + 2/3) / 2.
    assert average_precision(np.array([4.0, 3.0, 2.0, 1.0]), np.array([1, 0, 1, 0])) == pytest.approx(5 / 6)


@pytest.mark.parametrize("seed", range(10))
def test_ranking_metrics_equal_scikit_learn_with_ties(seed):
    scores, labels = (column[:, 0] for column in make_sample(seed))
    assert len(np.unique(scores)) < len(scores)
    assert auroc(scores, labels) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert average_precision(scores, labels) == pytest.approx(
        sk.average_precision_score(labels, scores), abs=1e-12
    )


@pytest.mark.parametrize("seed", range(5))
def test_decisions_equal_scikit_learn(seed):
    scores, labels = (column[:, 0] for column in make_sample(seed))
    predicted = scores >= 0.5
    result = binary_metrics(predicted, labels)
    expected = {
        "precision": sk.precision_score(labels, predicted),
        "recall": sk.recall_score(labels, predicted),
        "f1": sk.f1_score(labels, predicted),
        "kappa": sk.cohen_kappa_score(labels, predicted),
    }
    for name, value in expected.items():
        assert getattr(result, name)[0] == pytest.approx(value, abs=1e-12), name


def test_decisions_by_hand():
    predicted = np.array([1, 1, 1, 0, 0, 0, 0, 1], dtype=bool)
    labels = np.array([1, 1, 0, 1, 0, 0, 0, -100])
    result = binary_metrics(predicted, labels)
    # tp 2, fp 1, fn 1, tn 3: agreement 5/7, chance (3*3 + 4*4) / 49.
    assert result.precision[0] == result.recall[0] == result.f1[0] == pytest.approx(2 / 3)
    assert result.kappa[0] == pytest.approx((5 / 7 - 25 / 49) / (1 - 25 / 49))


def test_undefined_decisions_are_nan():
    nothing = np.zeros(3, dtype=bool)
    result = binary_metrics(nothing, np.zeros(3))
    assert np.isnan([result.precision[0], result.recall[0], result.f1[0], result.kappa[0]]).all()
    missed = binary_metrics(nothing, np.array([1, 0, 0]))
    assert np.isnan(missed.precision[0])
    assert (missed.recall[0], missed.f1[0], missed.kappa[0]) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize("metric", [auroc, average_precision])
@pytest.mark.parametrize("labels", [[1, 1, 1], [0, 0, 0], [-100, -100, -100], [1, -100, 1]])
def test_one_class_is_undefined(metric, labels):
    assert np.isnan(metric(np.array([0.1, 0.2, 0.3]), np.array(labels)))


@pytest.mark.parametrize("metric", [auroc, average_precision])
@pytest.mark.parametrize("size", [0, 1])
def test_one_item_and_none_are_undefined(metric, size):
    assert np.isnan(metric(np.ones(size), np.ones(size)))


@pytest.mark.parametrize("metric", [auroc, average_precision])
def test_the_order_of_rows_and_the_scale_of_scores_do_not_matter(metric):
    scores, labels = (column[:, 0] for column in make_sample(3))
    order = np.random.default_rng(0).permutation(len(scores))
    assert metric(scores[order], labels[order]) == pytest.approx(metric(scores, labels), abs=1e-12)
    assert metric(np.exp(3 * scores), labels) == pytest.approx(metric(scores, labels), abs=1e-12)


def test_unknown_labels_are_left_out_per_finding():
    scores, labels = make_sample(1, findings=3)
    labels[:5, 0] = -100
    labels[:, 2] = 1
    values = auroc_per_finding(scores, labels)
    assert values[0] == pytest.approx(sk.roc_auc_score(labels[5:, 0], scores[5:, 0]))
    assert values[1] == pytest.approx(sk.roc_auc_score(labels[:, 1], scores[:, 1]))
    assert np.isnan(values[2])
    macro = macro_auroc(scores, labels)
    assert macro.value == pytest.approx(values[:2].mean())
    assert (macro.num_defined, macro.num_findings) == (2, 3)


def test_a_macro_mean_of_nothing_is_undefined():
    macro = macro_mean(np.array([np.nan, np.nan]))
    assert np.isnan(macro.value)
    assert (macro.num_defined, macro.num_findings) == (0, 2)


@pytest.mark.parametrize(
    ("weighted", "plain"), [(weighted_auroc, auroc), (weighted_average_precision, average_precision)]
)
def test_counts_mean_repeats(weighted, plain):
    scores, labels = (column[:, 0] for column in make_sample(2, n=20))
    labels[3] = -100
    counts = np.random.default_rng(1).integers(0, 4, size=(30, 20))
    expected = [plain(np.repeat(scores, row), np.repeat(labels, row)) for row in counts]
    np.testing.assert_allclose(weighted(scores, labels, counts), expected, atol=1e-12)


def test_counts_mean_repeats_for_decisions():
    scores, labels = (column[:, 0] for column in make_sample(2, n=20))
    counts = np.random.default_rng(1).integers(0, 4, size=(10, 20))
    together = binary_metrics(scores > 0.4, labels, counts)
    for row, repeats in enumerate(counts):
        alone = binary_metrics(np.repeat(scores > 0.4, repeats), np.repeat(labels, repeats))
        assert together.f1[row] == pytest.approx(alone.f1[0])
        assert together.kappa[row] == pytest.approx(alone.kappa[0])


def test_the_fast_bootstrap_equals_the_naive_loop():
    scores, labels = make_sample(4, n=40, findings=3)
    labels[:6, 1] = -100
    labels[:, 2] = np.arange(40) == 7  # one positive: undefined in a third of the resamples
    patients = np.arange(40) // 2
    per_finding, macro = bootstrap_auroc(scores, labels, patients, num_resamples=150, seed=9)
    for column, interval in enumerate(per_finding):
        naive = patient_bootstrap(
            lambda r, c=column: auroc(scores[r, c], labels[r, c]), patients, 150, seed=9
        )
        assert (interval.low, interval.high) == pytest.approx((naive.low, naive.high), abs=1e-12)
        assert interval.num_undefined == naive.num_undefined
    assert per_finding[2].num_undefined > 30
    naive = patient_bootstrap(lambda r: macro_auroc(scores[r], labels[r]).value, patients, 150, seed=9)
    assert (macro.low, macro.high) == pytest.approx((naive.low, naive.high), abs=1e-12)


@pytest.mark.timeout(60)
def test_2000_resamples_of_18_findings_end():
    scores, labels = make_sample(0, n=500, findings=18, levels=1000)
    # The naive loop takes minutes, which the time limit of a test does not allow.
    per_finding, macro = bootstrap_auroc(scores, labels, np.arange(500), num_resamples=2000)
    assert macro.low < macro_auroc(scores, labels).value < macro.high
    assert len(per_finding) == 18


def test_shapes_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"must be \(N,\), got shapes \(3,\) and \(2,\)"):
        auroc(np.zeros(3), np.zeros(2))
    with pytest.raises(ValueError, match=r"must be \(N,\), got shapes \(2, 2\)"):
        auroc(np.zeros((2, 2)), np.zeros((2, 2)))
    with pytest.raises(ValueError, match=r"must be \(N, F\), got shapes \(3,\) and \(3,\)"):
        auroc_per_finding(np.zeros(3), np.zeros(3))
    with pytest.raises(ValueError, match=r"must be \(N, F\), got shapes \(3, 2\) and \(3, 1\)"):
        bootstrap_auroc(np.zeros((3, 2)), np.zeros((3, 1)), [1, 2, 3])


def test_scores_that_are_not_numbers_are_refused():
    with pytest.raises(ValueError, match="got 1 NaN"):
        auroc(np.array([0.1, np.nan]), np.array([0, 1]))


@pytest.mark.parametrize("value", [-1.0, 0.5, np.nan])
def test_labels_that_are_not_decided_are_refused(value):
    with pytest.raises(ValueError, match=rf"labels must be 0, 1 or -100, got \[{value}\]"):
        binary_metrics(np.array([True, False]), np.array([1.0, value]))
