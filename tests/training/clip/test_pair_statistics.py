import math

import pytest
import torch

from radtower.training.clip.pair_statistics import (
    NUM_BINS,
    pair_statistics,
    problem_of_spread,
    similarity_histograms,
)

ANGLES = [0.0, 0.4, 1.0]


def _sides():
    sides = torch.tensor([[math.cos(angle), math.sin(angle)] for angle in ANGLES])
    return 3 * sides, 0.5 * sides[[0, 2, 1]]


def test_quantiles_of_cosines_and_how_often_the_own_report_is_first():
    found = pair_statistics(*_sides())
    positives = [1.0, math.cos(0.6), math.cos(0.6)]
    assert found["positive_similarity_p05"] == pytest.approx(min(positives))
    assert found["positive_similarity_p95"] == pytest.approx(1.0)
    negatives = sorted([math.cos(1.0), math.cos(0.4), math.cos(0.4), 1.0, math.cos(1.0), 1.0])
    assert found["negative_similarity_p05"] == pytest.approx(negatives[0])
    assert found["negative_similarity_p50"] == pytest.approx(negatives[2])
    assert found["negative_similarity_p95"] == pytest.approx(1.0)
    assert found["accuracy"] == pytest.approx(1 / 3)


def test_what_shares_a_key_is_no_negative():
    # Without the key, the second report is nearer to the third scan than its own, and the other way round.
    found = pair_statistics(*_sides(), torch.tensor([[0, 1], [7, 2], [7, 3]]))
    assert found["accuracy"] == pytest.approx(2 / 3)
    assert found["negative_similarity_p95"] == pytest.approx(math.cos(0.4))


def test_without_negatives_there_are_pairs_alone():
    found = pair_statistics(*_sides(), torch.tensor([[1], [1], [1]]))
    assert set(found) == {f"positive_similarity_p{q}" for q in ("05", "50", "95")}


def test_cosines_are_counted_in_bins_from_minus_one_to_one():
    def bin_of(cosine):
        return min(int((cosine + 1) / 2 * NUM_BINS), NUM_BINS - 1)

    found = similarity_histograms(*_sides(), torch.tensor([[0, 1], [7, 2], [7, 3]]))
    expected = {"positive": [1.0, math.cos(0.6), math.cos(0.6)]}
    expected["negative"] = [math.cos(1.0), math.cos(0.4), math.cos(0.4), math.cos(1.0)]
    for name, cosines in expected.items():
        counts = [0] * NUM_BINS
        for cosine in cosines:
            counts[bin_of(cosine)] += 1
        assert found[f"{name}_similarity_counts"] == counts
    torch.manual_seed(0)
    same = torch.randn(4, 7)  # some of its cosines with itself are rounded to more than 1
    assert similarity_histograms(same, same)["positive_similarity_counts"][-1] == 4
    same, opposite = torch.ones(2, 3), -torch.ones(2, 3)
    assert similarity_histograms(same, same)["positive_similarity_counts"][-1] == 2
    assert similarity_histograms(same, opposite)["negative_similarity_counts"][0] == 2


def test_equal_vectors_are_a_problem_and_a_single_pair_is_not():
    same = torch.ones(3, 4)
    problem = problem_of_spread(same, same, 7)
    assert problem.is_cause
    assert "within 0.0e+00 of each other at step 7. Low" in problem.message
    assert problem_of_spread(same[:1], same[:1], 7) is None
    assert problem_of_spread(*_sides(), 7) is None
