"""Overlap of findings and concepts, by hand."""

import numpy as np
import pytest

from radtower.evaluation.retrieval.images.relevance import (
    SAME_CODE,
    SAME_FINDINGS,
    SHARES_CONCEPT,
    SHARES_FINDING,
    SHARES_HALF,
    ConceptOverlap,
    FindingOverlap,
    SameCode,
)

LABELS = np.array([[1, 1, 0], [1, 1, 0], [0, 1, 1], [0, 0, 1], [0, 0, 0], [0, 0, 0]])


def test_overlap_of_findings_by_hand() -> None:
    relevance = FindingOverlap(LABELS[[0, 3, 4]], LABELS)
    gains, hits = relevance.block(slice(0, 3))
    np.testing.assert_allclose(gains, [[1, 1, 1 / 3, 0, 0, 0], [0, 0, 0.5, 1, 0, 0], [0, 0, 0, 0, 1, 1]])
    assert hits[SHARES_FINDING].tolist() == (gains > 0).tolist()
    assert hits[SAME_FINDINGS].astype(int).tolist() == [
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 1, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]
    np.testing.assert_array_equal(relevance.block(slice(1, 2))[0], gains[1:2])


def test_overlap_of_random_findings_equals_a_slow_one() -> None:
    rng = np.random.default_rng(0)
    queries, gallery = rng.random((9, 5)) < 0.4, rng.random((14, 5)) < 0.4
    gains, _ = FindingOverlap(queries, gallery).block(slice(0, 9))
    for row, one in enumerate(queries):
        for column, other in enumerate(gallery):
            union = (one | other).sum()
            assert gains[row, column] == pytest.approx((one & other).sum() / union if union else 1.0)


def test_overlap_of_concepts_by_hand() -> None:
    query = [frozenset({"C1", "C2", "C3", "C4"}), frozenset({"C9"})]
    gallery = [frozenset({"C1"}), frozenset({"C1", "C2", "C8"}), frozenset({"C7"}), query[0]]
    gains, hits = ConceptOverlap(query, gallery).block(slice(0, 2))
    np.testing.assert_allclose(gains, [[1 / 4, 2 / 5, 0, 1], [0, 0, 0, 0]])
    assert hits[SHARES_CONCEPT].tolist() == [[True, True, False, True], [False] * 4]
    assert hits[SHARES_HALF].tolist() == [[False, True, False, True], [False] * 4]


def test_codes_are_the_same_or_not() -> None:
    relevance = SameCode(["a", "b"], ["b", "a", "a", "c"])
    gains, hits = relevance.block(slice(0, 2))
    assert gains.tolist() == [[0, 1, 1, 0], [1, 0, 0, 0]]
    assert hits[SAME_CODE].tolist() == (gains > 0).tolist()
    assert relevance.graded_by is None


def test_refuses_what_is_unknown() -> None:
    unknown = np.where(LABELS == 1, -100, LABELS)
    with pytest.raises(ValueError, match="labels must be 0 or 1, got 4 rows with others"):
        FindingOverlap(LABELS, unknown)
    with pytest.raises(ValueError, match="labels must be 0 or 1, got 1 rows"):
        FindingOverlap(LABELS + [[0, 0, 0.5]] * (np.arange(6) == 0)[:, None], LABELS)
    with pytest.raises(ValueError, match="labels for the same findings, got 3 and 2"):
        FindingOverlap(LABELS, LABELS[:, :2])
    with pytest.raises(ValueError, match="every image must have a concept, got 2 without"):
        ConceptOverlap([frozenset(), frozenset({"a"})], [frozenset()])
