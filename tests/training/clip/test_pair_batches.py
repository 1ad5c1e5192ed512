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


@pytest.mark.parametrize("size", [0, -2])
def test_refuses_empty_batches(size):
    with pytest.raises(ValueError, match=rf"batch_size must be at least 1, got {size}\. Make per_device"):
        PairSampler(SimpleNamespace(epoch=0), KEYS, size)


class CountedKeys(list):
    """How often keys of a row were looked up."""

    count = 0

    def __getitem__(self, row):
        self.count += 1
        return super().__getitem__(row)


def test_a_report_that_many_share_costs_as_much_as_others():
    number = 4000
    keys = torch.arange(1, number + 1)[:, None].repeat(1, 2)
    keys[: number // 5, 0] = 7
    keys[number // 2 :, 1] //= 2  # studies of two volumes
    sampler = PairSampler(SimpleNamespace(epoch=0), keys, 10)
    sampler.keys = counted = CountedKeys(sampler.keys)
    batches = _batches(sampler, 10)
    # The last copies find no batch: each batch has one.
    assert len(batches) > 320
    assert counted.count < 3 * number  # about twice each; 20 times as many if all that wait are looked at
    assert sum(any(row < number // 5 for row in batch) for batch in batches) == len(batches)
    for batch in batches:
        for column in (0, 1):
            assert len(set(keys[batch, column].tolist())) == 10


def test_what_waits_comes_first_and_a_key_that_is_met_on_the_way_does_not_lose_it():
    sampler = PairSampler(SimpleNamespace(epoch=0), torch.tensor([[1, 1], [1, 2], [2, 2], [3, 3]]), 2)
    sampler._order = lambda rng: [0, 1, 2, 3]
    batches = sampler._batches(0)
    assert sorted(map(sorted, batches)) == [[0, 2], [1, 3]]


def test_rare_findings_and_normal_studies_weigh_more():
    targets = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [-100, 0], [0.7, -100]])
    # Finding 0 in four studies, finding 1 in one, two have none.
    expected = [1 / 4, 1 / 4, (1 / 4 + 1) / 2, 1 / 2, 1 / 2, 1 / 4]
    assert balanced_weights(targets) == pytest.approx(expected)
