"""Run a decoder on texts with the prompt of a configuration in front of each; the prompt does not come back.

Axes in this file: B texts, T tokens, E width of the decoder.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput

from ...configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from .modeling_inner_outputs import without_prompt
from .modeling_soft_prompt import SoftPrompt, insert_prompt, insert_prompt_legacy


def read_texts(
    decoder: nn.Module,
    config: LLMBiEncoderConfig,
    soft_prompt: SoftPrompt | None,
    tokens: Mapping[str, torch.Tensor | None],
    attention_mask: torch.Tensor,
    inner: Mapping[str, Any],
) -> BaseModelOutput:
    """Put the prompt in front of every text, run the decoder, and leave the prompt out of what it gives.

    Args:
        decoder: Of transformers.
        config: Names the fixed tokens of the prompt and where padding stands.
        soft_prompt: Its trained vectors. None without.
        tokens: ``input_ids`` ``(B, T)`` or ``inputs_embeds`` ``(B, T, E)``.
        attention_mask: ``(B, T)``, 1 for real tokens.
        inner: What the decoder shall return of its inner layers.
    """
    if not config.num_prompt_tokens:
        return _run(decoder, tokens, attention_mask, attention_mask, inner)
    embed: Any = decoder.get_input_embeddings()  # type: ignore[operator]
    embeds = tokens["inputs_embeds"]
    if embeds is None:
        embeds = embed(tokens["input_ids"])
    ids = config.hard_prompt_ids or []
    prompt = embed(torch.tensor(ids, dtype=torch.long, device=attention_mask.device))
    if soft_prompt is not None:
        prompt = soft_prompt(prompt)
    is_legacy = config.prompt_padding == "legacy_middle"
    insert = insert_prompt_legacy if is_legacy else insert_prompt
    embeds, mask, places = insert(prompt, embeds, attention_mask)
    counted = torch.ones_like(mask) if is_legacy else mask
    return without_prompt(_run(decoder, {"inputs_embeds": embeds}, mask, counted, inner), places)


def _run(
    decoder: nn.Module,
    tokens: Mapping[str, torch.Tensor | None],
    attention_mask: torch.Tensor,
    counted: torch.Tensor,
    inner: Mapping[str, Any],
) -> Any:
    # Counted over real tokens: a decoder with absolute positions must not see the side of the padding.
    positions = (counted.cumsum(dim=1) - 1).clamp(min=0)
    return decoder(
        **tokens,
        attention_mask=attention_mask,
        position_ids=positions,
        use_cache=False,
        return_dict=True,
        **inner,
    )
