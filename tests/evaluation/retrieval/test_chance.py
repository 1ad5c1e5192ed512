import itertools

import numpy as np
import pytest

from radtower.evaluation.retrieval.chance import chance_levels


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
