import math

import numpy as np
import pytest
from sklearn import metrics as sk

from radtower.evaluation.decisions.thresholds import (
    Threshold,
    choose_thresholds,
    common_source,
    fixed_thresholds,
)

RULES = ("max_f1", "youden", "nearest_corner", "legacy_ct_clip")


def choose(scores, labels, rule, origin="validation") -> Threshold:
    columns = (np.asarray(values, dtype=np.float64)[:, None] for values in (scores, labels))
    return choose_thresholds(*columns, rule, origin)[0]


def make_sample(seed: int, n: int = 60) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.arange(n) % 3 == 0).astype(float)
    return np.round(1 / (1 + np.exp(-rng.normal(2 * labels - 1))), 2), labels


def goodness(rule: str, labels: np.ndarray, called: np.ndarray) -> float:
    if rule == "max_f1":
        return float(sk.f1_score(labels, called))
    hit, right = (sk.recall_score(labels, called, pos_label=label) for label in (1, 0))
    return hit + right if rule == "youden" else -math.hypot(1 - hit, 1 - right)


@pytest.mark.parametrize("rule", RULES[:3])
@pytest.mark.parametrize("seed", range(6))
def test_no_other_threshold_is_better(rule, seed):
    scores, labels = make_sample(seed)
    threshold = choose(scores, labels, rule)
    best = goodness(rule, labels, threshold.is_positive(scores))
    others = [goodness(rule, labels, scores >= value) for value in scores]
    assert best == pytest.approx(max(others), abs=1e-12)
    ties = [value for value, other in zip(scores, others, strict=True) if other >= best - 1e-12]
    assert threshold.value == max(ties)


def test_max_f1_by_hand():
    # At 3: 2 of 3 called are right, 2 of 2 found, F1 0.8. At 4 and at 1 both are worse.
    assert choose([4, 3, 3, 1], [1, 1, 0, 0], "max_f1").value == 3.0


def published_threshold(scores: np.ndarray, labels: np.ndarray) -> float:
    """The search of CT-CLIP's bootstrap_values.py, step by step."""
    best, nearest = 0.0, math.inf
    for threshold in np.linspace(0, 1, 100):
        table = sk.confusion_matrix(labels, scores > threshold)
        hits, false_alarms = table[1, 1] / table[1].sum(), table[0, 1] / table[0].sum()
        distance = math.sqrt((1 - hits) ** 2 + false_alarms**2)
        if distance <= nearest:
            best, nearest = threshold, distance
    return best


@pytest.mark.parametrize("seed", range(8))
def test_legacy_ct_clip_is_the_published_search(seed):
    scores, labels = make_sample(seed)
    threshold = choose(scores, labels, "legacy_ct_clip")
    expected = published_threshold(scores, labels)
    assert threshold.value == expected
    np.testing.assert_array_equal(threshold.is_positive(scores), scores > expected)


def test_legacy_ct_clip_takes_the_last_of_equals_and_compares_strictly():
    threshold = choose([0.0, 1.0], [0, 1], "legacy_ct_clip")
    assert threshold.value == np.linspace(0, 1, 100)[98]
    assert threshold.is_strict
    assert not Threshold(0.5, "by hand", is_strict=True).is_positive(np.array([0.5]))[0]
    assert Threshold(0.5, "by hand").is_positive(np.array([0.5]))[0]
    lowest = Threshold(0.5, "by hand", is_strict=True).lowest_positive
    assert 0.5 < lowest < 0.5 + 1e-15
    assert Threshold(0.5, "by hand").lowest_positive == 0.5
    assert Threshold(None, "by hand", undefined_because="no").lowest_positive is None


def test_a_score_of_single_precision_reaches_its_own_threshold():
    scores = np.array([0.1, 0.7], dtype=np.float32)
    threshold = choose_thresholds(scores[:, None], np.array([[0.0], [1.0]]), "max_f1")[0]
    np.testing.assert_array_equal(threshold.is_positive(scores), [False, True])


