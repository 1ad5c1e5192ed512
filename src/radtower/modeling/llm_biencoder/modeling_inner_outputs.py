"""States and attention maps of inner layers: whether they are asked for, and those of the texts alone.

Axes in this file: B texts, T tokens of the padded texts, P prompt tokens, E width of the decoder, H heads.
"""

from typing import Any

import torch
from transformers import PreTrainedConfig
from transformers.modeling_outputs import BaseModelOutput

from .modeling_soft_prompt import take_tokens


def inner_outputs(
    config: PreTrainedConfig, output_hidden_states: bool | None, output_attentions: bool | None
) -> dict[str, Any]:
    """Say what a part of a model shall return beside its last states, as arguments of its forward.

    Args:
        config: Of the whole model; asks where the call leaves it open.
        output_hidden_states: Of the call. None leaves it open.
        output_attentions: Likewise.

    Returns:
        Nothing for what is left open: the part then goes by its own configuration.
    """
    asked = {"output_hidden_states": output_hidden_states, "output_attentions": output_attentions}
    for name, value in asked.items():
        if value is None and getattr(config, name):
            asked[name] = True
    return {name: value for name, value in asked.items() if value is not None}


def with_inner(output: Any) -> Any:
    """Return the output of a tower that has states or maps of inner layers; None for another."""
    has_any = any(getattr(output, name, None) is not None for name in ("hidden_states", "attentions"))
    return output if has_any else None


def without_prompt(output: Any, places: torch.Tensor) -> BaseModelOutput:
    """Leave out the prompt that the decoder read in front of the texts.

    Args:
        output: Of the decoder, with states ``(B, P + T, E)`` and attention maps ``(B, H, P + T, P + T)``;
            those that were not asked for are None.
        places: ``(B, T)``, where the tokens of the texts are.

    Returns:
        States ``(B, T, E)`` and maps ``(B, H, T, T)``; what a row of a map lacks to 1 went to the prompt.
    """
    states, maps = output.hidden_states, output.attentions
    return BaseModelOutput(
        last_hidden_state=take_tokens(output.last_hidden_state, places),
        hidden_states=states and tuple(None if one is None else take_tokens(one, places) for one in states),
        attentions=maps and tuple(_take_pairs(one, places) for one in maps),
    )


def _take_pairs(attention: torch.Tensor, places: torch.Tensor) -> torch.Tensor:
    rows = places[:, None, :, None].expand(-1, attention.shape[1], -1, attention.shape[3])
    columns = places[:, None, None, :].expand(-1, attention.shape[1], places.shape[1], -1)
    return attention.gather(2, rows).gather(3, columns)
