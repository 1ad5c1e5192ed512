"""One vector per sample from the output of any tower of transformers.

Axes in this file: B samples, T states, E width.
"""

from typing import Any, Literal

import torch


def pool_states(
    output: Any,
    pooling: Literal["pooler", "cls", "mean", "last"],
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
        ValueError: If the tower has no pooler and one is asked for.
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
