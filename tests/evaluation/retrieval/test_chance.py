import itertools

import numpy as np
import pytest

from radtower.evaluation.retrieval import chance as chance_module
from radtower.evaluation.retrieval.chance import chance_levels, chance_with_copies
from radtower.evaluation.retrieval.score_ranks import ranks_of_scores


def every_order(num_positives: list[int], num_gallery: int) -> np.ndarray:
    """Ranks of the best right answer, of all queries in all orders."""
    orders = list(itertools.permutations(range(num_gallery)))
    return np.array(
        [1 + min(order.index(p) for p in range(count)) for count in num_positives for order in orders]
    )


def test_one_right_answer_is_found_k_times_out_of_n():
    chance = chance_levels([1, 1, 1], 20, (1, 5, 10))
    expected = {"recall_at_1": 0.05, "recall_at_5": 0.25, "recall_at_10": 0.5, "median_rank": 10.5}
    assert chance == pytest.approx({**expected, "mrr": sum(1 / rank for rank in range(1, 21)) / 20})


@pytest.mark.parametrize("num_positives", [[2, 2], [1, 3], [1, 1, 4], [6], [5, 2, 2]])
def test_the_level_is_the_mean_over_all_orders(num_positives):
    ranks = every_order(num_positives, 6)
    chance = chance_levels(num_positives, 6, (1, 2, 5))
    expected = {f"recall_at_{k}": (ranks <= k).mean() for k in (1, 2, 5)}
    assert chance == pytest.approx({**expected, "median_rank": np.median(ranks), "mrr": (1 / ranks).mean()})


def test_a_large_gallery_keeps_its_digits():
    chance = chance_levels([1] * 3, 40_000, (10,))
    assert chance["recall_at_10"] == pytest.approx(10 / 40_000, rel=1e-9)
    assert chance["median_rank"] == 20_000.5


@pytest.mark.parametrize(
    ("num_positives", "ks", "message"),
    [
        ([1, 0], (1,), r"num_positives must be between 1 and the 4 rows of the gallery, got \[0, 1\]"),
        ([5], (1,), r"num_positives must be .* got \[5\]"),
        ([], (1,), r"num_positives must be .* got \[\]"),
        ([1], (0, 2), r"ks must be .* got \[0, 2\]"),
        ([1], (5,), r"ks must be .* got \[5\]"),
    ],
)
def test_numbers_out_of_range_are_refused(num_positives, ks, message):
    with pytest.raises(ValueError, match=message):
        chance_levels(num_positives, 4, ks)


# Six rows: three copies, two copies, one alone.
COPIES = list("aaabbc")


def ranks_with_copies(positives: list[list[int]], ties: str) -> np.ndarray:
    """Ranks in all orders of the groups, from the definition: rows of a group tie."""
    ranks = []
    for order in itertools.permutations("abc"):
        scores = np.array([-order.index(copy) for copy in COPIES], dtype=np.float32)
        ranks.append(ranks_of_scores(np.tile(scores, (len(positives), 1)), positives, ties=ties))
    return np.concatenate(ranks)


@pytest.mark.parametrize("ties", ["pessimistic", "average"])
@pytest.mark.parametrize(
    "positives", [[[0], [1], [2], [3], [4], [5]], [[0, 1, 2]] * 3 + [[3, 4]] * 2 + [[5]], [[0, 1], [5]]]
)
def test_copies_stand_together(monkeypatch, positives, ties):
    ranks = ranks_with_copies(positives, ties)
    chance = chance_with_copies(COPIES, [np.array(rows) for rows in positives], (1, 2, 5), ties)
    expected = {f"recall_at_{k}": (ranks <= k).mean() for k in (1, 2, 5)}
    assert chance == pytest.approx({**expected, "median_rank": np.median(ranks), "mrr": (1 / ranks).mean()})
    monkeypatch.setattr(chance_module, "_ALL_ORDERS_UP_TO", 0)
    drawn = chance_with_copies(COPIES, [np.array(rows) for rows in positives], (1, 2, 5), ties)
    assert drawn == pytest.approx(chance, abs=0.51)  # a median between two ranks goes to one of them
    del drawn["median_rank"], chance["median_rank"]
    assert drawn == pytest.approx(chance, abs=0.02)


def test_without_copies_it_is_exact():
    positives = [np.array([0]), np.array([1, 2])]
    assert chance_with_copies(range(5), positives, (1, 3)) == chance_levels([1, 2], 5, (1, 3))


def test_many_copies_of_one_report_are_one_item():
    # Half of the reports read the same: whoever asks for one of them has it half of the time, or else late.
    copies = ["normal"] * 500 + list(range(500))
    positives = [np.arange(500)] * 500 + [np.array([row]) for row in range(500, 1000)]
    chance = chance_with_copies(copies, positives, (1, 10))
    assert chance["recall_at_1"] == pytest.approx(1 / 501, abs=1e-3)
    assert chance_levels([len(rows) for rows in positives], 1000, (1,))["recall_at_1"] > 0.25


def test_right_answers_that_are_no_copies_are_refused():
    with pytest.raises(ValueError, match="must be copies of each other, got 1 queries with others"):
        chance_with_copies("aab", [np.array([0]), np.array([1, 2])], (1,))
