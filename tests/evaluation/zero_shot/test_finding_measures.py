import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score

from radtower.evaluation.decisions.finding_scores import FindingScores
from radtower.evaluation.decisions.thresholds import Threshold
from radtower.evaluation.results import Provenance
from radtower.evaluation.retrieval.precisions import average_precision_at_random
from radtower.evaluation.zero_shot.finding_measures import MeasureOptions, measure_items
from radtower.evaluation.zero_shot.scored_items import ScoredItems

PROVENANCE = Provenance(dataset="d", class_set="three", label_source="truth", protocol="prompts")
KEYS = ("a", "b", "c")
THRESHOLDS = [Threshold(value, "given") for value in (0.2, 0.5, 0.7)]
QUICK = MeasureOptions(num_resamples=20, specificity=0.8)


@pytest.fixture
def sample():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (30, 3))
    labels[4, 0] = labels[5, 0] = -100
    return FindingScores(scores=rng.random((30, 3)), labels=labels, patient_ids=np.arange(30) // 2, keys=KEYS)


def found(results, **wanted):
    return [r for r in results if all(getattr(r, name) == value for name, value in wanted.items())]


def test_means_over_every_class_set_and_the_findings_once(sample):
    items = ScoredItems(sample, np.arange(30), 30, "volume")
    results = measure_items(items, PROVENANCE, {"two": ["c", "a"]}, [THRESHOLDS], QUICK)
    known = [sample.labels[:, f] >= 0 for f in range(3)]
    areas = [roc_auc_score(sample.labels[known[f], f], sample.scores[known[f], f]) for f in range(3)]
    (mean,) = found(results, metric="macro_auroc", class_set="three")
    assert mean.value == pytest.approx(np.mean(areas))
    (two,) = found(results, metric="macro_auroc", class_set="two")
    assert two.value == pytest.approx((areas[0] + areas[2]) / 2)
    assert two.note.startswith("mean of 2 of 2 findings")
    assert results[0] == mean
    assert len(found(results, metric="auroc")) == 3
    decided = [
        f1_score(sample.labels[known[f], f], sample.scores[known[f], f] >= THRESHOLDS[f].value)
        for f in range(3)
    ]
    (f1,) = found(results, metric="macro_f1", class_set="two")
    assert f1.value == pytest.approx((decided[0] + decided[2]) / 2)
    assert f1.threshold_source == "given"
    assert len(found(results, metric="sensitivity_at_0.8_specificity")) == 3


def test_what_is_behind_a_number_is_said(sample):
    items = ScoredItems(sample, np.arange(30), 41, "study", "C = 1")
    results = measure_items(items, PROVENANCE, {}, (), QUICK)
    (of_a,) = found(results, metric="average_precision", finding="a")
    (of_b,) = found(results, metric="average_precision", finding="b")
    assert of_a.note.endswith("; C = 1; 30 studies of 41 volumes; 2 more without a known label")
    assert of_a.note.startswith("9 patients in the rarer class")
    assert of_a.n == 28
    assert of_b.note.endswith("; C = 1; 30 studies of 41 volumes")
    assert of_a.value == pytest.approx(
        average_precision_score(
            np.delete(sample.labels[:, 0], [4, 5]), np.delete(sample.scores[:, 0], [4, 5])
        )
    )
    assert of_a.chance == pytest.approx(average_precision_at_random(of_a.n_positive, 28))
    assert of_a.chance > of_a.n_positive / 28
    assert found(results, metric="auroc", finding="a")[0].chance is None


def test_one_class_is_undefined_and_not_one_half():
    scores = np.random.default_rng(0).random((6, 2))
    labels = np.array([[1, 0], [1, 1]] * 3)
    sample = FindingScores(scores=scores, labels=labels, patient_ids=np.arange(6), keys=("a", "b"))
    results = measure_items(
        ScoredItems(sample, np.arange(6), 6, "volume"), PROVENANCE, {"one": ["a"]}, (), QUICK
    )
    (of_a,) = found(results, metric="auroc", finding="a")
    assert of_a.value is None
    assert "one class only" in of_a.note
    assert found(results, metric="average_precision", finding="a")[0].chance is None
    (mean,) = found(results, metric="macro_auroc", class_set="three")
    assert mean.value == pytest.approx(roc_auc_score(labels[:, 1], scores[:, 1]))
    assert found(results, metric="macro_auroc", class_set="one")[0].value is None


def test_a_finding_without_scores_has_none_in_its_class_set():
    scores = np.random.default_rng(0).random((6, 2))
    scores[:, 0] = np.nan
    labels = np.array([[1, 0], [0, 1]] * 3)
    sample = FindingScores(
        scores=scores, labels=labels, patient_ids=np.arange(6), keys=("a", "b"), undefined={"a": "no head"}
    )
    results = measure_items(
        ScoredItems(sample, np.arange(6), 6, "volume"), PROVENANCE, {"b": ["b"], "a": ["a"]}, (), QUICK
    )
    assert "no head" in found(results, metric="auroc", finding="a")[0].note
    assert found(results, metric="macro_auroc", class_set="b")[0].value is not None
    assert found(results, metric="macro_auroc", class_set="a")[0].value is None
