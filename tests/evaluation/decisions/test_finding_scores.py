import numpy as np
import pytest

from radtower.evaluation.decisions.finding_scores import FindingScores

SCORES = np.array([[0.1, 0.2], [0.3, 0.4], [0.5, 0.6]])
LABELS = np.array([[1, 0], [0, -100], [-100, 1]])


def make(**changes) -> FindingScores:
    parts = {"scores": SCORES, "labels": LABELS, "patient_ids": ["a", "b", "b"], "keys": ["x", "y"]}
    return FindingScores(**(parts | changes))


def test_counts_per_finding():
    sample = make()
    assert sample.num_known.tolist() == [2, 2]
    assert sample.num_positive.tolist() == [1, 1]
    assert sample.scored_columns == [0, 1]


def test_a_column_of_nan_needs_a_reason():
    scores = SCORES.copy()
    scores[:, 1] = np.nan
    assert make(scores=scores, undefined={"y": "the head does not know it"}).scored_columns == [0]
    with pytest.raises(ValueError, match=r"scores of y must be .* got 3 NaN of 3 without one"):
        make(scores=scores)
    scores[0, 1] = 0.5
    with pytest.raises(ValueError, match=r"scores of y must be .* got 2 NaN of 3 with one"):
        make(scores=scores, undefined={"y": "the head does not know it"})


def test_what_does_not_fit_is_refused():
    with pytest.raises(ValueError, match=r"must be \(N, F\), got shapes \(3, 1\) and \(3, 2\)"):
        make(scores=SCORES[:, :1])
    with pytest.raises(ValueError, match=r"must be \(N, F\), got shapes \(3,\)"):
        make(scores=SCORES[:, 0], labels=LABELS[:, 0])
    with pytest.raises(ValueError, match=r"got 2 and 2 for scores \(3, 2\)"):
        make(patient_ids=["a", "b"])
    with pytest.raises(ValueError, match=r"got 3 and 1 for scores \(3, 2\)"):
        make(keys=["x"])
    with pytest.raises(ValueError, match=r"keys must be unique .* got 2 keys, 1 of them distinct"):
        make(keys=["x", "x"])
    with pytest.raises(ValueError, match="unknown ones: z"):
        make(undefined={"z": "because"})
    with pytest.raises(ValueError, match=r"labels must be 0, 1 or -100, got \[0.5\]"):
        make(labels=np.where(LABELS == 1, 0.5, 0))
