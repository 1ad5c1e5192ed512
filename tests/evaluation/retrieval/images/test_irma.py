"""The error score of IRMA codes, by hand and against a slow copy of its definition."""

import numpy as np
import pytest

from radtower.evaluation.retrieval.images.irma import (
    IRMAError,
    chance_of_irma_error,
    check_true_codes,
    irma_errors,
    voted_code,
)
from radtower.evaluation.retrieval.images.tied_places import Similarities, TiedRanking
from radtower.evaluation.retrieval.top_k import TopK, top_k

REST = "-120-500-700"
# Choices of axis T: 2 first, then 2 below "1", 3 below "11", 1 below "111".
CODES = [f"{technique}{REST}" for technique in ("1111", "1121", "1131", "1200", "2000")]
WEIGHTS = np.array([1 / 2, 1 / (2 * 2), 1 / (3 * 3), 1 / (1 * 4)])


def axis_error(*deltas: float) -> float:
    """A quarter of the error of the axis: the others are right."""
    return float((WEIGHTS * deltas).sum() / WEIGHTS.sum() / 4)


@pytest.mark.parametrize(
    ("found", "deltas"),
    [
        ("1111", (0, 0, 0, 0)),
        ("1112", (0, 0, 0, 1)),
        ("1121", (0, 0, 1, 1)),  # right again by chance, below a wrong one
        ("2111", (1, 1, 1, 1)),
        ("111*", (0, 0, 0, 0.5)),
        ("11*1", (0, 0, 0.5, 0.5)),
        ("****", (0.5, 0.5, 0.5, 0.5)),
        ("12**", (0, 1, 1, 1)),
    ],
)
def test_one_axis_by_hand(found: str, deltas: tuple[float, ...]) -> None:
    assert IRMAError(CODES)(f"1111{REST}", f"{found}{REST}") == pytest.approx(axis_error(*deltas))


def test_a_star_where_the_code_is_unspecified_costs_nothing() -> None:
    error = IRMAError(CODES)
    assert error(f"1200{REST}", f"12**{REST}") == 0
    # Weights below "12": 1 choice each.
    weights = [1 / 2, 1 / 4, 1 / 3, 1 / 4]
    assert error(f"1200{REST}", f"1*00{REST}") == pytest.approx(0.5 * (1 - 0.5 / sum(weights)) / 4)
    assert error(f"1200{REST}", f"1***{REST}") == pytest.approx(0.5 * weights[1] / sum(weights) / 4)
    assert error(f"1200{REST}", f"13**{REST}") == pytest.approx((1 - 0.5 / sum(weights)) / 4)


def test_all_wrong_is_one_and_each_axis_a_quarter() -> None:
    error = IRMAError(["1111-111-111-111", "2222-222-222-222"])
    assert error("1111-111-111-111", "2222-222-222-222") == 1
    assert error("1111-111-111-111", "2111-111-111-111") == 0.25
    assert error("1111-111-111-111", "****-***-***-***") == 0.5
    # A code that the gallery does not know has one choice per position.
    assert error("3333-111-111-111", "3334-111-111-111") == pytest.approx(
        (1 / 4) / (1 / 2 + 1 / 2 + 1 / 3 + 1 / 4) / 4
    )


def slow_error(true: str, found: str, codes: list[str]) -> float:
    """Position by position, from the definition: delta of a position depends on all before it."""
    errors = []
    for axis, (right, other) in enumerate(zip(true.split("-"), found.split("-"), strict=True)):
        error = total = 0.0
        for place in range(len(right)):
            column = {code.split("-")[axis] for code in codes}
            choices = len({c[place] for c in column if c.startswith(right[:place])}) or 1
            total += 1 / choices / (place + 1)
            first = next((i for i in range(place + 1) if other[i] != right[i]), None)
            delta = 0.0 if first is None else 0.5 if other[first] == "*" else 1.0
            if delta == 0.5 and right[place] == "0" and other[place] == "*":
                delta = 0.0
            error += delta / choices / (place + 1)
        errors.append(error / total)
    return sum(errors) / 4


