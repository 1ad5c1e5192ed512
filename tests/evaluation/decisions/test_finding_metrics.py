import numpy as np
import pytest
from sklearn import metrics as sk

from radtower.evaluation.bootstrap import patient_bootstrap
from radtower.evaluation.decisions.finding_metrics import (
    DECISION_METRICS,
    decision_results,
    decision_task,
    ranking_results,
    ranking_task,
)
from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.decisions.thresholds import Threshold, fixed_thresholds
from radtower.evaluation.results import Provenance

PROVENANCE = Provenance(dataset="toy, test split", class_set="3 findings", label_source="drawn")
KEYS = ("nodule", "effusion", "hernia")


def make_sample(seed: int = 0, n: int = 60, **changes) -> FindingScores:
    rng = np.random.default_rng(seed)
    labels = np.stack([rng.permutation(np.arange(n) % (2 + f) == 0) for f in range(3)], axis=1).astype(float)
    scores = np.round(rng.normal(labels), 1)
    labels[:5, 0] = -100
    parts = {"scores": scores, "labels": labels, "patient_ids": np.arange(n) // 2, "keys": KEYS}
    return FindingScores(**(parts | changes))


def by_name(results) -> dict:
    return {(item.metric, item.finding): item for item in results}


FEW_OF_TWO = "mean of 2 of 3 findings; 2 of them with few patients in the rarer class"


def test_ranking_metrics_with_their_macro_means_first():
    sample = make_sample()
    results = ranking_results(sample, PROVENANCE, num_resamples=100)
    names = ["auroc", "average_precision", "sensitivity_at_0.9_specificity"]
    assert [item.metric for item in results[:3]] == [f"macro_{name}" for name in names]
    assert [(item.metric, item.finding) for item in results[3:]] == [(n, k) for k in KEYS for n in names]
    found = by_name(results)
    aurocs = []
    for column, key in enumerate(KEYS):
        known = sample.labels[:, column] >= 0
        labels, scores = sample.labels[known, column], sample.scores[known, column]
        item = found["auroc", key]
        assert item.value == pytest.approx(sk.roc_auc_score(labels, scores))
        assert (item.n, item.n_positive) == (len(labels), int(labels.sum()))
        precision = found["average_precision", key]
        assert precision.value == pytest.approx(sk.average_precision_score(labels, scores))
        aurocs.append(item.value)
    macro = found["macro_auroc", None]
    assert macro.value == pytest.approx(np.mean(aurocs))
    assert (macro.n, macro.note) == (60, FEW_OF_TWO.replace("2 of", "3 of"))
    assert macro.ci_low < macro.value < macro.ci_high
    assert "anew in every resample" in found["sensitivity_at_0.9_specificity", "hernia"].note


def test_intervals_are_those_of_the_naive_bootstrap():
    sample = make_sample(1)
    found = by_name(ranking_results(sample, PROVENANCE, num_resamples=60, seed=4))
    scores, labels = sample.scores, sample.labels
    naive = patient_bootstrap(
        lambda rows: sk.average_precision_score(labels[rows, 1], scores[rows, 1]), sample.patient_ids, 60, 4
    )
    item = found["average_precision", "effusion"]
    assert (item.ci_low, item.ci_high) == pytest.approx((naive.low, naive.high), abs=1e-12)


def test_decisions_use_the_threshold_of_their_finding():
    sample = make_sample()
    thresholds = [Threshold(value, "by hand") for value in (0.0, 0.5, 1.0)]
    found = by_name(decision_results(sample, thresholds, PROVENANCE, num_resamples=100))
    for column, (key, threshold) in enumerate(zip(KEYS, thresholds, strict=True)):
        known = sample.labels[:, column] >= 0
        labels, called = sample.labels[known, column], sample.scores[known, column] >= threshold.value
        assert found["f1", key].value == pytest.approx(sk.f1_score(labels, called))
        weighted = sk.f1_score(labels, called, average="weighted")
        assert found["weighted_f1", key].value == pytest.approx(weighted)
        assert found["f1", key].note.startswith(f"threshold >= {threshold.value:g}; ")
        assert found["f1", key].threshold == threshold.value
    assert {item.threshold_source for item in found.values()} == {"by hand"}
    macro = np.mean([found["precision", key].value for key in KEYS])
    assert found["macro_precision", None].value == pytest.approx(macro)


def test_a_strict_threshold_is_named_so():
    strict = [Threshold(0.5, "by hand", is_strict=True)] * 3
    found = by_name(decision_results(make_sample(), strict, PROVENANCE, num_resamples=5))
    assert found["f1", "nodule"].note.startswith("threshold > 0.5; ")
    assert found["f1", "nodule"].threshold == np.nextafter(0.5, 1)
    assert found["macro_f1", None].threshold is None


def test_one_label_value_is_undefined_everywhere():
    labels = make_sample().labels.copy()
    labels[:, 1], labels[:, 2] = 1, -100
    sample = make_sample(labels=labels)
    results = [
        *ranking_results(sample, PROVENANCE, num_resamples=50),
        *decision_results(sample, fixed_thresholds(0, 3), PROVENANCE, num_resamples=50),
    ]
    for item in results:
        if item.finding == "effusion":
            assert item.value is None
            assert "undefined: one class only: 60 of 60 have the finding" in item.note
        elif item.finding == "hernia":
            assert item.value is None
            assert "undefined: no known label" in item.note
        elif item.finding is None:
            assert item.note == FEW_OF_TWO.replace("2 of", "1 of")
    found = by_name(results)
    assert found["macro_accuracy", None].value == found["accuracy", "nodule"].value


def test_a_resample_with_one_class_counts_as_undefined():
    labels = np.zeros((60, 3))
    labels[7] = 1  # drawn with its patient in two thirds of the resamples
    found = by_name(decision_results(make_sample(labels=labels), fixed_thresholds(0, 3), PROVENANCE))
    note = found["accuracy", "nodule"].note
    num_undefined = int(note.split("; ")[2].split()[0])
    assert 2000 * 0.3 < num_undefined < 2000 * 0.42
    assert "of 2000 resamples undefined and left out" in note


def test_no_threshold_means_no_decision():
    thresholds = [
        Threshold(0.0, "validation split, max F1"),
        Threshold(
            None, "validation split, max F1", undefined_because="no threshold: validation has no positive"
        ),
        Threshold(0.0, "validation split, max F1"),
    ]
    found = by_name(decision_results(make_sample(), thresholds, PROVENANCE, num_resamples=20))
    for name in DECISION_METRICS:
        assert found[name, "effusion"].value is None
        assert "validation has no positive" in found[name, "effusion"].note
    assert found["macro_accuracy", None].note == FEW_OF_TWO
    assert found["f1", "hernia"].value is not None


def test_nothing_called_has_no_precision_and_says_so():
    found = by_name(decision_results(make_sample(), fixed_thresholds(99, 3), PROVENANCE, num_resamples=20))
    assert found["recall", "nodule"].value == 0.0
    assert found["precision", "nodule"].value is None
    assert (
        "precision has nothing to divide by: no item is called positive" in found["precision", "nodule"].note
    )
    assert "undefined for every finding" in found["macro_precision", None].note


def test_a_finding_that_a_read_out_does_not_know_is_undefined_with_its_reason():
    scores = make_sample().scores.copy()
    scores[:, 1] = np.nan
    sample = make_sample(scores=scores, undefined={"effusion": "the finding head does not know it"})
    found = by_name(
        [
            *ranking_results(sample, PROVENANCE, num_resamples=20),
            *decision_results(sample, fixed_thresholds(0, 3), PROVENANCE, num_resamples=20),
        ]
    )
    for name in ("auroc", "f1", "accuracy"):
        assert found[name, "effusion"].value is None
        assert "the finding head does not know it" in found[name, "effusion"].note
    assert found["macro_auroc", None].note == FEW_OF_TWO


def test_few_patients_of_a_class_are_pointed_out():
    labels = np.zeros((200, 3))
    labels[:100, 0] = 1  # 50 patients with it, 50 without
    labels[:98, 1] = 1  # 49 with it
    labels[97:, 2] = 1  # 49 without it, of which one has both
    sample = make_sample(n=200, labels=labels)
    found = by_name(ranking_results(sample, PROVENANCE, num_resamples=5))
    assert found["auroc", "nodule"].note is None
    for key in ("effusion", "hernia"):
        note = "49 patients in the rarer class: below 50 intervals tend to be too narrow"
        assert found["auroc", key].note == note
    few = "mean of 3 of 3 findings; 2 of them with few patients in the rarer class"
    assert found["macro_auroc", None].note == few


def test_two_models_are_compared_on_the_same_resamples():
    one, other = make_sample(0), make_sample(0)
    better = FindingScores(
        scores=one.scores + one.labels, labels=one.labels, patient_ids=one.patient_ids, keys=KEYS
    )
    tasks = [ranking_task(sample, PROVENANCE) for sample in (better, one, other)]
    gain = by_name(tasks[0].minus(tasks[1], "plain", num_resamples=100))["macro_auroc_difference", None]
    assert 0 < gain.ci_low < gain.value < gain.ci_high
    same = by_name(tasks[2].minus(tasks[1], "plain", num_resamples=100))["macro_auroc_difference", None]
    assert (same.value, same.ci_low, same.ci_high) == (0.0, 0.0, 0.0)


def test_the_order_of_items_does_not_matter():
    sample = make_sample()
    order = np.random.default_rng(2).permutation(60)
    shuffled = make_sample(
        scores=sample.scores[order], labels=sample.labels[order], patient_ids=sample.patient_ids[order]
    )
    for make in (ranking_task, lambda s, p: decision_task(s, fixed_thresholds(0.3, 3), p)):
        np.testing.assert_allclose(make(sample, PROVENANCE).values(), make(shuffled, PROVENANCE).values())


def test_what_makes_no_sense_is_refused():
    sample = make_sample()
    with pytest.raises(ValueError, match="specificity must be between 0 and 1, got 90"):
        ranking_task(sample, PROVENANCE, specificity=90)
    with pytest.raises(ValueError, match="thresholds must be one per finding, got 2 for 3 findings"):
        decision_task(sample, fixed_thresholds(0.5, 2), PROVENANCE)
