from collections import Counter

import pytest
import torch
from torch.utils.data import DataLoader

from radtower.training.text.mntp_collation import (
    MaskedReports,
    PaddedPieces,
    find_mask_token,
    split_into_pieces,
)

BLANK_ID = 62
TEXTS = [
    "There is no nodule.",
    "small effusion",
    "",
    "There is no nodule.",
    "Describe the effusion. It is small.",
]


@pytest.fixture
def pieces(tiny_tokenizer):
    return split_into_pieces(TEXTS, tiny_tokenizer, 512)[0]


def _long(tiny_tokenizer, **settings):
    generator = torch.Generator().manual_seed(1)
    pieces = [[1, *torch.randint(3, 300, (999,), generator=generator).tolist()] for _ in range(20)]
    return MaskedReports(pieces, tiny_tokenizer, BLANK_ID, **settings)


def test_distinct_texts_become_pieces_and_nothing_is_cut_off(tiny_tokenizer, pieces):
    assert pieces == [tiny_tokenizer(TEXTS[n])["input_ids"] for n in (0, 1, 4)]
    short, positions = split_into_pieces(TEXTS, tiny_tokenizer, 4)
    assert {len(piece) for piece in short[:-1]} <= {2, 3, 4}
    assert all(piece[0] == tiny_tokenizer.bos_token_id for piece in short)
    for row in (0, 1, 4):
        together = [
            token for piece, at in zip(short, positions, strict=True) if at == row for token in piece[1:]
        ]
        assert together == tiny_tokenizer(TEXTS[row])["input_ids"][1:]
    assert split_into_pieces(["", " "], tiny_tokenizer, 512) == ([], [])


def test_a_piece_of_one_token_without_a_special_one_is_left_out(tiny_tokenizer):
    tiny_tokenizer.add_bos_token = False
    tiny_tokenizer.backend_tokenizer.post_processor = None
    assert split_into_pieces(["nodule"], tiny_tokenizer, 8) == ([], [])
    assert len(split_into_pieces(["no nodule"], tiny_tokenizer, 8)[0]) == 1


def test_hides_a_fifth_but_no_special_token_and_not_the_first(tiny_tokenizer):
    reports = _long(tiny_tokenizer)
    rows = [reports[n] for n in range(len(reports))]
    labels = torch.stack([row["labels"] for row in rows])
    shown = torch.stack([row["input_ids"] for row in rows])
    is_hidden = labels != -100
    # 20,000 draws: five standard deviations of the share are 0.014.
    assert is_hidden.float().mean() == pytest.approx(0.2, abs=0.015)
    original = torch.stack(reports.pieces)
    assert torch.equal(labels[is_hidden], original[is_hidden])
    assert torch.equal(shown[~is_hidden], original[~is_hidden])
    assert (shown[is_hidden] == BLANK_ID).all()
    assert not is_hidden[:, 0].any()
    without_special = MaskedReports([[5, 2, 7, 0, 1, 9]] * 50, tiny_tokenizer, BLANK_ID, probability=0.99)
    for n in range(50):  # 0, 1, 2 are special, and the 5 comes first
        assert set(without_special[n]["labels"].tolist()) <= {-100, 7, 9}


def test_the_probability_is_that_asked_for(tiny_tokenizer):
    reports = _long(tiny_tokenizer, probability=0.6)
    hidden = torch.stack([reports[n]["labels"] for n in range(20)]) != -100
    assert hidden.float().mean() == pytest.approx(0.6, abs=0.02)


def test_as_bert_shows_masks_random_tokens_and_the_tokens_themselves(tiny_tokenizer):
    reports = _long(tiny_tokenizer, probability=0.5, corruption="bert")
    kinds, random_tokens = Counter(), set()
    for n in range(20):
        row = reports[n]
        for shown, label in zip(row["input_ids"].tolist(), row["labels"].tolist(), strict=True):
            if label != -100:
                kind = "mask" if shown == BLANK_ID else "itself" if shown == label else "random"
                kinds[kind] += 1
                random_tokens |= {shown} if kind == "random" else set()
    total = sum(kinds.values())
    assert kinds["mask"] / total == pytest.approx(0.8, abs=0.02)
    assert kinds["random"] / total == pytest.approx(0.1, abs=0.015)
    assert kinds["itself"] / total == pytest.approx(0.1, abs=0.015)
    assert len(random_tokens) > 200
    assert not random_tokens & set(tiny_tokenizer.all_special_ids)


