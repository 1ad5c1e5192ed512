"""Prompt in front of every text: fixed tokens, then trained vectors, with no padding before the text.

The published code of QwenCLIP (arXiv 2511.13876) has padding there; it is reproduced, to be compared with.

Axes in this file: B texts, T tokens of the padded texts, P prompt tokens, S of them trained, E embedding.
"""

import torch
from torch import nn
from transformers.utils import logging

logger = logging.get_logger(__name__)


class SoftPrompt(nn.Module):
    """Trained vectors that stand where token embeddings stand; a module, so that adapters can save it.

    They stay float32 in a half-precision model: steps of training are lost below 8 bits of mantissa.

    Args:
        num_tokens: Number S of vectors.
        width: Size E of a token embedding.
    """

    def __init__(self, num_tokens: int, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_tokens, width, dtype=torch.float32))

    @classmethod
    def from_embeddings(cls, embeds: torch.Tensor) -> "SoftPrompt":
        """Start from token embeddings ``(S, E)``, on their device."""
        prompt = cls(*embeds.shape).to(embeds.device)
        prompt.weight.data.copy_(embeds)
        return prompt

    def forward(self, hard: torch.Tensor) -> torch.Tensor:
        """Embeddings of the fixed tokens ``(P - S, E)`` -> the whole prompt ``(P, E)``, of their dtype."""
        return torch.cat([hard, self.weight.to(hard)])


def insert_prompt(
    prompt: torch.Tensor, embeds: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the prompt right before the first real token of every text.

    Args:
        prompt: ``(P, E)``.
        embeds: ``(B, T, E)``, padded on either side.
        attention_mask: ``(B, T)``, 1 for real tokens.

    Returns:
        Embeddings ``(B, P + T, E)``, their mask ``(B, P + T)``, and where the tokens of the texts went:
        indices ``(B, T)``.
    """
    size, num_texts = len(prompt), len(embeds)
    starts = (attention_mask != 0).to(torch.int8).argmax(dim=1)[:, None]  # of the first real token
    positions = torch.arange(size + embeds.shape[1], device=embeds.device)[None]
    is_prompt = (positions >= starts) * (positions < starts + size)
    # Sources stand as prompt, then text: padding in front of a text moves over the prompt.
    source = torch.where(positions < starts, positions + size, positions - starts * is_prompt)
    both = torch.cat([prompt.expand(num_texts, -1, -1), embeds], dim=1)
    masks = torch.cat([attention_mask.new_ones(num_texts, size), attention_mask], dim=1)
    positions = positions[:, : embeds.shape[1]]
    places = torch.where(positions < starts, positions, positions + size)
    return take_tokens(both, source), masks.gather(1, source), places


def insert_prompt_legacy(
    prompt: torch.Tensor, embeds: torch.Tensor, attention_mask: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Put the prompt in front and all padding between it and the text, whichever side it came on.

    Args:
        prompt: ``(P, E)``.
        embeds: ``(B, T, E)``.
        attention_mask: ``(B, T)``, 1 for real tokens.

    Returns:
        As :func:`insert_prompt`.
    """
    size, width = len(prompt), embeds.shape[1]
    num_behind = (attention_mask != 0).to(torch.int8).flip(1).argmax(dim=1)[:, None]  # padding on the right
    columns = torch.arange(width, device=embeds.device)[None]
    source, places = (columns - num_behind) % width, (columns + num_behind) % width + size
    both = torch.cat([prompt.expand(len(embeds), -1, -1), take_tokens(embeds, source)], dim=1)
    mask = torch.cat([attention_mask.new_ones(len(embeds), size), attention_mask.gather(1, source)], dim=1)
    return both, mask, places


def warn_of_legacy_padding(attention_mask: torch.Tensor) -> None:
    """Say once per process that vectors depend on the batch; without padding they do not."""
    if not bool(attention_mask.all()):
        logger.warning_once(
            "prompt_padding is 'legacy_middle': the vector of a text depends on the longest text of its "
            "batch. To use the model, set config.prompt_padding = 'contiguous', or encode with batch_size=1."
        )


def take_tokens(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Pick tokens ``places`` ``(B, T')`` of ``hidden`` ``(B, T, E)``: ``(B, T', E)``."""
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
