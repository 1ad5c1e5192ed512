"""Layer-wise decay of the learning rate: what was pre-trained, and is general, moves less than the head."""

import re
from collections.abc import Iterable
from typing import Any

from torch import nn

STAGE = re.compile(r"(?:^|\.)stages\.(\d+)\.")
STEM = re.compile(r"(?:^|\.)stem\.")


def layer_groups(
    model: nn.Module, decayed: Iterable[str], learning_rate: float, weight_decay: float, layer_lr_decay: float
) -> list[dict[str, Any]]:
    """Return the parameter groups of an optimizer, one per depth and weight decay.

    The head learns at ``learning_rate``; each residual stage at ``layer_lr_decay`` times the rate of what is
    above it, and the stem at ``layer_lr_decay`` times that of the first stage.
    Source: Clark et al. 2020, arXiv 2003.10555. Differs from it in: the unit is a stage, because a ResNet has
    few blocks, and not a transformer layer.

    Args:
        model: A 3D tower with a head; names tell the depth.
        decayed: Names of the parameters that weight decay applies to.
        learning_rate: Of the head.
        weight_decay: Of the ``decayed``.
        layer_lr_decay: In (0, 1]; 1 is the same rate for all.

    Raises:
        ValueError: If ``layer_lr_decay`` is outside (0, 1], or the model has no stages.
    """
    if not 0.0 < layer_lr_decay <= 1.0:
        raise ValueError(f"layer_lr_decay must be in (0, 1], got {layer_lr_decay!r}. Use 0.75, or None.")
    decayed = set(decayed)
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    stages = [int(match[1]) for name, _ in named if (match := STAGE.search(name))]
    if not stages:
        raise ValueError(
            f"layer_lr_decay must be None for a model without stages, got {layer_lr_decay} for "
            f"{type(model).__name__}. It is made for the 3D ResNet."
        )
    top = max(stages) + 2
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault((_depth(name, top), name in decayed), []).append(parameter)
    return [
        {
            "params": parameters,
            "lr": learning_rate * layer_lr_decay ** (top - depth),
            "weight_decay": weight_decay if is_decayed else 0.0,
        }
        for (depth, is_decayed), parameters in sorted(groups.items(), key=lambda item: item[0])
    ]


def _depth(name: str, top: int) -> int:
    """0 for the stem, 1 and up for the stages, ``top`` for pooling and head."""
    if STEM.search(name):
        return 0
    match = STAGE.search(name)
    return top if match is None else int(match[1]) + 1
