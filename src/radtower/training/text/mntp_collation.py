"""Reports -> pieces of token ids with hidden tokens, for masked next-token prediction.

What is hidden follows from the seed, the epoch and the place of the piece alone: neither the number of
workers nor the batches change it, and a resumed run hides what the uninterrupted one does.
Axes in this file: N pieces, B pieces of a batch, T tokens.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import PreTrainedTokenizerBase

IGNORED = -100  # the ignore index of PyTorch
MaskToken = Literal["blank", "eos", "mask"]
Corruption = Literal["mask", "bert"]
BLANK = "_"  # the token of LLM2Vec (arXiv 2404.05961) for models without a mask token
# Of the hidden tokens of BERT (arXiv 1810.04805): shown as the mask, and as a token drawn at random.
SHARE_MASKED, SHARE_RANDOM = 0.8, 0.1


class MaskedReports(Dataset[dict[str, torch.Tensor]]):
    """Pieces of reports, in which each epoch hides other tokens.

    Special tokens are never hidden, nor is the first token of a piece, which no state predicts. A piece hides
    at least one token.

    Args:
        pieces: Token ids of each piece; see :func:`split_into_pieces`.
        tokenizer: Knows which tokens are special, and which exist.
        mask_token_id: Shown in the place of a hidden token.
        probability: Of hiding a token, in (0, 1).
        corruption: ``mask`` shows the mask for all hidden tokens; ``bert`` for 80 %, a random token for 10 %
            and the token itself for 10 %.
        seed: Of what is hidden.

    Raises:
        ValueError: If the probability is out of its range, or no piece is left.
    """

    def __init__(
        self,
        pieces: Sequence[Sequence[int]],
        tokenizer: PreTrainedTokenizerBase,
        mask_token_id: int,
        *,
        probability: float = 0.2,
        corruption: Corruption = "mask",
        seed: int = 0,
    ) -> None:
        if not 0 < probability < 1:
            raise ValueError(f"probability must be between 0 and 1, got {probability}. The usual one is 0.2.")
        if not pieces:
            raise ValueError("pieces must hold text, got none. Check the text column and the split.")
        self.pieces = [torch.tensor(piece) for piece in pieces]
        self.special_ids = torch.tensor(sorted(tokenizer.all_special_ids))
        known = torch.tensor(sorted(set(tokenizer.get_vocab().values())))
        self.plain_ids = known[~torch.isin(known, self.special_ids)]
        self.mask_token_id = mask_token_id
        self.probability = probability
        self.corruption = corruption
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.pieces)

    def set_epoch(self, epoch: int) -> None:
        """Hide what belongs to this epoch."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        """Return ``input_ids`` ``(T,)`` and ``labels`` ``(T,)``, the hidden ids or -100."""
        ids = self.pieces[index]
        rng = np.random.default_rng([self.seed, self.epoch, index])
        may_hide = _may_hide(ids, self.special_ids)
        is_hidden = may_hide & (torch.from_numpy(rng.random(len(ids))) < self.probability)
        if not is_hidden.any():
            is_hidden[int(rng.choice(may_hide.nonzero().flatten()))] = True
        shown = torch.where(is_hidden, self.mask_token_id, ids)
        if self.corruption == "bert":
            draw = torch.from_numpy(rng.random(len(ids)))
            any_token = self.plain_ids[torch.from_numpy(rng.integers(len(self.plain_ids), size=len(ids)))]
            is_random = is_hidden & (draw >= SHARE_MASKED) & (draw < SHARE_MASKED + SHARE_RANDOM)
            shown = torch.where(is_random, any_token, shown)
            shown = torch.where(is_hidden & (draw >= SHARE_MASKED + SHARE_RANDOM), ids, shown)
        return {"input_ids": shown, "labels": torch.where(is_hidden, ids, IGNORED)}


class PaddedPieces:
    """Pad the pieces of a batch to the longest.

    Args:
        pad_token_id: Shown where there is padding; nothing attends to it.
    """

    def __init__(self, pad_token_id: int) -> None:
        self.pad_token_id = pad_token_id

    def __call__(self, samples: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Samples of ``input_ids`` and ``labels`` -> these and ``attention_mask``, each ``(B, T)``."""
        length = max(len(sample["input_ids"]) for sample in samples)
        ids = torch.full((len(samples), length), self.pad_token_id)
        labels = torch.full((len(samples), length), IGNORED)
        mask = torch.zeros((len(samples), length), dtype=torch.long)
        for row, sample in enumerate(samples):
            size = len(sample["input_ids"])
            ids[row, :size], labels[row, :size], mask[row, :size] = sample["input_ids"], sample["labels"], 1
        return {"input_ids": ids, "attention_mask": mask, "labels": labels}


def split_into_pieces(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, max_length: int
) -> tuple[list[list[int]], list[int]]:
    """Tokenize texts, each distinct one once; a long one gives several pieces, so that nothing is cut off.

    Args:
        texts: Reports; empty ones are left out.
        tokenizer: Puts its special tokens around every piece.
        max_length: Tokens of a piece, special ones included.

    Returns:
        Token ids of each piece, in order, and the position of its text in ``texts``. Pieces in which no token
        can be hidden are left out.

    Raises:
        ValueError: If ``max_length`` leaves no room for two tokens of text.
    """
    room = max_length - tokenizer.num_special_tokens_to_add()
    if room < 2:
        raise ValueError(
            f"max_length must leave room for two tokens of text, got {max_length} with {max_length - room} "
            "special tokens. Raise it."
        )
    distinct = [text for text in dict.fromkeys(texts) if text.strip()]
    if not distinct:
        return [], []
    encoded = tokenizer(distinct, max_length=max_length, truncation=True, return_overflowing_tokens=True)
    special = torch.tensor(sorted(tokenizer.all_special_ids))
    first = {text: position for position, text in reversed(list(enumerate(texts)))}
    pieces, positions = [], []
    for piece, number in zip(encoded["input_ids"], encoded["overflow_to_sample_mapping"], strict=True):
        if _may_hide(torch.tensor(piece), special).any():
            pieces.append(piece)
            positions.append(first[distinct[number]])
    return pieces, positions


def find_mask_token(tokenizer: PreTrainedTokenizerBase, kind: MaskToken) -> int:
    """Return the id of what is shown in the place of hidden tokens.

    Args:
        tokenizer: Of the language model.
        kind: ``blank`` is the token ``_``; ``eos`` and ``mask`` are the special tokens of that name.

    Raises:
        ValueError: If the tokenizer has none.
    """
    vocabulary = tokenizer.get_vocab()
    blanks = [vocabulary[piece] for piece in (BLANK, f"\u2581{BLANK}") if piece in vocabulary]
    found = {
        "blank": blanks[0] if blanks else None,
        "eos": tokenizer.eos_token_id,
        "mask": tokenizer.mask_token_id,
    }
    if found[kind] is None:
        there = [name for name, token_id in found.items() if token_id is not None]
        raise ValueError(f"mask_token must be in the tokenizer, got {kind!r}. It has {', '.join(there)}.")
    return int(found[kind])


def _may_hide(ids: torch.Tensor, special_ids: torch.Tensor) -> torch.Tensor:
    """Mask ``(T,)``: neither special nor the first."""
    allowed = ~torch.isin(ids, special_ids)
    allowed[:1] = False
    return allowed