def test_equals_a_slow_copy_of_the_definition() -> None:
    rng = np.random.default_rng(0)

    def some_code(letters: str) -> str:
        return "-".join("".join(rng.choice(list(letters), size)) for size in (4, 3, 3, 3))

    codes = [some_code("0012") for _ in range(12)]
    error = IRMAError(codes)
    for _ in range(300):
        true, found = some_code("0012"), some_code("0012*")
        assert error(true, found) == pytest.approx(slow_error(true, found, codes))


def test_the_first_of_equal_votes_wins() -> None:
    assert voted_code(["b", "a", "a", "c"]) == "a"
    assert voted_code(["c", "b", "a", "b", "c"]) == "c"


def test_errors_of_the_first_and_of_a_vote() -> None:
    found = TopK(np.array([[1, 0, 2], [4, 3, 2]]), np.zeros((2, 3), np.float32))
    gallery = [CODES[0], CODES[1], CODES[0], CODES[4], CODES[4]]
    errors = irma_errors(TiedRanking(found=found), [CODES[0], CODES[3]], gallery, (1, 3))
    error = IRMAError(gallery)
    assert errors["irma_error_at_1"].tolist() == [error(CODES[0], CODES[1]), error(CODES[3], CODES[4])]
    assert errors["irma_error_at_3"].tolist() == [0.0, error(CODES[3], CODES[4])]
    chance = chance_of_irma_error([CODES[0]], gallery)
    assert chance == pytest.approx([(error(CODES[0], CODES[1]) + 2 * error(CODES[0], CODES[4])) / 5])


def test_of_images_that_tie_the_worst_come_first() -> None:
    queries, collapsed = np.ones((1, 2), np.float32), np.ones((4, 2), np.float32)
    gallery = [CODES[0], CODES[1], CODES[1], CODES[4]]
    ranking = TiedRanking(found=top_k(queries, collapsed, 1), similarities=Similarities(queries, collapsed))
    errors = irma_errors(ranking, [CODES[0]], gallery, (1,))
    assert errors["irma_error_at_1"].tolist() == [IRMAError(gallery)(CODES[0], CODES[4])]


def test_the_order_of_the_gallery_does_not_matter() -> None:
    rng = np.random.default_rng(3)
    vectors = rng.integers(0, 2, (30, 3)).astype(np.float32) + 1  # eight different ones: ties everywhere
    codes = rng.choice(CODES, 30)
    keys = np.arange(30)

    def errors_of(order: np.ndarray) -> dict[str, np.ndarray]:
        gallery = vectors[order]
        found = top_k(vectors, gallery, 6, query_keys=keys, gallery_keys=keys[order])
        ranking = TiedRanking(
            found=found,
            query_keys=keys,
            gallery_keys=keys[order],
            similarities=Similarities(vectors, gallery),
        )
        return irma_errors(ranking, codes.tolist(), codes[order].tolist(), (1, 3, 5))

    expected = errors_of(keys)
    assert len(set(expected["irma_error_at_3"].tolist())) > 2
    for _ in range(5):
        errors = errors_of(rng.permutation(30))
        for name, values in expected.items():
            np.testing.assert_array_equal(errors[name], values)


def test_codes_that_are_none_are_named_with_their_rows() -> None:
    check_true_codes([CODES[0], "", CODES[1]], "xyz")
    with pytest.raises(ValueError, match=r"got '1\*11-120-500-700' of y\. Write 0"):
        check_true_codes([CODES[0], f"1*11{REST}"], "xy")
    with pytest.raises(ValueError, match=r"got 'a' of v, 'b' of x, 'c' of y and 1 more\."):
        check_true_codes(["a", "", "b", "c", "d"], "vwxyz")


def test_refuses_what_is_no_code() -> None:
    for code in ("1121-127-700", "1121-127-700-50", "1121-127-700-5000", "112A-127-700-500", ""):
        with pytest.raises(ValueError, match=f"must read TTTT-DDD-AAA-BBB, .* got '{code}'"):
            IRMAError([code])
    with pytest.raises(ValueError, match=r"the true code must not hold '\*', got '112\*-120-500-700'"):
        IRMAError(CODES)("112*-120-500-700", CODES[0])
