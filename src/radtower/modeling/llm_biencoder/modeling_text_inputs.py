"""Texts -> token ids, attention mask and the mask of the tokens to pool.

Axes in this file: B texts, T tokens.
"""

from collections.abc import Sequence

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase


def text_inputs(
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    max_length: int,
    separator: str | None,
    mask_mode: str,
) -> BatchEncoding:
    """Turn texts into the inputs of the encoder, padded to the longest.

    Args:
        tokenizer: Of the encoder; pads on either side.
        texts: One text or several.
        max_length: Tokens kept; the end is cut.
        separator: Splits each text once into an instruction and what is pooled; the separator itself is
            not read. None pools everything.
        mask_mode: ``exact`` or ``legacy_suffix``; see :class:`LLMBiEncoderConfig`.

    Returns:
        ``input_ids``, ``attention_mask`` and, with a separator, ``embed_mask``, each ``(B, T)``.

    Raises:
        TypeError: If a text is not a string.
        ValueError: If a text or the separator is empty, an instruction alone fills ``max_length``, or
            ``max_length`` is below 1.
    """
    if max_length < 1:
        raise ValueError(f"max_length must be at least 1, got {max_length}. Leave it out for the default.")
    if separator == "":
        raise ValueError("separator must not be empty, got ''. Leave it out for the configuration's.")
    parts = [_split_once(text, separator) for text in as_texts(texts)]
    empty = [row for row, (_, text) in enumerate(parts) if not text.strip()]
    if empty or not parts:
        raise ValueError(f"texts must not be empty, got nothing to encode at positions {empty}. Remove them.")
    inputs = tokenizer(
        ["".join(part) for part in parts],
        max_length=max_length,
        truncation=True,
        padding=True,
        return_offsets_mapping=True,
        return_tensors="pt",
    )
    offsets = inputs.pop("offset_mapping")
    inputs.pop("token_type_ids", None)
    if separator is None:
        return inputs
    if mask_mode == "exact":
        mask = inputs["attention_mask"] * _overlaps_text(parts, offsets)
    else:
        mask = inputs["attention_mask"] * _is_suffix(tokenizer, parts, inputs["attention_mask"], max_length)
    lost = (mask.sum(dim=1) == 0).nonzero().flatten().tolist()
    if lost:
        raise ValueError(
            f"an instruction must leave room for its text, got none left at positions {lost}. "
            "Shorten the instruction or raise max_length."
        )
    inputs["embed_mask"] = mask
    return inputs


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several -> a list; a lone string must never be taken for a sequence of letters.

    Raises:
        TypeError: If an entry is not a string.
    """
    if isinstance(texts, str):
        return [texts]
    listed = list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(
                f"texts must be strings, got {type(text).__name__} at position {position}. "
                "Decode bytes, and leave out missing reports."
            )
    return listed


def _overlaps_text(parts: list[tuple[str, str]], offsets: torch.Tensor) -> torch.Tensor:
    """Mask ``(B, T)`` of the tokens that reach into the text."""
    boundaries = torch.tensor([len(instruction) for instruction, _ in parts])[:, None]
    starts, ends = offsets.unbind(dim=-1)
    # A token that straddles the boundary counts as text: its first word may be the "no".
    return (ends > boundaries) * (ends > starts)


def _is_suffix(
    tokenizer: PreTrainedTokenizerBase,
    parts: list[tuple[str, str]],
    attention_mask: torch.Tensor,
    max_length: int,
) -> torch.Tensor:
    """Mask ``(B, T)`` of the last n tokens, n counted on the text alone, as the public code does."""
    counts = tokenizer(
        [text for _, text in parts], max_length=max_length, truncation=True, add_special_tokens=False
    )["input_ids"]
    from_the_end = attention_mask.flip(1).cumsum(1).flip(1)
    return from_the_end <= torch.tensor([len(ids) for ids in counts])[:, None]


def _split_once(text: str, separator: str | None) -> tuple[str, str]:
    """Instruction and text; no separator means no instruction."""
    if separator is None or separator not in text:
        return "", text
    instruction, _, rest = text.partition(separator)
    return instruction, rest
