from collections import Counter

import pandas as pd
import pytest
from torch.utils.data import DataLoader

from radtower.training.text.contrastive_batches import Pair, PairDataset, SourceSampler


def _table(sources, negatives=()):
    return pd.DataFrame(
        {
            "query": [f"query {row}" for row in range(len(sources))],
            "positive": [f"positive {row}" for row in range(len(sources))],
            "negatives": [list(negatives)] * len(sources),
            "source": list(sources),
            "instruction": [None] * len(sources),
            "label_key": [None] * len(sources),
        }
    )


def test_a_pair_is_a_row_and_empty_cells_are_none():
    table = _table("aab", ["wrong"])
    table["instruction"] = [float("nan"), "", "Find the impression."]
    table["label_key"] = [None, "normal", "nodule"]
    data = PairDataset(table, 2, seed=0)
    assert [data[0], data[1], data[2]] == [
        Pair("query 0", "positive 0", ("wrong",)),
        Pair("query 1", "positive 1", ("wrong",), label_key="normal"),
        Pair("query 2", "positive 2", ("wrong",), "Find the impression.", "nodule"),
    ]
    assert len(data) == 3


def test_hard_negatives_are_drawn_anew_in_each_epoch_and_never_twice_in_one():
    names = [f"wrong {n}" for n in range(6)]
    data = PairDataset(_table("a" * 20, names), 2, seed=3)
    drawn = {epoch: [data[epoch, row].negatives for row in range(20)] for epoch in range(3)}
    assert all(len(set(pair)) == 2 for pairs in drawn.values() for pair in pairs)
    assert drawn[0] != drawn[1] != drawn[2]
    assert {name for pairs in drawn.values() for pair in pairs for name in pair} == set(names)
    again = PairDataset(_table("a" * 20, names), 2, seed=3)
    again.set_epoch(2)  # what was asked counts, not when
    assert [again[1, row].negatives for row in range(20)] == drawn[1]
    other = PairDataset(_table("a" * 20, names), 2, seed=4)
    assert [other[1, row].negatives for row in range(20)] != drawn[1]


def test_a_pair_with_few_negatives_keeps_them_all():
    data = PairDataset(_table("a", ["x", "y"]), 3, seed=0)
    assert data[5, 0].negatives == ("x", "y")
    assert PairDataset(_table("a", ["x"]), 0, seed=0)[0].negatives == ()


def test_each_batch_is_of_one_source_and_every_epoch_leaves_out_others():
    data = PairDataset(_table("a" * 7 + "b" * 10), 0, seed=1)
    sampler = SourceSampler(data, 3)
    epochs = []
    for epoch in range(8):
        data.set_epoch(epoch)
        places = list(sampler)
        assert {place[0] for place in places} == {epoch}
        rows = [row for _, row in places]
        assert len(rows) == len(set(rows)) == len(sampler) == 15
        batches = [rows[start : start + 3] for start in range(0, 15, 3)]
        kinds = [{data.sources[row] for row in batch} for batch in batches]
        assert Counter(next(iter(kind)) for kind in kinds if len(kind) == 1) == {"a": 2, "b": 3}
        epochs.append((tuple(rows), tuple(map(tuple, kinds))))
    assert len({rows for rows, _ in epochs}) == 8
    assert len({kinds for _, kinds in epochs}) > 1  # the sources take turns at random
    assert {row for rows, _ in epochs for row in rows} == set(range(17))
    data.set_epoch(2)
    assert tuple(row for _, row in sampler) == epochs[2][0]


@pytest.mark.parametrize(("same", "expected"), [((), False), ((0,), False), ((2,), True), ((0, 1), True)])
def test_a_source_of_texts_with_themselves_is_found(same, expected):
    table = _table("aab")
    table.loc[list(same), "positive"] = table.loc[list(same), "query"]
    assert PairDataset(table, 0, seed=0).is_of_one_text() is expected


def test_texts_are_all_that_an_epoch_may_ask_for():
    table = _table("aa", ["wrong", "positive 0"])
    table["instruction"] = ["Find it.", None]
    expected = [
        ("Find it.", "query 0"),
        (None, "query 1"),
        (None, "positive 0"),
        (None, "wrong"),
        (None, "positive 1"),
    ]
    assert PairDataset(table, 1, seed=0).texts() == expected
    assert PairDataset(table, 0, seed=0).texts() == [text for text in expected if text[1] != "wrong"]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_workers_see_the_epoch_that_the_sampler_asks_for(num_workers):
    data = PairDataset(_table("a" * 4, "uvwxyz"), 1, seed=0)
    loader = DataLoader(
        data,
        batch_size=2,
        sampler=SourceSampler(data, 2),
        collate_fn=list,
        num_workers=num_workers,
        persistent_workers=num_workers > 0,
    )
    for epoch in range(2):
        data.set_epoch(epoch)
        expected = [data[place] for place in SourceSampler(data, 2)]
        assert [pair for batch in loader for pair in batch] == expected


def test_refuses_a_source_that_would_never_be_trained_on():
    data = PairDataset(_table("aaaab"), 0, seed=0)
    with pytest.raises(ValueError, match=r"a batch of 2 pairs, got \{'b': 1\}"):
        SourceSampler(data, 2)


def test_refuses_nothing_to_train_on():
    with pytest.raises(ValueError, match="got 0 pairs and 1"):
        PairDataset(_table(""), 1, seed=0)
    with pytest.raises(ValueError, match="got 1 pairs and -1"):
        PairDataset(_table("a"), -1, seed=0)
