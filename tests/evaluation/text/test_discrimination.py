"""Error discrimination: the questions, and that nobody wins by a tie."""

import numpy as np
import pytest

from radtower.data.reports.corruption import KINDS, corrupt_many
from radtower.evaluation.task_scores import NothingToMeasure
from radtower.evaluation.text.discrimination import ErrorDiscrimination, NegationSensitivity, QueryControl
from radtower.evaluation.text.questions import Item, answers


def true(row: int) -> str:
    return f"Small left pleural effusion is stable. There is a nodule. Case {chr(97 + row)}{chr(97 + row)}."


@pytest.fixture
def many(make_table):
    # Twelve different right answers: an answer that several studies share is asked once.
    return make_table([(f"Findings number {row}.", true(row)) for row in range(12)])


def test_an_answer_counts_only_above_all_others(oracle):
    items = [
        Item("q", "right", ("w1", "w2", "w3"), 0, 0),
        Item("tie", "right", ("w1", "w2", "w3"), 0, 1),
        Item("lost", "right", ("w1",), 1, 1),
        Item("rounding", "right", ("w1",), 1, 0),
    ]
    told = {("q", "right"): 0.2, ("tie", "w1"): -0.1, ("lost", "w1"): 0.1, ("rounding", "right"): 1e-7}
    is_right, by_lot = answers(oracle(told), items, (3, 2))
    np.testing.assert_array_equal(is_right, [[1, 0], [0, 0], [np.nan, np.nan]])
    np.testing.assert_allclose(by_lot, [[1, 1 / 2], [1 / 3, 0], [np.nan, np.nan]])


def test_questions_have_the_impression_and_three_errors_of_it(many):
    task = ErrorDiscrimination(many, "toy", "findings_impression")
    mixed = [item for item in task.items if item.column == 0]
    assert [item.right for item in mixed] == [true(row) for row in range(12)]
    assert mixed[3].query == "Findings number 3."
    assert all(len({item.right, *item.wrong}) == 4 for item in mixed)
    every = {c.text for c in corrupt_many(true(3), 1000, np.random.default_rng(0))}
    assert {text for item in task.items if item.row == 3 for text in item.wrong} <= every
    assert task.items == ErrorDiscrimination(many, "toy", "findings_impression").items
    assert task.items != ErrorDiscrimination(many, "toy", "findings_impression", seed=1).items


def test_an_answer_that_several_studies_share_is_asked_once(make_table):
    shared = [("First.", true(0)), ("Second.", f"1. {true(0).upper()}"), ("Third.", true(1))]
    items = ErrorDiscrimination(make_table(shared), "toy", "findings_impression").items
    assert {item.query for item in items} == {"First.", "Third."}


def test_metrics_by_hand_and_too_few_questions_are_not_measured(many, make_table, oracle):
    told = {(f"Findings number {row}.", true(row)): 1.0 for row in range(9)}
    scores = ErrorDiscrimination(many, "toy", "findings_impression").score(oracle(told))
    found = {(m.name, m.finding): (v, m) for m, v in zip(scores.metrics, scores.values(), strict=True)}
    value, metric = found["accuracy_4way", "all"]
    assert value == pytest.approx(9 / 12)
    assert metric.n == 12
    assert metric.note == f"chance 0.25; ties count as wrong, by lot it would be {(9 + 3 / 4) / 12:.3f}"
    assert found["accuracy_pairwise", "laterality"][0] == pytest.approx(9 / 12)
    assert found["accuracy_pairwise", "laterality"][1].note.endswith(f"{(9 + 3 / 2) / 12:.3f}")
    value, metric = found["accuracy_4way", "laterality"]  # one sentence has a side: never three errors
    assert np.isnan(value)
    assert metric.n == 0
    assert [kind for name, kind in found if name == "accuracy_pairwise"] == list(KINDS)
    # Nine of twelve have a side: too few, whatever the answers; errors of mixed kinds are measured.
    findings = [(f"F{row}.", true(row) if row < 9 else true(row).replace("left ", "")) for row in range(12)]
    scores = ErrorDiscrimination(make_table(findings), "toy", "findings_impression").score(oracle({}))
    found = {(m.name, m.finding): (v, m.n) for m, v in zip(scores.metrics, scores.values(), strict=True)}
    assert found["accuracy_pairwise", "severity"] == (0.0, 12)
    assert np.isnan(found["accuracy_pairwise", "laterality"][0])
    assert found["accuracy_pairwise", "laterality"][1] == 9
    nine = ErrorDiscrimination(many.rows(np.arange(12) < 9), "toy", "findings_impression")
    with pytest.raises(NothingToMeasure, match="findings_impression: no kind of error has 10 questions"):
        nine.score(oracle({}))


def test_the_control_asks_with_another_query_and_gives_what_the_right_one_adds(many, oracle):
    asked = ErrorDiscrimination(many, "toy", "findings_impression")
    # Knows nine answers by their query, and prefers the other three whatever is asked.
    told = {(f"Findings number {row}.", true(row)): 1.0 for row in range(9)}
    told |= {(f"Findings number {query}.", true(row)): 1.0 for query in range(12) for row in range(9, 12)}
    control = QueryControl(asked).score(oracle(told))
    found = {(m.name, m.finding): v for m, v in zip(control.metrics, control.values(), strict=True)}
    assert found["accuracy_4way_other_query", "all"] == pytest.approx((3 + 9 / 4) / 12)
    assert found["accuracy_4way_gain", "all"] == pytest.approx((12 - 3 - 9 / 4) / 12)
    assert found["accuracy_pairwise_gain", "negation"] == pytest.approx((9 - 9 / 2) / 12)
    assert control.provenance.protocol == "findings_impression; query of another study"
    assert control.metrics[0].n == 12
    # The next study's query, not one's own: an oracle for it has a gain below 0.
    next_told = {(f"Findings number {(row + 1) % 12}.", true(row)): 1.0 for row in range(12)}
    control = QueryControl(asked).score(oracle(next_told))
    assert control.values()[0] == 1.0
    assert control.values()[len(asked.columns)] == pytest.approx(-3 / 4)


def test_a_report_is_compared_with_its_rewrite_and_errors_in_it(many):
    task = ErrorDiscrimination(many, "toy", "report_rewrite")
    item = task.items[0]
    assert item.query == f"Findings number 0. {true(0)}"
    assert "unchanged" in item.right
    assert "nodule" in item.right
    assert item.right not in item.wrong
    assert not any("stable" in text for text in item.wrong)


def test_negation_compares_a_restatement_with_its_opposite(make_table, oracle):
    table = make_table([("No pleural effusion.", "NO PLEURAL EFFUSION."), ("Hello.", "")])
    task = NegationSensitivity(table, "toy")
    assert [(item.query, item.row) for item in task.items] == [("No pleural effusion.", 0)]
    said, opposite = task.items[0].right, task.items[0].wrong[0]
    # "There is no ..." would share one word more with the query than its opposite does.
    assert (said, opposite) == ("Pleural fluid is not observed.", "Pleural fluid is observed.")
    good = task.score(oracle({("No pleural effusion.", said): 1.0}))
    assert good.values().tolist() == [1.0]
    assert good.patient_ids.tolist() == ["p0"]
    assert task.score(oracle({("No pleural effusion.", opposite): 1.0})).values().tolist() == [0.0]
    assert task.score(oracle({})).values().tolist() == [0.0]


def test_without_a_sentence_to_turn_round_nothing_is_measured(make_table, oracle):
    with pytest.raises(NothingToMeasure, match="negation: no sentence"):
        NegationSensitivity(make_table([("Hello.", "")]), "toy").score(oracle({}))
