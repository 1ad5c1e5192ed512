import numpy as np
import pytest

from radtower.evaluation.read_outs.labeled_vectors import (
    LabeledVectors,
    check_same_findings,
    one_class_findings,
)

VECTORS, LABELS = np.eye(3), np.array([[1, 0], [0, 0], [-100, 0]])


def test_what_cannot_be_learned_says_why():
    reasons = one_class_findings(LABELS, ["x", "y"], "the train split")
    assert reasons == {"y": "the train split has 0 of 3 known labels positive: nothing to tell apart"}
    assert list(one_class_findings(1 - np.abs(LABELS[:2]), ["x", "y"], "train")) == ["y"]
    assert "0 of 0" in one_class_findings(np.full((2, 1), -100), ["x"], "train")["x"]


def test_what_does_not_pair_up_is_refused():
    with pytest.raises(ValueError, match=r"must be \(N, E\) and \(N, F\), N > 0, got \(\(0, 3\), \(0, 2\)\)"):
        LabeledVectors(VECTORS[:0], LABELS[:0], [])
    with pytest.raises(ValueError, match=r"must be \(N, E\) .* got \(\(3, 3\), \(3,\)\)"):
        LabeledVectors(VECTORS, LABELS[:, 0], "abc")
    with pytest.raises(ValueError, match="must pair up row by row, got 3, 2 and 3"):
        LabeledVectors(VECTORS, LABELS[:2], list("abc"))
    with pytest.raises(ValueError, match="must pair up row by row, got 3, 3 and 2"):
        LabeledVectors(VECTORS, LABELS, list("ab"))
    with pytest.raises(ValueError, match="vectors must be finite, got 1 rows"):
        LabeledVectors(np.diag([1.0, np.inf, 1.0]), LABELS, list("abc"))
    with pytest.raises(ValueError, match=r"labels must be 0, 1 or -100, got \[0.5\]"):
        LabeledVectors(VECTORS, np.where(LABELS == 1, 0.5, 0), list("abc"))


def test_splits_that_do_not_belong_together_are_refused():
    split = LabeledVectors(VECTORS, LABELS, list("abc"))
    narrow = LabeledVectors(VECTORS[:, :2], LABELS, list("abc"))
    check_same_findings(split, [split], ["x", "y"])
    with pytest.raises(ValueError, match=r"one width and 2 findings, got .* \[\(2, 2\), \(3, 2\)\]"):
        check_same_findings(split, [narrow], ["x", "y"])
    with pytest.raises(ValueError, match=r"one width and 1 findings, got .* \[\(3, 2\)\]"):
        check_same_findings(split, [split], ["x"])
