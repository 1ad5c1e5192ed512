"""An image tower alone, ours or one of transformers, that embeds as a dual tower does.

Axes: B batch, C channels, Z Y X voxels, E embedding.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import MODEL_MAPPING, AutoConfig, AutoImageProcessor, AutoModel

from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.safe_loading import load_model
from radtower.processing.image_processing_2d import to_8_bit


class ImageEncoder(Protocol):
    """What embeds scans: a dual tower, or :class:`ImageTower`.

    ``config.similarity`` says how vectors are compared; ``processor.image_processor`` prepares volumes where
    ``processor.reads_volumes``.
    """

    @property
    def config(self) -> Any: ...

    @property
    def name_or_path(self) -> str | None: ...

    @property
    def processor(self) -> Any: ...

    def encode_image(self, images: Any, normalize: bool = True) -> torch.Tensor: ...


class ImageTower:
    """A :class:`CT3DVisionModel` or 2D image model with the methods of a dual tower that concern scans.

    Args:
        model: In evaluation mode.
        image_processor: Prepares volumes, or images of 8 bits.
        name_or_path: Where the model was loaded from.
    """

    def __init__(self, model: Any, image_processor: Any, name_or_path: str) -> None:
        self.model, self.name_or_path = model, name_or_path
        revision = getattr(model.config, "_commit_hash", None)
        self.config = SimpleNamespace(similarity="cosine", _commit_hash=revision)
        num_channels = getattr(model.config, "num_channels", 3)
        self.processor = (
            SimpleNamespace(image_processor=image_processor, reads_volumes=True)
            if isinstance(model, CT3DVisionModel)
            else Images8Bit(image_processor, num_channels)
        )

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """Return the vectors ``(B, E)`` of ``pixel_values (B, C, Z, Y, X)``, or ``(B, C, Y, X)`` of images.

        They are the pooled output of the model; the first token, where it has none.
        """
        output = self.model(images.to(self.model.device))
        pooled = getattr(output, "pooler_output", None)
        if pooled is None:
            pooled = output.last_hidden_state[:, 0]
        vectors: torch.Tensor = pooled.float().flatten(1)
        return F.normalize(vectors, dim=-1) if normalize else vectors


class Images8Bit:
    """Prepares images of any depth for an image processor of transformers, which would clip 16 bits.

    Args:
        image_processor: Of the tower.
        num_channels: 3, or 1 for gray.
    """

    reads_volumes = False

    def __init__(self, image_processor: Any, num_channels: int) -> None:
        self.image_processor, self.num_channels = image_processor, num_channels

    def __call__(self, images: Sequence[Any]) -> Any:
        """Return ``pixel_values (B, C, Y, X)`` of Pillow images."""
        prepared = [to_8_bit(image, self.num_channels) for image in images]
        return self.image_processor(prepared, return_tensors="pt")


def load_image_tower(source: str | Path) -> ImageTower | None:
    """Load an image tower in float32; None if the folder or Hub id holds no model that reads only images.

    A folder of a classifier has no weights for the pooler of its model: its first token is taken.

    Raises:
        ValueError: If weights are missing: a partly random tower embeds, too, and nobody notices.
    """
    if not _reads_images_only(AutoConfig.from_pretrained(source, trust_remote_code=False)):
        return None
    loaded: Any = load_model(AutoModel, source, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing and all(name.startswith("pooler.") for name in missing):
        model.pooler, missing = None, []
    if missing:
        raise ValueError(
            f"an image tower must find all its weights, got {source} without {len(missing)}, such as "
            f"{missing[0]}. Point to the folder that its training saved at its end."
        )
    image_processor = AutoImageProcessor.from_pretrained(source, trust_remote_code=False)
    return ImageTower(model.eval(), image_processor, str(source))


def _reads_images_only(config: Any) -> bool:
    """Whether the model of a configuration is a tower for images: one input, and no tower for texts."""
    kind = MODEL_MAPPING.get(type(config), None)
    is_dual = hasattr(kind, "get_text_features")
    return kind is not None and not is_dual and getattr(kind, "main_input_name", None) == "pixel_values"
