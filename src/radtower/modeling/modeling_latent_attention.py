"""Latent-attention pooling: the tokens of one text -> one vector.

Axes in this file: B batch, T tokens, N pooled tokens of all texts, L latents, E embedding, H heads.
"""

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

MINIMUM_COUNT = 1e-9  # keeps the mean of an empty mask finite, as the published head does
PLAIN_TYPES = (
    nn.Parameter,
    nn.Sequential,
    nn.Linear,
    NonDynamicallyQuantizableLinear,
    nn.GELU,
    nn.LayerNorm,
    nn.MultiheadAttention,
)


class FusedWeights(NamedTuple):
    """What of the head does not depend on the tokens.

    Args:
        keys: ``(H, L, E / H)``, of the latents.
        values: ``(H, L, E / H)``.
        weight: ``(E, E)``, output projection and first linear layer in one; empty for ``prenorm``.
        bias: ``(E,)``.
    """

    keys: torch.Tensor
    values: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor


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

        self._fused: tuple[list[torch.Tensor], FusedWeights] | None = None

    def forward(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Pool a batch.

        In eval mode and without gradients only pooled tokens are computed, and what depends on the weights
        alone is kept from call to call; the same numbers up to rounding.

        Args:
            hidden: ``(B, T, E)`` token states.
            mask: ``(B, T)``, 1 where a token is pooled.

        Returns:
            ``(B, E)`` float32, also from half-precision weights: the mean over hundreds of tokens needs it.
        """
        if self._can_fuse():
            return self._forward_fused(hidden, mask)
        if self.variant == "prenorm":
            attended = hidden + self._attend(self.norm_attention(hidden))
            activated = self._activate(self.norm_mlp(attended))
            return masked_mean(attended, mask) + self._last_linear(masked_mean(activated, mask))
        return self._last_linear(masked_mean(self._activate(self._attend(hidden)), mask))

    def __getstate__(self) -> dict[str, Any]:
        """Leave the fused weights out of copies and pickles."""
        return self.__dict__ | {"_fused": None}

    def output_parameters(self) -> list[torch.Tensor]:
        """Return what the two residual branches end in: zeros here make the ``prenorm`` head mean pooling."""
        attention, last = self.multihead_attn.out_proj, self._last
        return [attention.weight, attention.bias, last.weight, last.bias]

    @property
    def _last(self) -> nn.Linear:
        last: Any = self.mlp[2]  # an adapter may stand in its place, which has a weight and a bias, too
        return last

    def _attend(self, queries: torch.Tensor) -> torch.Tensor:
        attention = self.multihead_attn
        if not _is_plain(attention):  # an adapter, a hook: what it adds happens in its own forward
            latents = self.latents.expand(len(queries), -1, -1)
            attended: torch.Tensor = attention(queries, latents, latents, need_weights=False)[0]
            return attended
        # Keys and values depend on the latents alone: one projection serves the whole batch.
        keys, values = self._keys_and_values()
        return attention.out_proj(self._look_up(queries, keys, values))

    def _keys_and_values(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Latents as keys and values, ``(H, L, E / H)`` each."""
        attention = self.multihead_attn
        _, *weights = attention.in_proj_weight.chunk(3)
        _, *biases = attention.in_proj_bias.chunk(3)
        keys, values = (
            F.linear(self.latents, weight, bias).unflatten(-1, (attention.num_heads, -1)).transpose(0, 1)
            for weight, bias in zip(weights, biases, strict=True)
        )
        return keys, values

    def _look_up(self, queries: torch.Tensor, keys: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
        """Attention of tokens ``(B, T, E)`` over the latents, heads side by side."""
        attention = self.multihead_attn
        width = attention.embed_dim
        q = F.linear(queries, attention.in_proj_weight[:width], attention.in_proj_bias[:width])
        q = q.unflatten(-1, (attention.num_heads, -1)).transpose(-2, -3)
        size = (queries.shape[0], -1, -1, -1)
        h = F.scaled_dot_product_attention(q, keys.expand(size), values.expand(size))
        return h.transpose(-2, -3).flatten(-2)

    def _activate(self, h: torch.Tensor) -> torch.Tensor:
        return self.mlp[1](self.mlp[0](h))

    def _last_linear(self, mean: torch.Tensor) -> torch.Tensor:
        """Apply the second linear layer once per text: it commutes with the mean."""
        last = self._last
        if _is_plain(last):
            return F.linear(mean, last.weight.float(), last.bias.float())
        projected: torch.Tensor = last(mean.to(last.weight.dtype)).float()
        return projected

    def _can_fuse(self) -> bool:
        if self.training or torch.is_grad_enabled():
            return False
        if torch.compiler.is_compiling() or torch.jit.is_tracing():
            return False
        # The projections of the attention are read, and its forward is not called.
        return all(_is_plain(module) for module in self.modules() if module is not self) and all(
            type(parameter) in PLAIN_TYPES for parameter in self.parameters()
        )

    def _forward_fused(self, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        fused = self._fused_weights()
        is_pooled = mask != 0
        tokens, counts = hidden[is_pooled][None], is_pooled.sum(dim=1)
        if self.variant == "prenorm":
            h = self._look_up(self.norm_attention(tokens), fused.keys, fused.values)
            attended = tokens + self.multihead_attn.out_proj(h)
            activated = self._activate(self.norm_mlp(attended))
            return _segment_mean(attended, counts) + self._last_linear(_segment_mean(activated, counts))
        h = self._look_up(tokens, fused.keys, fused.values)
        activated = self.mlp[1](F.linear(h, fused.weight, fused.bias))
        return self._last_linear(_segment_mean(activated, counts))

    def _fused_weights(self) -> FusedWeights:
        """Fold what can be folded, once until a weight changes."""
        attention, first = self.multihead_attn, self.mlp[0]
        assert isinstance(first, nn.Linear)  # _can_fuse saw it
        sources: list[torch.Tensor] = [self.latents, attention.in_proj_weight, attention.in_proj_bias]
        if self.variant == "v0":
            sources += [attention.out_proj.weight, attention.out_proj.bias, first.weight, first.bias]
        # By value: weights change without a trace through .data, in inference mode, in shared memory.
        if self._fused is not None and _are_equal(self._fused[0], sources):
            return self._fused[1]
        with torch.autocast(self.latents.device.type, enabled=False):
            keys, values = self._keys_and_values()
            weight = bias = self.latents.new_empty(0)
            if self.variant == "v0":
                # Rounded once: half-precision weights lose no more here than in two layers.
                left, inner = first.weight.float(), attention.out_proj
                weight = (left @ inner.weight.float()).to(first.weight)
                bias = (left @ inner.bias.float() + first.bias.float()).to(first.weight)
        fused = FusedWeights(keys.contiguous(), values.contiguous(), weight, bias)
        self._fused = ([source.detach().clone() for source in sources], fused)
        return fused


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module does what its class does: no hook, adapter or offloading is skipped."""
    hooks = module._forward_hooks or module._forward_pre_hooks
    return type(module) in PLAIN_TYPES and not hooks and "forward" not in vars(module)


def _are_equal(before: list[torch.Tensor], now: list[torch.Tensor]) -> bool:
    return all(
        old.dtype == new.dtype and old.device == new.device and torch.equal(old, new)
        for old, new in zip(before, now, strict=True)
    )


def _segment_mean(tokens: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Average ``(1, N, E)`` over consecutive runs of ``counts`` ``(B,)`` tokens, in float32: ``(B, E)``."""
    # Not index_add: on a GPU its sums differ from run to run.
    sums = [run.sum(dim=0) for run in tokens[0].float().split(counts.tolist())]
    return torch.stack(sums) / counts[:, None].clamp(min=MINIMUM_COUNT)


def check_pooled(mask: torch.Tensor) -> None:
    """Refuse a mask ``(B, T)`` that says nothing, or what training and inference would read in two ways.

    Raises:
        ValueError: If a row is empty, or an entry is neither 0 nor 1.
    """
    is_pooled = mask != 0
    empty = (~is_pooled.any(dim=1)).nonzero().flatten().tolist()
    if empty:
        raise ValueError(
            f"every text must have a token to pool, got none in rows {empty}. "
            "Remove empty texts, and check that something follows the separator."
        )
    others = mask[is_pooled & (mask != 1)]
    if len(others):
        raise ValueError(
            f"masks must be 0 or 1 everywhere, got {others[0].item():.3g}. Choose tokens: none has a weight."
        )


def masked_mean(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Average ``hidden`` ``(B, T, E)`` over the tokens of ``mask`` ``(B, T)``, in float32."""
    weight = mask.to(torch.float32)[..., None]
    return (hidden.float() * weight).sum(dim=1) / weight.sum(dim=1).clamp(min=MINIMUM_COUNT)


def outermost_token(hidden: torch.Tensor, mask: torch.Tensor, is_last: bool) -> torch.Tensor:
    """State ``(B, E)`` of the first or the last token of ``mask`` ``(B, T)``, in float32."""
    is_pooled = (mask != 0).long()
    positions = torch.arange(mask.shape[1], device=mask.device)
    # By place, never by id, and of several equal maxima argmax gives the first.
    index = (is_pooled * positions if is_last else is_pooled).argmax(dim=1)
    return hidden[torch.arange(len(hidden), device=hidden.device), index].float()
