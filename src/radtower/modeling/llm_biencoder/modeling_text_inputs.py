"""Texts -> token ids, attention mask and the mask of the tokens to pool.

Axes in this file: B texts, T tokens.
"""

import os
import threading
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

import torch
from transformers import BatchEncoding, PreTrainedTokenizerBase

from ...configuration.configuration_llm_biencoder import LLMBiEncoderConfig

# A fast tokenizer keeps the length to cut at as a state: between setting and reading it, a second thread
# would cut the texts of the first at its own. One lock for all, since copies may share what is in Rust.
TOKENIZER_LOCK = threading.RLock()
if hasattr(os, "register_at_fork"):  # else a worker forked while another thread tokenizes waits forever
    os.register_at_fork(
        before=TOKENIZER_LOCK.acquire,
        after_in_parent=TOKENIZER_LOCK.release,
        after_in_child=TOKENIZER_LOCK.release,
    )


@dataclass(frozen=True)
class TokenRow:
    """One text as tokens, without padding.

    Args:
        input_ids: Token ids, special tokens included.
        embed_mask: 1 for the tokens to pool, as long as ``input_ids``. None pools all.
    """

    input_ids: list[int]
    embed_mask: list[int] | None


def token_rows(
    tokenizer: PreTrainedTokenizerBase,
    texts: str | Sequence[str],
    config: LLMBiEncoderConfig,
    max_length: int | None = None,
    separator: str | None = None,
    instruction: str | None = None,
) -> list[TokenRow]:
    """Turn texts into rows of tokens: text prefix, instruction, text. Threads may share a tokenizer.

    Args:
        tokenizer: Of the encoder; a fast one, which knows where in the text a token comes from.
        texts: One text or several.
        config: Prompt, instruction template, mask mode and pooling.
        max_length: Tokens kept, the prompt included; the end of a text is cut. None takes the
            configuration's.
        separator: Splits each text once into an instruction and what is pooled; the separator itself is
            not read. None pools everything but the text prefix.
        instruction: One for all texts, put into the template of the configuration; not pooled.

    Raises:
        TypeError: If a text, the separator or the instruction is not a string, or the tokenizer is not a fast
            one.
        ValueError: If a text or the separator is empty, a text holds half a character, separator and
            instruction come together, an instruction leaves no room for its text, or a text is longer than
            the decoder has positions.
    """
    for name, words in (("separator", separator), ("instruction", instruction)):
        if words is not None and not isinstance(words, str):
            raise TypeError(
                f"{name} must be a string, got {words!r}. Give other settings by name, such as batch_size=32."
            )
    max_length = config.max_length if max_length is None else max_length
    if separator == "":
        raise ValueError("separator must not be empty, got ''. Leave it out for the configuration's.")
    if separator is not None and instruction is not None:
        raise ValueError(
            f"separator must not come with an instruction, got {separator!r} and {instruction!r}. "
            "Pass the bare texts with the instruction, or texts that hold theirs with the separator."
        )
    _check_tokenizer(tokenizer, config, max_length)
    parts = [_split(text, config, separator, instruction) for text in as_texts(texts)]
    empty = [row for row, (whole, text) in enumerate(parts) if _is_empty(whole, text, config)]
    if empty or not parts:
        raise ValueError(f"texts must not be empty, got nothing to encode at positions {empty}. Remove them.")
    room = max_length - config.num_prompt_tokens
    inputs = _tokenize(
        tokenizer,
        [config.text_prefix + whole for whole, _ in parts],
        max_length=room,
        truncation=True,
        return_offsets_mapping=True,
        return_special_tokens_mask=True,
    )
    _check_positions(inputs["input_ids"], config)
    if separator is None and instruction is None and not config.text_prefix:
        return [TokenRow(ids, None) for ids in inputs["input_ids"]]
    if config.mask_mode == "exact":
        masks = [
            _reaches_into_text(offsets, len(config.text_prefix) + len(whole) - len(text))
            for offsets, (whole, text) in zip(inputs["offset_mapping"], parts, strict=True)
        ]
    else:
        masks = _suffixes(tokenizer, [text for _, text in parts], inputs["input_ids"], room)
    lost = [row for row, mask in enumerate(masks) if not any(mask)]
    if lost:
        raise ValueError(
            f"an instruction must leave room for its text, got none left at positions {lost}. "
            "Shorten the instruction or raise max_length."
        )
    if config.pooling == "last_token":
        masks = [_with_end(*row) for row in zip(masks, inputs["special_tokens_mask"], strict=True)]
    return [TokenRow(ids, mask) for ids, mask in zip(inputs["input_ids"], masks, strict=True)]


