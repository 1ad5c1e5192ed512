import pytest
import torch

from radtower.modeling.llm_biencoder.modeling_sentence_bounds import (
    CLOSES,
    CONTINUES,
    sentence_of,
    sentence_table,
)

WORDS = {
    "\u0120nodule": 0,  # byte-level: a space in front
    ".": CLOSES | CONTINUES,
    "5": CONTINUES,
    "ule": CONTINUES,
    "The": 0,
    "\u25815": 0,  # SentencePiece
    '."': CLOSES | CONTINUES,
    "\u010a": CLOSES,
    '"': CLOSES | CONTINUES,
    "\u0120\u2022": CLOSES,
    "<eos>.": CONTINUES,  # special
    "?)": CLOSES | CONTINUES,
    "(": 0,
    ".5": CONTINUES,
}


class Vocabulary:
    """What a table needs to know of a tokenizer."""

    all_special_ids = (list(WORDS).index("<eos>."),)

    def get_vocab(self) -> dict[str, int]:
        return {word: place for place, word in enumerate(WORDS)}


def _ids(text: str) -> torch.Tensor:
    return torch.tensor([[list(WORDS).index(word) for word in text.split("|")]])


def test_tokens_close_or_continue_sentences():
    table = sentence_table(Vocabulary(), len(WORDS) + 1)
    assert dict(zip(WORDS, table.tolist(), strict=False)) == WORDS
    assert table[-1] == 0  # the decoder has more tokens
    assert len(sentence_table(Vocabulary(), 3)) == 3


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("The|\u0120nodule|.|The|ule", [0, 0, 0, 1, 1]),
        ("The|5|.|5|ule|.", [0, 0, 0, 0, 0, 0]),  # 5.5, and a stop at the end
        ("The|.|\u25815|.|5", [0, 0, 1, 1, 1]),
        ('The|."|The|"|The', [0, 0, 1, 1, 2]),
        ("The|.|ule|\u010a|The", [0, 0, 0, 0, 1]),
        ("The|.|<eos>.|(", [0, 0, 0, 0]),
    ],
)
def test_sentences_are_numbered(text, numbers):
    table = sentence_table(Vocabulary(), len(WORDS))
    ids = _ids(text)
    assert sentence_of(ids, torch.ones_like(ids), table).tolist() == [numbers]


def test_padding_on_either_side_changes_no_number():
    table = sentence_table(Vocabulary(), len(WORDS))
    ids = _ids("The|.|The|.|The")
    padding = _ids(".|The")  # whatever the pad token is
    mask = torch.tensor([[1, 1, 1, 1, 1, 0, 0]])
    right = sentence_of(torch.cat([ids, padding], 1), mask, table)
    left = sentence_of(torch.cat([padding, ids], 1), mask.flip(1), table)
    assert right[0, :5].tolist() == left[0, 2:].tolist() == [0, 0, 1, 1, 2]
    assert int(right.max()) == int(left.max()) == 2
