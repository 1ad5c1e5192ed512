"""The image tower of a run without a cache: a vision model of transformers or a fresh one; its processor."""

import difflib
from collections.abc import Mapping
from typing import Any

import torch
from transformers import AutoConfig, AutoImageProcessor, AutoModel, PreTrainedModel, ViTImageProcessorPil
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from radtower.modeling.modeling_towers import OWN_FAMILIES, Pooling, build_tower, pool_states
from radtower.processing.image_processing_2d import to_8_bit
from radtower.training.towers.load_weights import load_whole, require_vectors

GRAY_LEVEL = 0.5  # mean and deviation that map [0, 1] to [-1, 1]


def load_image_tower(
    source: str | Mapping[str, Any], pooling: Pooling, *, should_reset: bool = False
) -> tuple[PreTrainedModel, Any]:
    """Load a 2D tower with the image processor that prepares its images.

    Args:
        source: Folder or Hub id of a vision model, or of a dual encoder of transformers, such as CLIP, whose
            vision half is taken; its own image processor comes along, with Pillow. Or the configuration of a
            fresh tower: ``model_type``, ``image_size`` in pixels (one number, or height and width), and what
            else its configuration has. Its images are stretched to that size, nothing is cropped, and scaled
            to [-1, 1].
        pooling: Of the dual tower.
        should_reset: Keep only the shape of a model and draw new weights.

    Raises:
        KeyError: If transformers knows no such ``model_type``.
        ValueError: If the model is no 2D tower or lacks weights, a configuration is incomplete or has unknown
            fields, or tower, pooling and image processor do not fit together.
    """
    if isinstance(source, Mapping):
        tower, image_processor = _fresh_tower(dict(source))
    else:
        tower, image_processor = _trained_tower(source, pooling)
    if should_reset:
        tower = AutoModel.from_config(tower.config, dtype=torch.float32)
    _require_fit(tower, image_processor, pooling)
    return tower, image_processor


def _trained_tower(source: str, pooling: Pooling) -> tuple[PreTrainedModel, Any]:
    config = AutoConfig.from_pretrained(source, trust_remote_code=False)
    _require_2d(config.model_type)
    config = getattr(config, "vision_config", config)
    tower = load_whole(AutoModel, source, pooling, config=config)
    _require_2d(config.model_type, tower)
    return tower, AutoImageProcessor.from_pretrained(source, backend="pil", trust_remote_code=False)


def _fresh_tower(settings: dict[str, Any]) -> tuple[PreTrainedModel, Any]:
    missing = [name for name in ("model_type", "image_size") if name not in settings]
    if missing:
        raise ValueError(
            f"the configuration of a fresh tower must name model_type and image_size, got no {missing} in "
            f"{sorted(settings)}. Write for example 'vision: {{model_type: vit, image_size: 128}}'."
        )
    model_type, image_size = settings["model_type"], settings["image_size"]
    if model_type not in CONFIG_MAPPING:
        close = difflib.get_close_matches(str(model_type), CONFIG_MAPPING.keys(), n=3)
        raise KeyError(
            f"model_type must be one of transformers, got {model_type!r}. Did you mean {close}?"
            if close
            else f"model_type must be one of transformers, got {model_type!r}. Take vit, dinov2 or resnet."
        )
    _require_2d(model_type)
    known = CONFIG_MAPPING[model_type]().to_dict()
    if "image_size" not in known:  # a convolutional network takes any
        del settings["image_size"]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise ValueError(
            f"the configuration of a {model_type} must have its own fields only, got {unknown}. "
            f"Its fields are {', '.join(sorted(known))}."
        )
    tower: PreTrainedModel = AutoModel.from_config(AutoConfig.for_model(**settings), dtype=torch.float32)
    _require_2d(model_type, tower)
    height, width = image_size if isinstance(image_size, (list, tuple)) else (image_size, image_size)
    num_channels = getattr(tower.config, "num_channels", 3)
    if num_channels not in (1, 3):
        raise ValueError(f"num_channels must be 1 (gray) or 3 (color), got {num_channels}. Take 3.")
    levels = [GRAY_LEVEL] * num_channels
    return tower, ViTImageProcessorPil(
        size={"height": height, "width": width}, image_mean=levels, image_std=levels
    )


def _require_2d(model_type: str, tower: PreTrainedModel | None = None) -> None:
    """With a tower it is asked itself; without, only our own families are known."""
    if model_type in {*OWN_FAMILIES, "medclip"} or (
        tower is not None and tower.main_input_name != "pixel_values"
    ):
        raise ValueError(
            f"vision must be a 2D vision model of transformers where no cache is given, got a {model_type}. "
            "Take vit, clip_vision_model, siglip_vision_model, dinov2 or resnet; a 3D tower needs a cache."
        )


@torch.no_grad()
def _require_fit(tower: PreTrainedModel, image_processor: Any, pooling: Pooling) -> None:
    """Run what is trained on one black image: sizes, channels and poolers that do not fit show at once."""
    image = to_8_bit(torch.zeros(64, 64, dtype=torch.uint8), len(image_processor.image_mean))
    pixels = image_processor([image], return_tensors="pt")["pixel_values"]
    try:
        trained = build_tower(tower.config, pooling).eval()
        require_vectors(trained, pool_states(trained(pixels), pooling))
    except (RuntimeError, ValueError) as error:
        raise ValueError(
            f"tower, image processor and vision_pooling must fit, got a {tower.config.model_type}, "
            f"pixel_values {tuple(pixels.shape)} and {pooling!r}: {error}"
        ) from error
