"""Names and shapes of published 3D ResNet weights, in the terms of our network."""

import re
from collections.abc import Mapping
from typing import Any

import torch

# Heads of the tasks the weights come from: classes of videos, segmentation of eight data sets.
HEADS = re.compile(r"fc\.(weight|bias)|conv_seg\..+")
# ResNet-10, -18, -34 and -50, -101, -152, -200 (arXiv 1512.03385 and 1904.00625). A file from which blocks
# are missing has other numbers, and would else be read as a network of its own.
PUBLISHED_LAYERS = (
    [1, 1, 1, 1],
    [2, 2, 2, 2],
    [3, 4, 6, 3],
    [3, 4, 23, 3],
    [3, 8, 36, 3],
    [3, 24, 36, 3],
)
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
    state_dict: Mapping[str, Any], stem: str, config: Mapping[str, Any]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Translate weights of torchvision's video ResNets, or of MedicalNet.

    Args:
        state_dict: Published names and tensors, or a file's content with these under ``state_dict``.
        stem: ``fold`` or ``replace``, see :meth:`CT3DVisionModel.from_video_resnet`.
        config: Fields of the configuration that the caller sets; ``num_channels``, the channels that a
            folded stem shall read, is one of them.

    Returns:
        Fields of the configuration that the weights decide, and the weights by the names of our network.

    Raises:
        KeyError: If a name belongs to no part of such a network, or there is no stem or no first block, or
            a stage is missing.
        TypeError: If ``state_dict`` is not a mapping of tensors.
        ValueError: If ``stem`` is neither, the weights leave a stride, a dilation or the depth open that
            ``config`` does not set, a tensor is not finite, or only some names begin with ``module.``.
    """
    if stem not in ("fold", "replace"):
        raise ValueError(f"stem must be fold or replace, got {stem!r}. Fold to keep the published stem.")
    given = _without_prefix(_read_tensors(state_dict))
    is_medicalnet = "conv1.weight" in given
    if is_medicalnet and any(name.startswith("fc.") for name in given):
        _check_open_fields(stem, config)
    weights = {_rename(name): tensor for name, tensor in given.items() if not HEADS.fullmatch(name)}
    fields = _read_stages(weights)
    if "layers" not in config and fields["layers"] not in PUBLISHED_LAYERS:
        raise ValueError(
            f"state_dict must hold a network of known depth, got {fields['layers']} blocks per stage. "
            "Pass the whole network, or layers if these are all."
        )
    if is_medicalnet:
        has_shortcuts = any(".downsample." in name for name in weights)
        fields |= {"dilations": MEDICALNET_DILATIONS, "shortcut": "conv" if has_shortcuts else "pad"}
    if stem == "fold":
        fields |= _read_stem(weights) | {"stem_max_pool": is_medicalnet}
        weights["stem.0.weight"] = _fold(weights["stem.0.weight"], config["num_channels"])
        return fields, weights
    last_norm = "stem.4." if "stem.4.weight" in weights else "stem.1."
    kept = {name: tensor for name, tensor in weights.items() if not name.startswith("stem.")}
    norm = {
        name.replace(last_norm, "stem.1."): tensor
        for name, tensor in weights.items()
        if name.startswith(last_norm)
    }
    return fields, kept | norm


def _read_tensors(content: Mapping[str, Any]) -> Mapping[str, torch.Tensor]:
    """The names and tensors of a file, all of them finite."""
    tensors = content.get("state_dict", content) if isinstance(content, Mapping) else content
    if not isinstance(tensors, Mapping):
        raise TypeError(
            f"state_dict must map names to tensors, got {type(tensors).__name__}. "
            "Read a file with torch.load(path, weights_only=True)."
        )
    for name, tensor in tensors.items():
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(
                f"state_dict must map names to tensors, got {type(tensor).__name__} at {name!r}. "
                "Pass the weights alone."
            )
        if not tensor.isfinite().all():
            raise ValueError(
                f"state_dict must be finite, got NaN or infinity in {name!r}. Get the file anew."
            )
    return tensors


def _check_open_fields(stem: str, config: Mapping[str, Any]) -> None:
    """Refuse to guess what differs among networks that share the names of MedicalNet and end in ``fc``."""
    needed = ["dilations"] if stem == "replace" else ["dilations", "stem_stride", "stem_max_pool"]
    if missing := [name for name in needed if name not in config]:
        raise ValueError(
            f"{', '.join(needed)} must be given for conv1 with fc, got none for {', '.join(missing)}. "
            "Set what the network was trained with: its weights do not say, and it is not MedicalNet's."
        )


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
    names = [f"stages.{stage}.0.{last}.weight" for stage in range(len(layers))]
    if missing := [f"layer{stage}.0" for stage, name in enumerate(names, start=1) if name not in weights]:
        raise KeyError(
            f"state_dict must hold every stage from the first, got no whole {', '.join(missing)} in "
            f"{len(layers)}. Pass the whole network."
        )
    widths = [weights[name].shape[0] for name in names]
    return {"block_type": block_type, "layers": layers, "hidden_sizes": widths}


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
