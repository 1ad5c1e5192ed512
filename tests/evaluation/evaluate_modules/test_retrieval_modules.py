"""Retrieval modules: by hand, against independent computations, and where nothing is right."""

import json
import math

import evaluate
import numpy as np
import pytest
from sklearn.metrics import label_ranking_average_precision_score

SCORES = [[0.9, 0.2, 0.1], [0.8, 0.3, 0.5], [0.4, 0.4, 0.4]]
RIGHT = [[0], [1, 2], [2]]
AWAY = -math.inf
NAMES = ("retrieval_recall", "retrieval_map")


@pytest.fixture
def recall(load_module):
    return load_module("retrieval_recall")


@pytest.fixture
def precision(load_module):
    return load_module("retrieval_map")


def _random(rng, queries=12, items=9):
    right = [sorted(rng.choice(items, rng.integers(1, 4), replace=False).tolist()) for _ in range(queries)]
    return rng.normal(size=(queries, items)).round(1), right


def test_ranks_by_hand_where_a_tie_is_lost(recall):
    result = recall.compute(predictions=SCORES, references=RIGHT, ks=[1, 2])
    assert result == {
        "recall_at_1": pytest.approx(1 / 3),
        "recall_at_2": pytest.approx(2 / 3),
        "median_rank": 2.0,
        "mrr": pytest.approx((1 + 1 / 2 + 1 / 3) / 3),
        "num_queries": 3,
        "num_without_answer": 0,
        "num_items": 3,
    }


def test_ranks_are_those_of_counting(recall):
    scores, right = _random(np.random.default_rng(0))
    ranks = np.array(
        [
            1 + sum(row[j] >= max(row[i] for i in items) for j in range(9) if j not in items)
            for row, items in zip(scores.tolist(), right, strict=True)
        ]
    )
    result = recall.compute(predictions=scores, references=right)
    assert result["recall_at_5"] == pytest.approx((ranks <= 5).mean())
    assert result["mrr"] == pytest.approx((1 / ranks).mean())
    assert result["median_rank"] == np.median(ranks)
    assert "recall_at_10" not in result


@pytest.mark.parametrize("change", [np.exp, lambda x: np.exp(20 * x), lambda x: 1e6 + x, lambda x: 1e-9 * x])
def test_a_monotone_change_of_scores_changes_no_rank(recall, change):
    scores, right = _random(np.random.default_rng(4))
    scores = np.column_stack([scores, np.full(12, AWAY)])
    changed = np.where(np.isfinite(scores), change(scores), AWAY)
    expected = recall.compute(predictions=scores, references=right)
    assert recall.compute(predictions=changed, references=right) == expected


def test_average_precision_by_hand(precision):
    scores, right = [[0.9, 0.2, 0.8], [0.8, 0.3, 0.5], [0.4, 0.4, 0.4]], [[0, 1], [2], [0, 1]]
    result = precision.compute(predictions=scores, references=right, ks=[1, 2])
    assert result == {
        "map_at_1": pytest.approx(1 / 3),
        "map_at_2": pytest.approx((1 / 2 + 1 / 2 + (1 / 2) / 2) / 3),
        "map_at_1_chance": pytest.approx(5 / 9),
        "map_at_2_chance": pytest.approx((2 * (2 / 3 + (2 / 3 + 1 / 3) / 2) / 2 + (1 / 3 + 1 / 6)) / 3),
        "precision_at_1": pytest.approx(1 / 3),
        "precision_at_2": pytest.approx(1 / 2),
        "num_queries": 3,
        "num_without_answer": 0,
        "num_items": 3,
    }


def test_average_precision_of_the_whole_order_is_that_of_scikit_learn(precision):
    rng = np.random.default_rng(1)
    scores, right = rng.normal(size=(12, 9)), _random(rng)[1]
    is_right = np.zeros((12, 9))
    for row, items in enumerate(right):
        is_right[row, items] = 1
    # One item that nobody asks for, last: k must be below the number of items.
    padded = np.column_stack([scores, np.full(12, -99.0)])
    result = precision.compute(predictions=padded, references=right, ks=[9])
    assert result["map_at_9"] == pytest.approx(label_ranking_average_precision_score(is_right, scores))


