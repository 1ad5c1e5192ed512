"""Latent-attention pooling: the tokens of one text -> one vector.

Axes in this file: B batch, T tokens, L latents, E embedding.
"""

import torch
import torch.nn.functional as F
from torch import nn

MINIMUM_COUNT = 1e-9  # keeps the mean of an empty mask finite, as the published head does


class LatentAttentionPooling(nn.Module):
    """Each token attends to trained latents, passes an MLP, and the masked tokens are averaged.

    Differs from NV-Embed (arXiv 2405.17428) in every detail: this is the head of LLM2Vec4CXR (arXiv
    2509.15234), with multi-head attention in which tokens are queries and latents are keys and values.
    ``v0`` has no norm and no residual, and loads the public weights; ``prenorm`` adds both, with zero
    output weights at the start, so that training departs from mean pooling.

    Args:
        width: Size E of the hidden states and of the result.
        num_latents: Number L of latents.
        num_heads: Attention heads; divides ``width``.
        variant: ``"v0"`` or ``"prenorm"``.
    """

    def __init__(self, width: int, num_latents: int, num_heads: int, variant: str) -> None:
        super().__init__()
        self.variant = variant
        self.latents = nn.Parameter(torch.empty(num_latents, width))
        # Holds the parameters under the public names; its forward is written out below.
        self.multihead_attn = nn.MultiheadAttention(width, num_heads, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))
        if variant == "prenorm":
            self.norm_attention = nn.LayerNorm(width)
            self.norm_mlp = nn.LayerNorm(width)

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool a batch.

        Args:
            hidden: ``(B, T, E)`` token states.
            mask: ``(B, T)``, 1 where a token is pooled.

        Returns:
            ``(B, E)`` float32, also from half-precision weights: the mean over hundreds of tokens needs it.
        """
        if self.variant == "prenorm":
            attended = hidden + self._attend(self.norm_attention(hidden))
            activated = self._activate(self.norm_mlp(attended))
            return masked_mean(attended, mask) + self._last_linear(masked_mean(activated, mask))
        return self._last_linear(masked_mean(self._activate(self._attend(hidden)), mask))

    def output_parameters(self) -> list[torch.Tensor]:
        """Return what the two residual branches end in: zeros here make the ``prenorm`` head mean pooling."""
        attention, last = self.multihead_attn.out_proj, self._last
        return [attention.weight, attention.bias, last.weight, last.bias]

    @property
    def _last(self) -> nn.Linear:
        last = self.mlp[2]
        assert isinstance(last, nn.Linear)  # built in __init__
        return last

    def _attend(self, queries: torch.Tensor) -> torch.Tensor:
        attention = self.multihead_attn
        weights = attention.in_proj_weight.chunk(3)
        biases = attention.in_proj_bias.chunk(3)
        # Keys and values depend on the latents alone: one projection serves the whole batch.
        sources = (queries, self.latents[None], self.latents[None])
        q, k, v = (
            F.linear(source, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
            for source, weight, bias in zip(sources, weights, biases, strict=True)
        )
        size = (len(queries), -1, -1, -1)
        h = F.scaled_dot_product_attention(q, k.expand(*size), v.expand(*size))
        return attention.out_proj(h.transpose(1, 2).flatten(2))

    def _activate(self, h: torch.Tensor) -> torch.Tensor:
        return self.mlp[1](self.mlp[0](h))

    def _last_linear(self, mean: torch.Tensor) -> torch.Tensor:
        """Apply the second linear layer once per text: it commutes with the mean."""
        return F.linear(mean, self._last.weight.float(), self._last.bias.float())


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average ``hidden`` ``(B, T, E)`` over the tokens of ``mask`` ``(B, T)``, in float32."""
    weight = mask.to(torch.float32)[..., None]
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=MINIMUM_COUNT)
