"""Low-rank adapters in either tower of a dual tower, and back to plain weights (LoRA, arXiv 2106.09685).

As in the report encoder, they are put in place: the state dict of the dual tower holds everything that is
trained, and the merged model is one that never had any.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass

from peft import LoraConfig, TaskType, inject_adapter_in_model
from torch import nn
from transformers import PreTrainedModel

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_towers import freeze_unread_poolers
from radtower.training.clip.tower_parts import find_layers
from radtower.training.text.lora import add_lora, has_adapters, merge_adapters, require_lora_numbers

# Query, key, value and output of attention, under the names that families of transformers have for them.
ATTENTION = re.compile(
    r"(^|\.)([qkvo]_proj|out_proj|query|key|value|[qkv]_lin|out_lin|qkv|Wqkv"
    r"|(attn|attention)\.(Wo|proj|dense|output\.dense))$"
)


@dataclass(frozen=True, kw_only=True)
class LoraSettings:
    """Low-rank updates of a tower.

    Args:
        rank: Of each update.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: On the input of each update, in [0, 1).
        target_modules: Last parts of the names of the linear layers to adapt, such as ``q_proj``. None takes
            query, key, value and output of attention; in an :class:`LLMBiEncoder` all of the decoder.
        is_alone: Whether pooling head and soft prompt of an :class:`LLMBiEncoder` are frozen.
    """

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    target_modules: Sequence[str] | None = None
    is_alone: bool = False


def add_tower_lora(tower: PreTrainedModel, settings: LoraSettings) -> None:
    """Train low-rank updates of a tower instead of its weights; they start at zero.

    The pooling head and the soft prompt of an :class:`LLMBiEncoder` train as well, unless the settings say
    otherwise; of other towers nothing but the updates.

    Args:
        tower: Changed in place.
        settings: Of the updates.

    Raises:
        ValueError: If a number is out of its range, a name is no linear layer, or the tower has no linear
            layers that look like attention.
    """
    if isinstance(tower, LLMBiEncoder):
        tower.requires_grad_(not settings.is_alone)
        add_lora(tower, settings.rank, settings.alpha, settings.dropout, settings.target_modules)
        return
    require_lora_numbers(settings.rank, settings.alpha, settings.dropout)
    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]  # peft divides by the rank, whole or not
        lora_dropout=settings.dropout,
        target_modules=_targets(tower, settings.target_modules),
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    inject_adapter_in_model(config, tower)


def merge_tower_adapters(model: MedCLIPModel) -> None:
    """Add the updates of both towers to their weights; without any, nothing happens.

    Args:
        model: Changed in place; it saves and loads as one that never had adapters.

    Raises:
        ValueError: If merging gives a weight that is not finite.
    """
    for tower, pooling in (
        (model.vision_model, model.config.vision_pooling),
        (model.text_model, model.config.text_pooling),
    ):
        if has_adapters(tower):
            merge_adapters(tower.model if isinstance(tower, LLMBiEncoder) else tower)
            freeze_unread_poolers(tower, pooling)


def _targets(tower: PreTrainedModel, last_parts: Sequence[str] | None) -> list[str]:
    """Whole names of the linear layers to adapt."""
    prefix, layers = find_layers(tower)
    linears = [f"{prefix}.{name}" for name, m in layers.named_modules() if isinstance(m, nn.Linear)]
    known = sorted({name.rpartition(".")[2] for name in linears})
    kind = type(tower).__name__
    if not linears:
        raise ValueError(
            f"a tower must have linear layers for LoRA, got none in the layers of {kind}. "
            "Choose the mode 'last_n' or 'full'."
        )
    unknown = sorted(set(last_parts or ()) - set(known))
    if unknown:
        raise ValueError(
            f"target_modules must be linear layers of {kind}, got {unknown}. Choose from {known}."
        )
    if last_parts:
        return [name for name in linears if name.rpartition(".")[2] in last_parts]
    found = [name for name in linears if ATTENTION.search(name)]
    if not found:
        raise ValueError(
            f"target_modules must be named for a tower without known names of attention, got None for "
            f"{kind}. Choose from {known}."
        )
    return found
