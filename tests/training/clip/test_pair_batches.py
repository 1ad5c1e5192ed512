from types import SimpleNamespace

import numpy as np
import pytest
import torch

from radtower.training.clip.pair_batches import PairSampler, balanced_weights

# Rows 0, 1 and 2 have one report; 3 and 4 are of one study; 5 shares a number with 0 in another column.
KEYS = torch.tensor([[7, 1], [7, 2], [7, 3], [4, 9], [5, 9], [6, 7], [0, 0], [0, 0], [8, 4], [9, 5]])


def _batches(sampler, size):
    rows = list(sampler)
    assert len(rows) == len(sampler)
    return [rows[start : start + size] for start in range(0, len(rows), size)]


@pytest.mark.parametrize("epoch", range(20))
def test_no_batch_has_a_report_or_a_study_twice(epoch):
    sampler = PairSampler(SimpleNamespace(epoch=epoch), KEYS, 3)
    batches = _batches(sampler, 3)
    assert len(batches) == 3
    for batch in batches:
        for column in (0, 1):
            keys = [int(KEYS[row, column]) for row in batch if KEYS[row, column]]
            assert len(set(keys)) == len(keys)


def test_every_volume_gets_its_turn_and_epochs_differ():
    seen = [list(PairSampler(SimpleNamespace(epoch=epoch), KEYS, 3)) for epoch in range(6)]
    assert {row for rows in seen for row in rows} == set(range(10))
    assert [len(rows) for rows in seen] == [9] * 6
    assert sum(len(set(rows)) == 9 for rows in seen) >= 4  # a second draw is the exception
    assert len({tuple(rows) for rows in seen}) == 6
    assert seen[2] == list(PairSampler(SimpleNamespace(epoch=2), KEYS, 3))
    assert seen[2] != list(PairSampler(SimpleNamespace(epoch=2), KEYS, 3, seed=1))


def test_equal_numbers_of_two_columns_are_not_the_same_key():
    keys = torch.tensor([[7, 1], [1, 7]])
    assert len(PairSampler(SimpleNamespace(epoch=0), keys, 2)) == 2


def test_drawn_volumes_may_come_twice_in_an_epoch_but_not_in_a_batch():
    keys = torch.arange(1, 9)[:, None]
    weights = np.array([50.0, *[1.0] * 7])
    counts = np.zeros(8)
    for epoch in range(50):
        batches = _batches(PairSampler(SimpleNamespace(epoch=epoch), keys, 2, weights=weights), 2)
        for batch in batches:
            assert len(set(batch)) == 2
            counts[batch] += 1
    assert counts[0] > 3 * counts[1:].max()


def test_batches_are_of_like_length():
    lengths = list(range(100, 0, -1))
    keys = torch.arange(1, 101)[:, None]
    for batch in _batches(PairSampler(SimpleNamespace(epoch=0), keys, 10, lengths=lengths), 10):
        assert max(lengths[row] for row in batch) - min(lengths[row] for row in batch) == 9


def test_refuses_batches_that_cannot_be_filled():
    with pytest.raises(ValueError, match=r"must have 3 volumes of different .* got 2 different ones of 4\."):
        PairSampler(SimpleNamespace(epoch=0), torch.tensor([[1], [1], [2], [2]]), 3)


def test_rare_findings_and_normal_studies_weigh_more():
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [-100, 0], [0.7, -100]])
    # Finding 0 in four studies, finding 1 in one, two have none.
    expected = [1 / 4, 1 / 4, (1 / 4 + 1) / 2, 1 / 2, 1 / 2, 1 / 4]
    assert balanced_weights(targets) == pytest.approx(expected)
