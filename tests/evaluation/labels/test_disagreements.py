import numpy as np
import pandas as pd
import pytest

from radtower.evaluation.labels.disagreements import Disagreement, most_confident_disagreements

P, A, U, N = "present", "absent", "uncertain", "not_mentioned"
INDEX = ["r1", "r2", "r3", "r4", "r5"]
SILVER = pd.DataFrame({"x": [P, A, None, P, P], "y": [A, U, None, N, A]}, index=INDEX, dtype=object)
GOLD = pd.DataFrame({"x": [A, P, P, U, None], "y": [A, P, P, P, N]}, index=INDEX, dtype=object)
SCORES = pd.DataFrame(
    {"x": [0.7, 0.1, np.nan, 0.9, 0.9], "y": [0.3, np.nan, np.nan, np.nan, 0.9]}, index=INDEX
)


def test_disagreements_by_hand_the_most_confident_first():
    # r3 failed; gold of x is uncertain in r4 and unknown in r5; y of r5 is absent on both sides.
    found = most_confident_disagreements(SILVER, GOLD, SCORES, 10)
    assert found == [
        Disagreement("r4", "y", P, N, None, 1.0),
        Disagreement("r2", "x", P, A, 0.1, pytest.approx(0.9)),
        Disagreement("r1", "x", A, P, 0.7, pytest.approx(0.7)),
        Disagreement("r2", "y", P, U, None, 0.5),
    ]


def test_the_list_is_cut_and_ties_are_in_order():
    assert [c.report_id for c in most_confident_disagreements(SILVER, GOLD, SCORES, 2)] == ["r4", "r2"]
    assert most_confident_disagreements(SILVER, GOLD, SCORES, 0) == []
    silver = pd.DataFrame({"b": [P, P], "a": [P, A]}, index=["r2", "r1"])
    gold = pd.DataFrame({"b": [A, A], "a": [A, A]}, index=["r2", "r1"])
    found = most_confident_disagreements(silver, gold, silver.map(lambda _: np.nan), 9)
    assert [(c.report_id, c.finding) for c in found] == [("r1", "b"), ("r2", "a"), ("r2", "b")]


def test_a_negative_length_is_refused():
    with pytest.raises(ValueError, match="limit must be at least 0, got -1"):
        most_confident_disagreements(SILVER, GOLD, SCORES, -1)
