"""The fixed answers: chosen as an exhaustive search would."""

from itertools import combinations

import numpy as np
import pytest

from radtower.evaluation.clinical.label_answers import label_jaccard
from radtower.evaluation.clinical.most_common import most_common_reports

LABELS = np.array(
    [[1, 1, 0]] * 3 + [[1, 0, 0]] * 2 + [[0, 0, 1]] * 2 + [[-100, -100, -100]], dtype=np.float32
)


def test_the_first_agrees_best_on_average_and_the_next_fills_its_gaps():
    # {a, b}: (3 + 2/2) / 7; {a}: (3/2 + 2) / 7; {c}: 2 / 7. Then {c} adds 2, {a} adds 1.
    assert most_common_reports(LABELS, 3).tolist() == [0, 5, 3]
    assert most_common_reports(LABELS, 9).tolist() == [0, 5, 3]


def test_frequent_labels_weigh_more_and_no_report_comes_twice():
    # {a} four times, {a, b} and {b} once: 4.5 for {a}, 3.5 for {a, b}; one of each kind would prefer {a, b}.
    labels = np.array([[1, 1], [0, 1]] + [[1, 0]] * 4, dtype=np.float32)
    assert most_common_reports(labels).tolist() == [2]
    # {a, b} agrees with all completely: any further report adds nothing.
    labels = np.array([[1, 1], [1, 1], [1, -100]], dtype=np.float32)
    assert most_common_reports(labels, 2).tolist() == [0, 2]


def test_it_is_the_best_of_all_reports():
    rng = np.random.default_rng(0)
    labels = rng.choice([0, 1, -100], p=[0.5, 0.4, 0.1], size=(30, 4)).astype(np.float32)
    labels = labels[(labels != -100).any(axis=1)]
    mean = label_jaccard(labels, labels).mean(axis=0)
    first, second = most_common_reports(labels, 2)
    assert mean[first] == pytest.approx(mean.max())
    agreement = label_jaccard(labels, labels)
    pairs = {
        other: np.maximum(agreement[:, first], agreement[:, other]).mean() for other in range(len(labels))
    }
    assert pairs[second] == pytest.approx(max(pairs.values()))
    best_pair = max(
        agreement[:, list(pair)].max(axis=1).mean() for pair in combinations(range(len(labels)), 2)
    )
    assert pairs[second] >= (1 - 1 / np.e) * best_pair  # what is known of the greedy choice


def test_blocks_change_nothing_and_rare_rows_are_no_candidates(monkeypatch):
    monkeypatch.setattr("radtower.evaluation.clinical.most_common._BLOCK_ROWS", 2)
    assert most_common_reports(LABELS, 3).tolist() == [0, 5, 3]
    monkeypatch.setattr("radtower.evaluation.clinical.most_common._MAX_CANDIDATES", 1)
    assert most_common_reports(LABELS, 3).tolist() == [0]


def test_nothing_to_choose_from_is_refused():
    with pytest.raises(ValueError, match="labels must be known for a training report, got 1 without any"):
        most_common_reports(LABELS[-1:])
    with pytest.raises(ValueError, match="num_reports must be at least 1, got 0"):
        most_common_reports(LABELS, 0)