def test_every_piece_hides_a_token(tiny_tokenizer):
    reports = MaskedReports([[1, 7, 8, 9]] * 200, tiny_tokenizer, BLANK_ID, probability=1e-6)
    places = [(reports[n]["labels"] != -100).nonzero().flatten().tolist() for n in range(200)]
    assert {len(place) for place in places} == {1}
    assert {place[0] for place in places} == {1, 2, 3}


def test_what_is_hidden_depends_on_seed_epoch_and_place_alone(tiny_tokenizer):
    reports = _long(tiny_tokenizer, seed=3)
    first = [reports[n]["labels"] for n in range(20)]
    assert all(torch.equal(reports[n]["labels"], first[n]) for n in reversed(range(20)))
    reports.set_epoch(1)
    second = [reports[n]["labels"] for n in range(20)]
    other_seed = _long(tiny_tokenizer, seed=4)
    for n in range(20):
        shares = [
            ((one != -100) & (other != -100)).float().mean().item()
            for one, other in (
                (first[n], second[n]),
                (first[n], other_seed[n]["labels"]),
                (first[n], first[n - 1]),
            )
        ]
        assert shares == pytest.approx([0.04] * 3, abs=0.03)  # as of independent draws


def test_neither_workers_nor_batches_change_what_is_hidden(tiny_tokenizer, pieces):
    reports = MaskedReports(pieces, tiny_tokenizer, BLANK_ID, seed=7)
    reports.set_epoch(2)
    collate = PaddedPieces(0)
    found = []
    for workers, size in ((0, 3), (1, 1)):
        loader = DataLoader(reports, batch_size=size, num_workers=workers, collate_fn=collate)
        rows = [row for batch in loader for row in zip(batch["input_ids"], batch["labels"], strict=True)]
        found.append([[part[: len(piece)] for part in row] for row, piece in zip(rows, pieces, strict=True)])
    for one, other in zip(*found, strict=True):
        assert torch.equal(one[0], other[0])
        assert torch.equal(one[1], other[1])


def test_pads_on_the_right(tiny_tokenizer):
    samples = [
        {"input_ids": torch.tensor([1, 62, 8]), "labels": torch.tensor([-100, 7, -100])},
        {"input_ids": torch.tensor([1, 62]), "labels": torch.tensor([-100, 9])},
    ]
    batch = PaddedPieces(5)(samples)
    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[1, 62, 8], [1, 62, 5]],
        "attention_mask": [[1, 1, 1], [1, 1, 0]],
        "labels": [[-100, 7, -100], [-100, 9, -100]],
    }


def test_finds_the_mask_token(tiny_tokenizer):
    assert find_mask_token(tiny_tokenizer, "blank") == tiny_tokenizer.get_vocab()["_"]
    assert find_mask_token(tiny_tokenizer, "eos") == 2
    with pytest.raises(ValueError, match=r"must be in the tokenizer, got 'mask'\. It has blank, eos\."):
        find_mask_token(tiny_tokenizer, "mask")
    tiny_tokenizer.add_special_tokens({"mask_token": "<mask>"})
    assert find_mask_token(tiny_tokenizer, "mask") == len(tiny_tokenizer) - 1


def test_refuses(tiny_tokenizer):
    with pytest.raises(ValueError, match=r"probability must be between 0 and 1, got 1\.0"):
        MaskedReports([[1, 2]], tiny_tokenizer, BLANK_ID, probability=1.0)
    with pytest.raises(ValueError, match="pieces must hold text, got none"):
        MaskedReports([], tiny_tokenizer, BLANK_ID)
    with pytest.raises(ValueError, match="room for two tokens of text, got 2 with 1 special"):
        split_into_pieces(TEXTS, tiny_tokenizer, 2)
