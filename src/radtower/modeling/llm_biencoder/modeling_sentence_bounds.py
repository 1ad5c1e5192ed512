"""Which sentence a token belongs to, told by the tokens alone: a model must not need its tokenizer for that.

Axes in this file: B texts, T tokens, V tokens of the vocabulary.
"""

import re
from typing import Any

import torch

CLOSES = 1  # a sentence may end behind this token
CONTINUES = 2  # no sentence begins with this token
# How byte-level and SentencePiece vocabularies write a space and a line break in front of or in a token.
_SPACES = str.maketrans({"\u0120": " ", "\u2581": " ", "\u010a": "\n"})
# Quotation marks and bullets separate the items of a CT-RATE impression.
_CLOSING = re.compile(r"[.!?][\"')\]]*\s*$|[\"\u2022\u00b7\n]")
_BEGINNING = re.compile(r"\s|[A-Z(]")


def sentence_table(tokenizer: Any, size: int) -> torch.Tensor:
    """Say of every token whether a sentence may end behind it, and whether one may begin with it.

    Args:
        tokenizer: Byte-level or SentencePiece; special tokens do neither.
        size: V, of the decoder; the tokenizer may have fewer tokens.

    Returns:
        ``(V,)`` uint8, the sum of :data:`CLOSES` and :data:`CONTINUES`. A number such as 5.5 is not cut: its
        second half begins without a space.
    """
    table = torch.zeros(size, dtype=torch.uint8)
    special = set(tokenizer.all_special_ids)
    for text, place in tokenizer.get_vocab().items():
        if place >= size:
            continue
        plain = text.translate(_SPACES)
        is_special = place in special
        table[place] = CLOSES * (not is_special and _CLOSING.search(plain) is not None)
        table[place] += CONTINUES * (is_special or _BEGINNING.match(plain) is None)
    return table


def sentence_of(input_ids: torch.Tensor, attention_mask: torch.Tensor, table: torch.Tensor) -> torch.Tensor:
    """Number the sentences of each text.

    Args:
        input_ids: ``(B, T)``.
        attention_mask: ``(B, T)``, 1 for real tokens, padded on either side.
        table: ``(V,)``, see :func:`sentence_table`.

    Returns:
        ``(B, T)`` int64 from 0 on; a padded token has the number of a sentence beside it.
    """
    kind = table[input_ids].long() * attention_mask.long()
    closes, continues = kind & CLOSES, (kind & CONTINUES) // CONTINUES
    begins = closes[:, :-1] * (1 - continues[:, 1:]) * attention_mask[:, 1:].long()
    return torch.nn.functional.pad(begins.cumsum(dim=1), (1, 0))