def pad_rows(tokenizer: PreTrainedTokenizerBase, rows: Sequence[TokenRow]) -> BatchEncoding:
    """Pad rows to the longest, on the side of the tokenizer.

    Returns:
        ``input_ids``, ``attention_mask`` and, where rows have one, ``embed_mask``, each ``(B, T)``.
    """
    width = max(len(row.input_ids) for row in rows)
    pad_id = tokenizer.pad_token_id or 0  # any id will do: the mask hides it

    def stack(values: Sequence[list[int]], padding: int) -> torch.Tensor:
        filled = [[padding] * (width - len(row)) for row in values]
        if tokenizer.padding_side == "left":
            return torch.tensor([pad + row for pad, row in zip(filled, values, strict=True)])
        return torch.tensor([row + pad for pad, row in zip(filled, values, strict=True)])

    inputs = {
        "input_ids": stack([row.input_ids for row in rows], pad_id),
        "attention_mask": stack([[1] * len(row.input_ids) for row in rows], 0),
    }
    masks = [row.embed_mask for row in rows if row.embed_mask is not None]
    if masks:
        inputs["embed_mask"] = stack(masks, 0)
    return BatchEncoding(inputs)


def bare_ids(tokenizer: PreTrainedTokenizerBase, words: str) -> list[int]:
    """Token ids of words alone, without special tokens; none of "", whatever the tokenizer makes of it."""
    ids: list[int] = _tokenize(tokenizer, words, add_special_tokens=False)["input_ids"] if words else []
    return ids


def as_texts(texts: str | Sequence[str]) -> list[str]:
    """One text or several -> a list; a lone string must never be taken for a sequence of letters.

    Raises:
        TypeError: If ``texts`` is nothing to iterate over in order, or an entry is not a string.
        ValueError: If an entry holds half a character, which no tokenizer reads.
    """
    if isinstance(texts, str):
        texts = [texts]
    if isinstance(texts, Mapping | Set) or not hasattr(texts, "__iter__"):
        raise TypeError(
            f"texts must be a string or several in order, got {type(texts).__name__}. Pass a list of strings."
        )
    listed = list(texts)
    for position, text in enumerate(listed):
        if not isinstance(text, str):
            raise TypeError(
                f"texts must be strings, got {type(text).__name__} at position {position}. "
                "Decode bytes, and leave out missing reports."
            )
        try:
            text.encode()
        except UnicodeEncodeError as error:
            code = ord(text[error.start])
            raise ValueError(
                f"texts must be valid Unicode, got the lone surrogate U+{code:04X} at character "
                f"{error.start} of the text at position {position}. Decode with errors='replace'."
            ) from None  # the error holds the text
    return listed


def _tokenize(tokenizer: PreTrainedTokenizerBase, texts: str | list[str], **settings: Any) -> BatchEncoding:
    with TOKENIZER_LOCK:
        return tokenizer(texts, **settings)


