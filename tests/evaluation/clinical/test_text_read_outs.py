"""Texts of retrieved reports: means over volumes, the baselines, and pairs without a score."""

import numpy as np
import pandas as pd
import pytest

from radtower.evaluation.clinical.report_search import FoundReports
from radtower.evaluation.clinical.text_metrics import checked_text_metrics
from radtower.evaluation.clinical.text_read_outs import TextScoring, measure_text_read_outs
from radtower.evaluation.results import Results
from radtower.evaluation.retrieval.ranks import RetrievalOptions

REPORTS = ["a b", "c", "a c"]
STUDIES = pd.DataFrame({"volume_id": list("xyz"), "patient_id": list("pqr"), "report": REPORTS})
FOUND = FoundReports(np.array([1, 2, 0]), np.array([[2, 0], [1, 0], [0, 2]]))


def _words(found, true):
    """Share of the words of the true report that are found; no score for a text without a c."""
    pairs = [(set(one.split()), set(other.split())) for one, other in zip(found, true, strict=True)]
    share = np.array([len(one & other) / len(other) for one, other in pairs])
    has_c = np.array([float("c" in one) or np.nan for one, _ in pairs])
    return {"share": share, "odd": share * has_c}


def _measure(most_common="a b", score=_words):
    options = RetrievalOptions(num_resamples=20, seed=1)
    return measure_text_read_outs(FOUND, STUDIES, TextScoring(score, "words"), most_common, "D", options)


def _values(metrics, name):
    return {m.protocol: (m.n, pytest.approx(m.value)) for m in metrics if m.metric == name}


def test_found_reports_and_the_most_common_one_by_hand():
    metrics = _measure()
    assert _values(metrics, "report_share") == {"top 1": (3, (1 + 1 + 1 / 2) / 3)}
    assert _values(metrics, "report_share_baseline")["top 1; most common report"] == (3, (1 + 0 + 1 / 2) / 3)
    assert _values(metrics, "report_share_difference")["top 1; model minus most common report"] == (3, 1 / 3)
    item = metrics[0]
    assert (item.label_source, item.class_set, item.direction) == ("words", "none", "image_to_report")
    assert item.note.startswith("mean over volumes of the score of each")
    Results(
        model_id="m",
        model_revision=None,
        created="2026-01-01T00:00:00Z",
        phantom=True,
        metrics=tuple(metrics),
    )


def test_the_random_report_is_one_draw_of_the_gallery():
    drawn = np.random.default_rng(1).integers(3, size=3)
    metrics = _measure()
    expected = _words([REPORTS[FOUND.gallery[row]] for row in drawn], REPORTS)["share"].mean()
    assert _values(metrics, "report_share_baseline")["top 1; random report"] == (3, expected)
    notes = [m.note for m in metrics if m.metric == "report_share_baseline" and "random" in m.protocol]
    assert notes[0].startswith("one draw per volume; mean over volumes")


def test_where_one_of_two_has_no_score_there_is_no_pair():
    metrics = _measure("c b")
    assert _values(metrics, "report_odd") == {"top 1": (2, 3 / 4)}
    assert _values(metrics, "report_odd_baseline")["top 1; most common report"] == (
        3,
        (1 / 2 + 1 + 1 / 2) / 3,
    )
    assert _values(metrics, "report_odd_difference")["top 1; model minus most common report"] == (2, 0.0)


def test_without_a_most_common_report_there_is_a_random_one():
    assert {m.protocol for m in _measure(None)} == {
        "top 1",
        "top 1; random report",
        "top 1; model minus random report",
    }


def test_no_score_at_all_is_null():
    metrics = _measure(score=lambda found, true: {"none": np.full(len(true), np.nan)})
    assert {(m.value, m.note.rpartition("undefined: ")[2]) for m in metrics} == {
        (None, "no report has a score")
    }


def test_names_are_checked_and_nothing_is_sent_to_a_server():
    assert checked_text_metrics(["rouge", "bleu", "rouge"]) == ("rouge", "bleu")
    with pytest.raises(ValueError, match="must run on this machine, got 'crimson', which can send reports"):
        checked_text_metrics(["bleu", "crimson"])
    with pytest.raises(ValueError, match=r"a text metric must be one of bleu, rouge, .*got 'meteor'"):
        checked_text_metrics(["meteor"])
