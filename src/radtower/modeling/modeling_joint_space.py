"""What joins two towers: a projection each, and the temperature and offset of their similarity.

Axes in this file: B samples, E width of a tower.
"""

import math

import torch
from torch import nn

MAX_LOGIT_SCALE = 100.0  # CLIP, arXiv 2103.00020, section 2.5


class LogitScale(nn.Module):
    """Learned inverse temperature; a module, so that adapters can save it and FSDP can shard it.

    Args:
        initial: Logarithm of the first value.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.log_value = nn.Parameter(torch.empty(1))

    def forward(self) -> torch.Tensor:
        """``(1,)``, after ``exp`` and capped."""
        log_value = self.log_value.float()
        capped = log_value.exp().clamp(max=MAX_LOGIT_SCALE).detach()
        # A clamp has no gradient: a scale that once passed the cap, where OpenAI's models begin, would stay.
        return capped * (1 + log_value - log_value.detach())

    @torch.no_grad()
    def cap(self) -> None:
        """Bring the weight back to the cap; in training before each step, so that its way down is short."""
        self.log_value.clamp_(max=math.log(MAX_LOGIT_SCALE))


class LogitBias(nn.Module):
    """Learned offset of the logits of the sigmoid loss; a module, as the scale is.

    Args:
        initial: First value.
    """

    def __init__(self, initial: float) -> None:
        super().__init__()
        self.initial = initial
        self.value = nn.Parameter(torch.empty(1))

    def forward(self) -> torch.Tensor:
        """``(1,)`` float32."""
        # A copy: distributed training counts a parameter that is an output twice, and stops.
        return self.value.float().clone()


class FirstDimensions(nn.Module):
    """Cuts vectors, as Matryoshka towers allow.

    Args:
        size: Numbers that are kept.
    """

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, vectors: torch.Tensor) -> torch.Tensor:
        """``(B, E)`` -> ``(B, size)``."""
        return vectors[:, : self.size]


def build_projection(kind: str, width: int, size: int) -> nn.Module:
    """From the width of a tower to the joint space; for the kinds see :class:`MedCLIPConfig`."""
    if kind == "linear":
        return nn.Linear(width, size, bias=False)
    if kind == "ln_linear":
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size))
    if kind == "slice":
        return FirstDimensions(size)
    if kind == "identity":
        return nn.Identity()
    return nn.Sequential(nn.Linear(width, size), nn.GELU(), nn.Linear(size, size))


def like_weights(vectors: torch.Tensor, projection: nn.Module) -> torch.Tensor:
    """In the precision of a projection; as they are, where it has no weights."""
    weight = next(projection.parameters(), None)
    return vectors if weight is None else vectors.to(weight.dtype)
