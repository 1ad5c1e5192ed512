"""Answers beside the truth: hand-computed, against enumeration of all draws, and at the edges."""

from itertools import combinations

import numpy as np
import pytest

from radtower.evaluation.clinical.label_answers import answers_of_rows, label_jaccard, random_answers

# Findings a, b, c. The second truth does not know c; the third has nothing.
TRUTH = np.array([[1, 1, 0], [1, 0, -100], [0, 0, 0]], dtype=np.float32)
GALLERY = np.array([[1, 0, 0], [0, 0, 0], [1, 1, -100], [0, 1, 1]], dtype=np.float32)
JACCARD = [[1 / 2, 0, 1, 1 / 3], [1, 0, 1 / 2, 0], [0, 1, 0, 0]]


def _random_labels(rng, rows, findings=4):
    return rng.choice([0, 1, -100], p=[0.5, 0.4, 0.1], size=(rows, findings)).astype(np.float32)


def test_the_jaccard_index_by_hand():
    assert label_jaccard(TRUTH, GALLERY).tolist() == pytest.approx(np.array(JACCARD))
    assert np.isnan(label_jaccard(np.full((1, 3), -100.0), GALLERY)).all()


def test_the_first_answer_the_mean_and_the_best_of_two_by_hand():
    rows = np.array([[3, 0], [2, 0], [0, 1]])
    first = answers_of_rows(TRUTH, GALLERY, rows[:, :1])
    assert first.named.tolist() == [[0, 1, 1], [1, 1, 0], [1, 0, 0]]
    assert first.jaccard.tolist() == pytest.approx([1 / 3, 1 / 2, 0])
    assert first.exact.tolist()[::2] == [0, 0]
    assert np.isnan(first.exact[1])
    mean = answers_of_rows(TRUTH, GALLERY, rows)
    assert mean.named.tolist() == [[0.5, 0.5, 0.5], [1, 0.5, 0], [0.5, 0, 0]]
    assert mean.jaccard.tolist() == pytest.approx([5 / 12, 3 / 4, 1 / 2])
    assert mean.exact[2] == pytest.approx(0.5)
    best = answers_of_rows(TRUTH, GALLERY, rows, "best")
    assert best.named.tolist() == [[1, 0, 0], [1, 0, 0], [0, 0, 0]]
    assert best.jaccard.tolist() == pytest.approx([1 / 2, 1, 1])
    assert best.exact[2] == pytest.approx(1.0)


def test_of_equally_good_answers_the_first_is_the_best():
    truth = np.array([[1, 1]], dtype=np.float32)
    gallery = np.array([[0, 1], [1, 0]], dtype=np.float32)
    assert answers_of_rows(truth, gallery, np.array([[0, 1]]), "best").named.tolist() == [[0, 1]]
    assert answers_of_rows(truth, gallery, np.array([[1, 0]]), "best").named.tolist() == [[1, 0]]


@pytest.mark.parametrize("pick", ["mean", "best"])
@pytest.mark.parametrize("num_answers", [1, 2, 3, 6])
def test_a_random_order_is_the_mean_over_all_draws(pick, num_answers):
    rng = np.random.default_rng(num_answers)
    truth, gallery = _random_labels(rng, 5), _random_labels(rng, 6)
    truth[0] = -100
    gallery[4] = gallery[1]
    got = random_answers(truth, gallery, num_answers, pick)
    # Equally good reports are equally likely the best: enumerate orders by who of a draw stands first.
    draws = list(combinations(range(6), num_answers))
    named, jaccard, exact = np.zeros_like(got.named, dtype=float), np.zeros(5), np.zeros(5)
    for draw in draws:
        of_draw = [answers_of_rows(truth, gallery, np.full((5, 1), row)) for row in draw]
        agreement = np.stack([np.nan_to_num(a.jaccard) for a in of_draw], axis=1)
        weights = np.full(agreement.shape, 1.0)
        if pick == "best":
            weights = (agreement == agreement.max(axis=1, keepdims=True)).astype(float)
        weights /= weights.sum(axis=1, keepdims=True)
        for column, answers in enumerate(of_draw):
            named += weights[:, [column]] * answers.named / len(draws)
            jaccard += weights[:, column] * answers.jaccard / len(draws)
            exact += weights[:, column] * answers.exact / len(draws)
    known = ~np.isnan(jaccard)
    np.testing.assert_allclose(got.jaccard, jaccard, atol=1e-6)
    np.testing.assert_allclose(got.exact, exact, atol=1e-6)
    np.testing.assert_allclose(got.named[known], named[known], atol=1e-6)


def test_blocks_change_nothing(monkeypatch):
    rng = np.random.default_rng(3)
    truth, gallery = _random_labels(rng, 9), _random_labels(rng, 7)
    rows = rng.integers(0, 7, (9, 3))
    whole = answers_of_rows(truth, gallery, rows, "best"), random_answers(truth, gallery, 3, "best")
    monkeypatch.setattr("radtower.evaluation.clinical.label_answers._BLOCK_ELEMENTS", 25)
    parts = answers_of_rows(truth, gallery, rows, "best"), random_answers(truth, gallery, 3, "best")
    for one, other in zip(whole, parts, strict=True):
        for name in ("named", "jaccard", "exact"):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": np.array([[4], [0], [0]])}, "rows must be between 0 and 3, got 0 to 4"),
        ({"rows": np.array([[-1], [0], [0]])}, "rows must be between 0 and 3, got -1 to 0"),
        ({"rows": np.array([[0], [0]])}, r"rows must be \(Q, K\) with Q = 3 and K > 0, got shape \(2, 1\)"),
        ({"rows": np.zeros((3, 0), dtype=int)}, r"K > 0, got shape \(3, 0\)"),
        ({"pick": "worst"}, "pick must be one of mean, best, got 'worst'"),
        ({"gallery": GALLERY[:, :2]}, r"got shapes \(3, 3\) and \(4, 2\)"),
        ({"gallery": GALLERY[:0]}, "must have rows, got 3 and 0"),
        ({"gallery": GALLERY + 0.5}, r"gallery must hold 0, 1 or -100, got \[-99.5, 0.5, 1.5\]"),
        ({"truth": TRUTH - 1}, r"truth must hold 0, 1 or -100, got \[-101"),
    ],
)
def test_invalid_input_is_refused(change, message):
    given = {"truth": TRUTH, "gallery": GALLERY, "rows": np.zeros((3, 1), dtype=int)} | change
    with pytest.raises(ValueError, match=message):
        answers_of_rows(**given)


@pytest.mark.parametrize("num_answers", [0, 5])
def test_more_random_answers_than_reports_are_refused(num_answers):
    with pytest.raises(ValueError, match=f"num_answers must be between 1 and 4, got {num_answers}"):
        random_answers(TRUTH, GALLERY, num_answers)
