"""Prompt in front of every text: fixed tokens, then trained vectors, with no padding in between.

Axes in this file: B texts, T tokens of the padded texts, P prompt tokens, S of them trained, E embedding.
"""

import torch
from torch import nn


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

    Padding between prompt and text, as in the published QwenCLIP code, makes an embedding depend on the
    longest text of its batch.

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


def take_tokens(hidden: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    """Pick tokens ``places`` ``(B, T')`` of ``hidden`` ``(B, T, E)``: ``(B, T', E)``."""
    return hidden.gather(1, places[..., None].expand(-1, -1, hidden.shape[-1]))
