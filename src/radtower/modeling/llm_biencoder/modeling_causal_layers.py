"""Lower layers that stay causal in a decoder that is read in both directions above them.

A layer of a causal language model that is not trained further knows only how to look back.
Axes: B texts, T tokens.
"""

from typing import Any

import torch
from torch import nn


def keep_causal(layers: nn.ModuleList) -> None:
    """Make decoder layers causal, whatever mask their decoder hands them.

    Args:
        layers: Of transformers; they take ``attention_mask`` by name.
    """
    for layer in layers:
        parts: list[Any] = [module for module in layer.modules() if hasattr(module, "is_causal")]
        for part in parts:
            part.is_causal = True
        layer.register_forward_pre_hook(_look_back_only, with_kwargs=True)


def _look_back_only(
    layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    attention: Any = layer.self_attn
    mask = kwargs.get("attention_mask")
    if mask is None and attention.config._attn_implementation == "eager":  # it knows no flag
        hidden = args[0] if args else kwargs["hidden_states"]
        mask = hidden.new_zeros(1, 1, hidden.shape[1], hidden.shape[1])
    # Families with one kind of attention keep the window in their configuration only.
    window = getattr(attention, "sliding_window", getattr(attention.config, "sliding_window", None))
    changed: dict[str, Any] = {"attention_mask": causal_part(mask, window)}
    if "is_causal" in kwargs:  # the decoder hands its own direction down, and it wins over that of the layer
        changed["is_causal"] = True
    return args, {**kwargs, **changed}


def causal_part(mask: Any, window: int | None = None) -> Any:
    """Take the future out of a mask.

    Args:
        mask: ``(B, 1, T, T)``, bool (True is seen) or float (added to the scores). None, or ``(B, T)``, comes
            from backends that go by ``is_causal``: it stays as it is.
        window: Tokens that a token sees, itself included; a decoder that reads both ways counts them
            otherwise. None is all.

    Raises:
        ValueError: If the mask is of another kind.
    """
    if mask is None:
        return None
    if not isinstance(mask, torch.Tensor) or mask.dim() not in (2, 4):
        kind = f"{mask.dim()} dimensions" if isinstance(mask, torch.Tensor) else type(mask).__name__
        raise ValueError(
            f"attention_mask must have 2 or 4 dimensions where layers stay causal, got {kind}. Load with "
            "attn_implementation='sdpa'."
        )
    if mask.dim() == 2:
        return mask
    is_seen = torch.ones(mask.shape[-2:], dtype=torch.bool, device=mask.device).tril()
    if window is not None:
        is_seen = is_seen.triu(1 - window)
    if mask.dtype == torch.bool:
        return mask & is_seen
    return mask.masked_fill(~is_seen, torch.finfo(mask.dtype).min)
