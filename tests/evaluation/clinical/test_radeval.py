"""The adapter on RadEval itself, where it is installed: the metrics that need no weights."""

import warnings
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("radeval") is None:
    pytest.skip("the extra radeval is not installed", allow_module_level=True)

pytestmark = pytest.mark.filterwarnings("default")

from radtower.evaluation.clinical.radeval import SOURCE, RadEvalScorer  # noqa: E402

TRUE = ["No acute disease. Small nodule in the right lung.", "There is a pleural effusion."]
FOUND = ["Small nodule in right lung. No acute disease.", "No pleural effusion."]


def test_bleu_and_rouge_score_each_pair(capsys):
    scores = RadEvalScorer(["bleu", "rouge"])(FOUND, TRUE)
    assert list(scores) == ["bleu", "rouge1", "rouge2", "rougeL"]
    assert scores["rouge1"].tolist() == pytest.approx([16 / 17, 1 / 2])
    assert scores["rouge2"].tolist() == pytest.approx([2 / 3, 1 / 3])
    assert (scores["bleu"] < 0.01).all()
    same = RadEvalScorer(["bleu"])(TRUE, TRUE)["bleu"]
    assert same.shape == (2,)
    assert same[0] == pytest.approx(1, abs=1e-6)
    assert np.isfinite(same).all()
    assert capsys.readouterr().out == ""


def test_filters_of_warnings_stay_as_they_are():
    before = list(warnings.filters)
    RadEvalScorer(["bleu"])
    assert warnings.filters == before


def test_what_cannot_be_loaded_is_named(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(OSError, match="RadEval must be able to load nothing_like_it, got ValueError"):
        RadEvalScorer(["nothing_like_it"])


def test_another_number_of_values_is_refused():
    scorer = RadEvalScorer(["bleu"])
    scorer._scorers = {"bleu": lambda refs, hyps: {"bleu": [0.5]}}
    with pytest.raises(ValueError, match=r"must give 2 values of bleu, got shape \(1,\). Leave bleu out"):
        scorer(FOUND, TRUE)


def test_the_source_names_the_release():
    assert SOURCE.startswith("text of the reports, by RadEval 2.")
