"""Names and shapes of published 3D ResNet weights, in the terms of our network."""

import re
from collections.abc import Mapping
from typing import Any

import torch

# Pooling-free heads of the tasks the weights come from: Kinetics classes, segmentation of eight data sets.
HEADS = ("fc.", "conv_seg.")
# The stride of a stem is not in its weights. Kernel (Z, Y, X) -> stride: video ResNets; arXiv 2509.13175 and
# its light variant; MedicalNet.
STEM_STRIDES = {
    (3, 7, 7): (1, 2, 2),
    (2, 2, 2): (2, 2, 2),
    (4, 4, 4): (4, 4, 4),
    (7, 7, 7): (2, 2, 2),
}
MEDICALNET_DILATIONS = [1, 1, 2, 4]  # arXiv 1904.00625: the last two stages keep the resolution

_BLOCK = r"layer(?P<stage>\d)\.(?P<block>\d+)\."
_RENAMES = (
    (r"stem\.(?P<rest>.+)", "stem.{rest}"),
    (r"conv1\.(?P<rest>weight)", "stem.0.{rest}"),
    (r"bn1\.(?P<rest>.+)", "stem.1.{rest}"),
    (_BLOCK + r"conv(?P<n>\d)\.0\.(?P<rest>.+)", "{place}.conv{n}.{rest}"),
    (_BLOCK + r"conv(?P<n>\d)\.1\.(?P<rest>.+)", "{place}.norm{n}.{rest}"),
    (_BLOCK + r"conv(?P<n>\d)\.(?P<rest>weight)", "{place}.conv{n}.{rest}"),
    (_BLOCK + r"bn(?P<n>\d)\.(?P<rest>.+)", "{place}.norm{n}.{rest}"),
    (_BLOCK + r"downsample\.(?P<rest>.+)", "{place}.downsample.{rest}"),
)


def read_video_resnet(
    state_dict: Mapping[str, Any], stem: str, num_channels: int
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Translate weights of torchvision's video ResNets, or of MedicalNet.

    Args:
        state_dict: Published names and tensors, or a file's content with these under ``state_dict``.
        stem: ``fold`` or ``replace``, see :meth:`CT3DVisionModel.from_video_resnet`.
        num_channels: Channels that a folded stem shall read.

    Returns:
        Fields of the configuration that the weights decide, and the weights by the names of our network.

    Raises:
        KeyError: If a name belongs to no part of such a network, or there is no stem or no first block.
        ValueError: If ``stem`` is neither, the stride of the stem cannot be known, or only some names begin
            with ``module.``.
    """
    if stem not in ("fold", "replace"):
        raise ValueError(f"stem must be fold or replace, got {stem!r}. Fold to keep the published stem.")
    given = _without_prefix(state_dict.get("state_dict", state_dict))
    is_medicalnet = "conv1.weight" in given
    weights = {_rename(name): tensor for name, tensor in given.items() if not name.startswith(HEADS)}
    fields = _read_stages(weights)
    if is_medicalnet:
        fields["dilations"] = MEDICALNET_DILATIONS
    if stem == "fold":
        fields |= _read_stem(weights) | {"stem_max_pool": is_medicalnet}
        weights["stem.0.weight"] = _fold(weights["stem.0.weight"], num_channels)
        return fields, weights
    last_norm = "stem.4." if "stem.4.weight" in weights else "stem.1."
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("stem.")}
    norm = {
        name.replace(last_norm, "stem.1."): tensor
        for name, tensor in weights.items()
        if name.startswith(last_norm)
    }
    return fields, kept | norm


def _without_prefix(state_dict: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Drop what ``nn.DataParallel`` puts before every name."""
    marked = [name for name in state_dict if name.startswith("module.")]
    if marked and len(marked) != len(state_dict):
        raise ValueError(
            f"state_dict must have module. before all names, got {len(marked)} of {len(state_dict)}. "
            "Pass one network."
        )
    return {name.removeprefix("module."): tensor for name, tensor in state_dict.items()}


def _rename(name: str) -> str:
    for pattern, template in _RENAMES:
        if match := re.fullmatch(pattern, name):
            parts = match.groupdict()
            if "stage" in parts:
                parts["place"] = f"stages.{int(parts['stage']) - 1}.{parts['block']}"
            return template.format(**parts)
    raise KeyError(
        f"state_dict must hold a video ResNet of torchvision or a 3D ResNet of MedicalNet, got {name!r}. "
        "Remove what is not part of the network."
    )


def _read_stages(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """Block type, depth and widths."""
    blocks = {tuple(map(int, name.split(".")[1:3])) for name in weights if name.startswith("stages.")}
    if (0, 0) not in blocks or "stem.0.weight" not in weights:
        found = sorted({name.split(".")[0] for name in weights})
        raise KeyError(f"state_dict must hold a stem and layer1.0, got {found}. Pass the whole network.")
    layers = [sum(stage == index for stage, _ in blocks) for index in range(max(blocks)[0] + 1)]
    if "stages.0.0.conv3.weight" in weights:
        block_type, last = "bottleneck", "norm3"
    elif "stages.0.0.conv1.0.weight" in weights:
        block_type, last = "r2plus1d", "norm2"
    else:
        planar = weights.get("stages.1.0.conv1.weight")
        block_type, last = "mc3" if planar is not None and planar.shape[2] == 1 else "basic", "norm2"
    widths = [weights[f"stages.{stage}.0.{last}.weight"].shape[0] for stage in range(len(layers))]
    has_shortcuts = any(".downsample." in name for name in weights)
    return {
        "block_type": block_type,
        "layers": layers,
        "hidden_sizes": widths,
        "shortcut": "conv" if has_shortcuts else "pad",
    }


def _read_stem(weights: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    first, last = weights["stem.0.weight"], weights.get("stem.3.weight")
    kernel = tuple(first.shape[2:]) if last is None else (last.shape[2], *first.shape[3:])
    if kernel not in STEM_STRIDES:
        raise ValueError(
            f"the kernel of the stem must be one of {sorted(STEM_STRIDES)}, got {kernel}. Use stem='replace'."
        )
    return {
        "stem_kernel_size": list(kernel),
        "stem_stride": list(STEM_STRIDES[kernel]),
        "stem_hidden_size": None if last is None else first.shape[0],
    }


def _fold(weight: torch.Tensor, num_channels: int) -> torch.Tensor:
    """Spread the sum over the former inputs evenly; untouched if their number stays."""
    if weight.shape[1] == num_channels:
        return weight
    return (weight.sum(dim=1, keepdim=True) / num_channels).expand(-1, num_channels, -1, -1, -1)