def test_the_source_says_where_and_how():
    scores, labels = make_sample(0)
    assert choose(scores, labels, "max_f1").source == "validation split, max F1"
    oracle = choose(scores, labels, "legacy_ct_clip", "test_oracle").source
    assert oracle.startswith("test_oracle: chosen on the very labels it is measured on, legacy_ct_clip")
    assert fixed_thresholds(0.25, 2) == [Threshold(0.25, "fixed at 0.25")] * 2


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize(
    ("labels", "missing"), [([1, 1], "negative"), ([0, -100], "positive"), ([-100, -100], "known label")]
)
def test_one_class_has_no_threshold_and_says_why(rule, labels, missing):
    threshold = choose([0.2, 0.4], labels, rule)
    assert threshold.value is None
    assert threshold.undefined_because == f"no threshold: validation has no {missing}"
    assert not threshold.is_positive(np.array([0.9])).any()
    assert "the rows under test" in choose([0.2, 0.4], labels, rule, "test_oracle").undefined_because


def test_a_finding_without_scores_has_no_threshold():
    assert "no score for it" in choose([np.nan, np.nan], [1, 0], "youden").undefined_because


def test_unknown_labels_do_not_choose():
    assert choose([0.9, 0.8, 0.1, 0.85], [1, 1, 0, -100], "max_f1").value == 0.8


def test_every_finding_has_a_threshold_of_its_own():
    scores, labels = np.array([[0.9, 0.1], [0.2, 0.6], [0.1, 0.3]]), np.array([[1, 0], [0, 1], [0, 0]])
    assert [t.value for t in choose_thresholds(scores, labels, "max_f1")] == [0.9, 0.6]


def test_what_cannot_be_chosen_from_is_refused():
    scores, labels = np.array([[0.5], [2.0]]), np.array([[0.0], [1.0]])
    with pytest.raises(ValueError, match=r"scores must be in \[0, 1\] for legacy_ct_clip.*got 0.5 to 2"):
        choose_thresholds(scores, labels, "legacy_ct_clip")
    with pytest.raises(ValueError, match=r"rule must be one of max_f1, .*got 'best'"):
        choose_thresholds(scores, labels, "best")
    with pytest.raises(ValueError, match=r"origin must be one of validation, test_oracle, got 'test'"):
        choose_thresholds(scores, labels, "max_f1", "test")
    with pytest.raises(ValueError, match=r"must be \(N, F\), got shapes \(2,\) and \(2,\)"):
        choose_thresholds(scores[:, 0], labels[:, 0], "max_f1")


def test_scores_and_labels_that_are_none_are_refused():
    with pytest.raises(ValueError, match="scores must be numbers, got 1 NaN"):
        choose([0.1, np.nan], [0, 1], "max_f1")
    with pytest.raises(ValueError, match=r"labels must be 0, 1 or -100, got \[0.5\]"):
        choose([0.1, 0.2], [0, 0.5], "max_f1")


def test_thresholds_of_several_sources_are_refused():
    same = fixed_thresholds(0.5, 3)
    assert common_source(same) == "fixed at 0.5"
    with pytest.raises(ValueError, match=r"must have one source, got 2: by hand; fixed at 0.5"):
        common_source([*same, Threshold(0.5, "by hand")])


def test_a_threshold_says_what_it_is():
    with pytest.raises(ValueError, match="a value or a reason why it has none, got None and None"):
        Threshold(None, "by hand")
    with pytest.raises(ValueError, match=r"a value or a reason why it has none, got 0.5 and 'no'"):
        Threshold(0.5, "by hand", undefined_because="no")
    with pytest.raises(ValueError, match="a value or a reason why it has none, got nan"):
        Threshold(math.nan, "by hand")
    with pytest.raises(ValueError, match="source must say who chose the threshold"):
        Threshold(0.5, " ")
