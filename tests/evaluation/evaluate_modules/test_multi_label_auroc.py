"""The module gives what scikit-learn gives, and what our metrics give, as plain Python."""

import json

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from radtower.evaluation.metrics import bootstrap_auroc

SCORES = [[0.9, 0.2], [0.4, 0.7], [0.6, 0.1], [0.1, 0.3]]
LABELS = [[1, 0], [1, 0], [0, 0], [0, -100]]


@pytest.fixture
def auroc(load_module):
    return load_module("multi_label_auroc")


def test_by_hand_with_a_finding_that_is_undefined(auroc):
    result = auroc.compute(predictions=SCORES, references=LABELS, finding_names=["nodule", "effusion"])
    assert result == {
        "macro_auroc": 0.75,
        "num_defined": 1,
        "num_findings": 2,
        "auroc": {"nodule": 0.75, "effusion": None},
        "n": {"nodule": 4, "effusion": 3},
        "n_positive": {"nodule": 2, "effusion": 0},
    }
    nothing = auroc.compute(predictions=[[0.5]], references=[[1]])
    assert (nothing["macro_auroc"], nothing["auroc"], nothing["num_defined"]) == (None, {"0": None}, 0)


def test_random_scores_give_the_numbers_of_scikit_learn(auroc):
    rng = np.random.default_rng(0)
    scores = rng.normal(size=(50, 3)).round(1)  # with ties
    labels = rng.integers(0, 2, (50, 3))
    for rows in (slice(0, 20), slice(20, 50)):
        auroc.add_batch(predictions=scores[rows], references=labels[rows])
    result = auroc.compute()
    expected = roc_auc_score(labels, scores, average=None)
    assert list(result["auroc"].values()) == pytest.approx(expected.tolist())
    assert result["macro_auroc"] == pytest.approx(roc_auc_score(labels, scores))


def test_intervals_are_those_of_the_patient_bootstrap_and_json_takes_everything(auroc):
    rng = np.random.default_rng(1)
    scores, labels = rng.normal(size=(30, 2)), rng.integers(0, 2, (30, 2))
    labels[:, 1] = 1
    patients = [f"p{row // 2}" for row in range(30)]
    result = auroc.compute(
        predictions=scores, references=labels, patient_ids=patients, num_resamples=40, seed=3
    )
    by_finding, macro = bootstrap_auroc(scores, labels, patients, 40, 3)
    assert result["auroc_ci"] == {"0": [by_finding[0].low, by_finding[0].high], "1": None}
    assert result["macro_auroc_ci"] == [macro.low, macro.high]
    assert (result["ci_level"], result["ci_method"]) == (0.95, "patient bootstrap, percentile, 40 resamples")
    assert json.loads(json.dumps(result)) == result


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"references": [[1, 0], [1, 0], [0, 0], [0, -1]]}, r"labels must be 0, 1 or -100, got \[-1.0\]"),
        ({"predictions": [[0.1, float("nan")], *SCORES[1:]]}, "1 NaN"),
        (
            {"predictions": [[0.1], *SCORES[1:]]},
            r"predictions must be lists of one length above 0, got 4 of .*1, 2",
        ),
        ({"references": [[1]] * 4}, r"must be \(N, F\), got shapes \(4, 2\) and \(4, 1\)"),
        (
            {"finding_names": ["a"]},
            "finding_names must be 2 different names, one per column, got 1, of which 1",
        ),
        ({"finding_names": ["a", "a"]}, "got 2, of which 1 differ"),
        ({"patient_ids": ["a"]}, "patient_ids must have one id per row, got 1 for 4"),
    ],
)
def test_invalid_input_is_refused(auroc, change, message):
    with pytest.raises(ValueError, match=message):
        auroc.compute(**{"predictions": SCORES, "references": LABELS} | change)


def test_it_says_what_it_is(auroc):
    assert (auroc.name, auroc.module_type) == ("multi_label_auroc", "metric")
    assert "hanley1982meaning" in auroc.citation
    assert "-1, which published" in auroc.inputs_description
    assert "never 0.5" in auroc.description
