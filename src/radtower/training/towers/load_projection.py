"""The image projection of a dual encoder of transformers, such as CLIP."""

import torch
from torch import nn
from transformers import AutoConfig, AutoModel

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.towers.load_weights import load_whole


@torch.no_grad()
def keep_projection(model: MedCLIPModel, source: str) -> None:
    """Start the image projection from that of the dual encoder whose image tower the model has.

    Args:
        model: Changed in place. Images are then where the dual encoder puts them.
        source: Folder or Hub id of the dual encoder.

    Raises:
        ValueError: If it has no linear image projection, or that is of another shape.
    """
    is_dual = hasattr(AutoConfig.from_pretrained(source, trust_remote_code=False), "vision_config")
    dual = load_whole(AutoModel, source) if is_dual else None
    stored, own = getattr(dual, "visual_projection", None), model.visual_projection
    if not (isinstance(stored, nn.Linear) and stored.bias is None):
        raise ValueError(
            f"vision must be a dual encoder with a linear image projection, such as CLIP, for the projection "
            f"to be kept, got {source}. Set should_keep_projection to false."
        )
    shape = tuple(stored.weight.shape)
    if not isinstance(own, nn.Linear) or own.weight.shape != stored.weight.shape:
        raise ValueError(
            f"vision_projection must be linear from {shape[1]} to {shape[0]} numbers, as that of {source}, "
            f"got {model.config.vision_projection!r} with projection_dim {model.config.projection_dim}. "
            "Set them so, or should_keep_projection to false."
        )
    own.weight.copy_(stored.weight)
