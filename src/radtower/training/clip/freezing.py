"""Which weights of a tower train: none, its prompt, low-rank updates, its uppermost layers, or all.

Projections, temperature, bias and finding head lie outside the towers and always train.
"""

import logging
from typing import Any, Literal, cast, get_args

from torch import nn
from transformers import PreTrainedModel

from radtower.modeling.llm_biencoder.modeling_soft_prompt import SoftPrompt
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_towers import Pooling, freeze_unread_poolers
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.tower_lora import LoraSettings, add_tower_lora
from radtower.training.clip.tower_parts import find_layers
from radtower.training.text.lora import has_adapters

logger = logging.getLogger(__name__)

TowerMode = Literal["frozen", "soft_prompt", "lora", "last_n", "full"]
# Read at the input of a tower, wherever it is registered.
INPUTS = (nn.Embedding, SoftPrompt)
# Of DINOv2 and its like, for masked pre-training; distributed training would wait for its gradient.
UNREAD_TOKEN = "mask_token"  # noqa: S105 -- the name of a weight


def set_tower_modes(model: MedCLIPModel, run: ClipRun) -> list[str]:
    """Choose what trains in both towers of a dual tower, as the run says.

    Returns:
        A line per tower, for the log.

    Raises:
        ValueError: See :func:`set_tower_mode`.
    """
    lines = []
    for side, tower in (("vision", model.vision_model), ("text", model.text_model)):
        mode = getattr(run, f"{side}_mode")
        lora = LoraSettings(
            rank=run.lora_rank,
            alpha=run.lora_alpha,
            dropout=run.lora_dropout,
            is_alone=run.lora_only,
            target_modules=getattr(run, f"{side}_lora_targets"),
        )
        line = set_tower_mode(
            tower,
            mode,
            num_last_layers=getattr(run, f"num_last_{side}_layers"),
            lora=lora if mode == "lora" else None,
            pooling=getattr(model.config, f"{side}_pooling"),
        )
        lines.append(f"{side} tower: {line}")
    for line in lines:
        logger.info(line)
    return lines


def set_tower_mode(
    tower: PreTrainedModel,
    mode: TowerMode,
    *,
    num_last_layers: int | None = None,
    lora: LoraSettings | None = None,
    pooling: Pooling = "pooler",
) -> str:
    """Choose what trains in a tower.

    Batch norms whose weights are frozen also keep their running statistics, and a tower of which nothing
    trains runs without dropout, whoever calls ``train()``.

    Args:
        tower: Changed in place.
        mode: ``frozen``; ``soft_prompt``, the trained vectors in front of the text alone; ``lora``, see
            :func:`add_tower_lora`; ``last_n``, the uppermost layers (stages of a convolutional network) and
            what follows them, but not a soft prompt, which comes before them; ``full``.
        num_last_layers: For ``last_n``, at least 1.
        lora: For ``lora``.
        pooling: Of the dual tower; what only another one would read is not trained.

    Returns:
        One line with the number of trained and frozen weights.

    Raises:
        ValueError: If the mode is another, its setting is missing or comes with another mode, the tower has
            no soft prompt, no list of layers or fewer of them, has adapters already, or does not fit LoRA.
    """
    _require_settings(tower, mode, num_last_layers, lora)
    tower.requires_grad_(mode == "full")
    if mode == "soft_prompt":
        cast(nn.Module, tower.soft_prompt).requires_grad_(True)
    if lora is not None:
        add_tower_lora(tower, lora)
    if num_last_layers is not None:
        _train_last_layers(tower, num_last_layers)
    freeze_unread_poolers(tower, pooling)
    for name, parameter in tower.named_parameters():
        if name.rpartition(".")[2] == UNREAD_TOKEN:
            parameter.requires_grad_(False)
    if _rest_what_is_frozen not in tower._forward_pre_hooks.values():
        tower.register_forward_pre_hook(_rest_what_is_frozen)
    counts = {True: 0, False: 0}
    for parameter in tower.parameters():
        counts[parameter.requires_grad] += parameter.numel()
    chosen = mode if num_last_layers is None else f"{mode} with n = {num_last_layers}"
    return f"{type(tower).__name__}, {chosen}: {counts[True]:,} weights trained, {counts[False]:,} frozen"


def _require_settings(
    tower: PreTrainedModel, mode: str, num_last_layers: int | None, lora: LoraSettings | None
) -> None:
    if mode not in get_args(TowerMode):
        raise ValueError(f"mode must be one of {list(get_args(TowerMode))}, got {mode!r}. Choose one.")
    for name, value, owner in (("num_last_layers", num_last_layers, "last_n"), ("lora", lora, "lora")):
        if (value is not None) != (mode == owner):
            raise ValueError(
                f"{name} must be given for mode {owner!r} and for no other, got {value!r} for {mode!r}. "
                "Change one of the two."
            )
    if has_adapters(tower):
        raise ValueError(
            f"a tower must have no adapters before its mode is set, got a {type(tower).__name__} with LoRA. "
            "Call merge_tower_adapters first."
        )
    if mode == "soft_prompt" and not (isinstance(tower, LLMBiEncoder) and tower.soft_prompt is not None):
        raise ValueError(
            f"mode 'soft_prompt' must have a soft prompt to train, got a {type(tower).__name__} without. "
            "Give an LLMBiEncoder one with set_prompt, or choose another mode."
        )


def _train_last_layers(tower: PreTrainedModel, num_layers: int) -> None:
    """Layers are registered in the order in which they run, and what follows them behind them."""
    name, layers = find_layers(tower)
    if not 1 <= num_layers <= len(layers):
        raise ValueError(
            f"num_last_layers must be between 1 and {len(layers)}, the layers of {type(tower).__name__}, "
            f"got {num_layers}. Use mode 'frozen' for none, and 'full' for the embedding, too."
        )
    first = f"{name}.{len(layers) - num_layers}"
    is_reached = False
    for module_name, module in tower.named_modules():
        is_reached = is_reached or module_name == first
        if is_reached and not isinstance(module, INPUTS):
            for parameter in module.parameters(recurse=False):
                parameter.requires_grad_(True)


def _rest_what_is_frozen(tower: nn.Module, _args: Any) -> None:
    # A hook, because the Trainer puts the whole model into training mode before every step. Not a closure:
    # it must survive a copy of the tower.
    if not any(parameter.requires_grad for parameter in tower.parameters()):
        tower.eval()
        return
    for module in tower.modules():
        weights = list(module.parameters(recurse=False))
        if (
            getattr(module, "track_running_stats", False)
            and weights
            and not any(weight.requires_grad for weight in weights)
        ):
            module.eval()
