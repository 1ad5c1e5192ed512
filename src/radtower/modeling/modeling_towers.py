"""Towers of any family: built from a configuration, filled from a model, pooled to one vector per sample.

Axes in this file: B samples, T states, E width.
"""

from typing import Any, Literal

import torch
from torch import nn
from transformers import AutoModel, PreTrainedConfig, PreTrainedModel

from .modeling_ct3d import CT3DVisionModel
from .modeling_llm_biencoder import LLMBiEncoder

OWN_FAMILIES: dict[str, type[PreTrainedModel]] = {
    "ct3d_vision": CT3DVisionModel,
    "llm_biencoder": LLMBiEncoder,
}
# What makes the pooler output of towers of transformers, and nothing else: BERT and ViT; SigLIP; CLIP.
_POOLER = "pooler"
_OTHER_POOLERS = ("head", "post_layernorm")

Pooling = Literal["pooler", "cls", "mean", "last"]


def build_tower(config: PreTrainedConfig, pooling: Pooling) -> PreTrainedModel:
    """Build a tower; a pooler that would not be read is left out where the family allows it.

    Our families are built directly: where they are remote code, AutoModel does not know them.
    """
    # By name and not by class: transformers loads remote configurations and remote models from two copies
    # of the code, whose classes differ.
    family = OWN_FAMILIES.get(config.model_type)
    if family is not None:
        return family._from_config(config)
    tower: PreTrainedModel = AutoModel.from_config(config)
    pooler = getattr(tower, _POOLER, None)
    # One without weights stays: convolutional networks call theirs whether there is one or not.
    if pooling != "pooler" and isinstance(pooler, nn.Module) and any(True for _ in pooler.parameters()):
        setattr(tower, _POOLER, None)
    return tower


def freeze_unread_poolers(tower: PreTrainedModel, pooling: Pooling) -> None:
    """Take what only the pooler output depends on out of the training, where it is not read."""
    for name in () if pooling == "pooler" else _OTHER_POOLERS:
        part = getattr(tower, name, None)
        if isinstance(part, nn.Module):
            part.requires_grad_(False)


def fill_tower(tower: PreTrainedModel, source: PreTrainedModel) -> None:
    """Copy all weights of a model, but for those of a pooler that the tower has not.

    Raises:
        RuntimeError: If they do not fit, as where a pooler is read that the source has not.
    """
    has_pooler = getattr(tower, _POOLER, None) is not None
    weights = source.state_dict()
    tower.load_state_dict(
        {name: value for name, value in weights.items() if has_pooler or not name.startswith(f"{_POOLER}.")}
    )


def pool_states(
    output: Any,
    pooling: Pooling,
    mask: torch.Tensor | None = None,
) -> torch.Tensor:
    """Pool the states of a tower.

    Args:
        output: With ``pooler_output`` ``(B, E)`` or ``(B, E, 1, 1)``, or ``last_hidden_state`` ``(B, T, E)``.
        pooling: ``pooler`` takes the output of the tower's own, ``cls`` the first state, ``mean`` the mean,
            ``last`` the last state.
        mask: ``(B, T)``, 1 for real tokens, padded on either side. None takes all states.

    Returns:
        ``(B, E)``.

    Raises:
        ValueError: If the tower has no pooler and one is asked for, or maps instead of a row of states and
            none is.
    """
    if pooling == "pooler":
        pooled: torch.Tensor | None = getattr(output, "pooler_output", None)
        if pooled is None:
            raise ValueError(
                "pooling must be cls, mean or last for a tower that gives no pooler_output, got 'pooler'. "
                "Set vision_pooling or text_pooling."
            )
        return pooled.flatten(1)
    states: torch.Tensor = output.last_hidden_state
    if states.ndim != 3:
        raise ValueError(
            f"pooling must be 'pooler' for a tower whose states are maps, got {pooling!r} for "
            f"{tuple(states.shape)}. Set vision_pooling or text_pooling."
        )
    if mask is None:
        mask = states.new_ones(states.shape[:2])
    if pooling == "mean":
        weights = mask.to(states.dtype)[..., None]
        return (states * weights).sum(dim=1) / weights.sum(dim=1)
    places = torch.arange(states.shape[1], device=states.device)
    is_real = mask > 0
    if pooling == "cls":
        chosen = places.expand_as(mask).masked_fill(~is_real, len(places)).amin(dim=1)
    else:
        chosen = places.expand_as(mask).masked_fill(~is_real, -1).amax(dim=1)
    return states[torch.arange(len(states), device=states.device), chosen]