def _check_tokenizer(tokenizer: PreTrainedTokenizerBase, config: LLMBiEncoderConfig, max_length: int) -> None:
    if not tokenizer.is_fast:
        raise TypeError(
            f"tokenizer must be a fast one, got {type(tokenizer).__name__}. "
            "Only fast tokenizers say where in the text a token comes from."
        )
    if tokenizer.truncation_side != "right":
        raise ValueError(
            f"tokenizer must cut texts on the right, got truncation_side {tokenizer.truncation_side!r}. "
            "Set tokenizer.truncation_side = 'right': on the left it would cut the instruction."
        )
    least = config.num_prompt_tokens + tokenizer.num_special_tokens_to_add() + 1
    if max_length < least:
        raise ValueError(
            f"max_length must be at least {least}, prompt and special tokens included, got {max_length}. "
            "Leave it out for the configuration's."
        )


def _check_positions(rows: list[list[int]], config: LLMBiEncoderConfig) -> None:
    """Past its last position a decoder computes on, and means nothing."""
    num_positions = getattr(config.text_config, "max_position_embeddings", None)
    longest = max(len(ids) for ids in rows) + config.num_prompt_tokens
    if num_positions is not None and longest > num_positions:
        raise ValueError(
            f"max_length must be at most {num_positions}, the positions of the decoder, got a text of "
            f"{longest} tokens. Lower max_length."
        )
    for rope in _rope_settings(config):
        # One such text would change the vectors of all others in its batch. The type "dynamic" changes past
        # the last position only, which is refused above.
        most = rope.get("original_max_position_embeddings", longest)
        if rope.get("rope_type") == "longrope" and longest > most:
            raise ValueError(
                f"max_length must be at most {most}, beyond which longrope turns all positions another way, "
                f"got a text of {longest} tokens. Lower max_length."
            )


def _rope_settings(config: LLMBiEncoderConfig) -> list[dict[str, Any]]:
    """What the decoder says about its rotary positions: once, or for each type of layer."""
    settings = getattr(config.text_config, "rope_parameters", None) or {}
    per_layer = [value for value in settings.values() if isinstance(value, dict)]
    return per_layer or [settings]


def _split(
    text: str, config: LLMBiEncoderConfig, separator: str | None, instruction: str | None
) -> tuple[str, str]:
    """What is read, without the text prefix, and the part of it that is pooled."""
    if instruction is not None:
        return config.instruction_template.replace("{instruction}", instruction) + text, text
    if separator is None or separator not in text:
        return text, text
    if config.mask_mode == "exact":
        before, _, rest = text.partition(separator)
        return before + rest, rest
    # The public code reads every part and counts the tokens of the second, be there a third or not.
    pieces = text.split(separator)
    return "".join(pieces), pieces[1]


def _is_empty(whole: str, text: str, config: LLMBiEncoderConfig) -> bool:
    # The public code pools all tokens where the text has none.
    return not (text if config.mask_mode == "exact" else whole).strip()


def _reaches_into_text(offsets: Sequence[tuple[int, int]], boundary: int) -> list[int]:
    """Mask of the tokens that reach into the text, which begins at character ``boundary``."""
    # A token that straddles the boundary counts as text: its first word may be the "no". So does white space
    # in the text, of which some tokenizers report an empty span. Special tokens are said to end at 0.
    return [int(end > boundary) for _, end in offsets]


def _suffixes(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], rows: list[list[int]], max_length: int
) -> list[list[int]]:
    """Masks of the last n tokens, n counted on the text alone, as the public code does; n = 0 means all."""
    settings = {"max_length": max_length, "truncation": True, "add_special_tokens": False}
    alone = _tokenize(tokenizer, texts, **settings)["input_ids"]
    counts = [len(text) or len(ids) for text, ids in zip(alone, rows, strict=True)]
    return [
        [int(place >= len(ids) - n) for place in range(len(ids))] for ids, n in zip(rows, counts, strict=True)
    ]


def _with_end(mask: list[int], is_special: list[int]) -> list[int]:
    """Add the special tokens that the tokenizer put behind the text: models pooled there were trained so."""
    num_behind = next(count for count, special in enumerate([*reversed(is_special), 0]) if not special)
    return mask[: len(mask) - num_behind] + [1] * num_behind