@pytest.mark.parametrize("name", NAMES)
def test_items_that_are_not_there_are_no_answers(load_module, name):
    module = load_module(name)
    scores, right = _random(np.random.default_rng(2), 8, 7)
    expected = module.compute(predictions=scores, references=right, ks=[2])
    wider = np.insert(scores, 3, AWAY, axis=1)
    moved = [[item + (item >= 3) for item in items] for items in right]
    result = module.compute(predictions=wider, references=[[*items, 3] for items in moved], ks=[2])
    assert result == {**expected, "num_items": 8}
    with pytest.raises(ValueError, match=r"ks must be between 1 and 6, got \[7\]"):
        module.compute(predictions=wider, references=moved, ks=[7])


@pytest.mark.parametrize("name", NAMES)
def test_queries_without_an_answer_are_counted_and_all_of_them_are_none(load_module, name):
    module = load_module(name)
    some = module.compute(predictions=[*SCORES, SCORES[0]], references=[*RIGHT, []], ks=[1])
    alone = module.compute(predictions=SCORES, references=RIGHT, ks=[1])
    assert some == {**alone, "num_without_answer": 1}
    nothing = module.compute(predictions=SCORES, references=[[], [], []], ks=[1])
    assert (nothing.pop("num_queries"), nothing.pop("num_without_answer"), nothing.pop("num_items")) == (
        0,
        3,
        3,
    )
    assert set(nothing.values()) == {None}
    assert set(nothing) == set(alone) - {"num_queries", "num_without_answer", "num_items"}


@pytest.mark.parametrize("name", NAMES)
def test_intervals_draw_patients_together_and_json_takes_everything(load_module, name):
    module = load_module(name)
    scores, right = _random(np.random.default_rng(3))
    options = {"ks": [1, 3], "num_resamples": 50}
    result = module.compute(predictions=scores, references=right, patient_ids=list(range(12)), **options)
    twice = module.compute(
        predictions=np.tile(scores, (2, 1)), references=right * 2, patient_ids=[*range(12)] * 2, **options
    )
    intervals = {key: value for key, value in result.items() if key.endswith("_ci")}
    assert len(intervals) == 4
    for key, (low, high) in intervals.items():
        assert low <= result[key.removesuffix("_ci")] <= high
        assert twice[key] == pytest.approx([low, high])
    assert json.loads(json.dumps(result)) == result
    one = module.compute(predictions=scores, references=right, patient_ids=["p"] * 12, **options)
    assert {value for key, value in one.items() if key.endswith("_ci")} == {None}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"predictions": [[0.1], *SCORES[1:]]}, "predictions must be lists of one length above 0"),
        (
            {"predictions": [[0.1, math.nan, math.inf], *SCORES[1:]]},
            "minus infinity .*, got 2 that are neither",
        ),
        ({"references": [[0], [3], [-1]]}, r"0 to 2, got others for 2 queries, first \[3\] for query 1"),
        ({"ks": [0]}, r"ks must be between 1 and 2, got \[0\]"),
        ({"ks": []}, r"ks must be between 1 and 2, got \[\]"),
        ({"ks": [1, 3]}, r"got \[1, 3\]. Of 3 items, the right one is always among the first 3"),
        ({"patient_ids": ["a"]}, "patient_ids must have one id per row, got 1 for 3"),
    ],
)
def test_invalid_input_is_refused(load_module, name, change, message):
    with pytest.raises(ValueError, match=message):
        load_module(name).compute(**{"predictions": SCORES, "references": RIGHT} | change)


def test_both_can_be_combined(recall, precision):
    both = evaluate.combine([recall, precision])
    result = both.compute(predictions=SCORES, references=RIGHT, ks=[1])
    assert (result["recall_at_1"], result["map_at_1"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))
    assert (result["retrieval_recall_num_items"], result["retrieval_map_num_items"]) == (3, 3)
