"""A 3D image tower that embeds scans the way a dual tower does.

Axes: B batch, C channels, Z Y X voxels, E embedding.
"""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from transformers import AutoConfig, AutoImageProcessor, AutoModel

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.safe_loading import load_model


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
    """A :class:`CT3DVisionModel` with the methods of a dual tower that concern scans.

    Args:
        model: In evaluation mode.
        image_processor: Prepares volumes.
        name_or_path: Where the model was loaded from.
    """

    def __init__(self, model: CT3DVisionModel, image_processor: Any, name_or_path: str) -> None:
        self.model, self.name_or_path = model, name_or_path
        revision = getattr(model.config, "_commit_hash", None)
        self.config = SimpleNamespace(similarity="cosine", _commit_hash=revision)
        self.processor = SimpleNamespace(image_processor=image_processor, reads_volumes=True)

    @torch.no_grad()
    def encode_image(self, images: torch.Tensor, normalize: bool = True) -> torch.Tensor:
        """Return the pooled vectors ``(B, E)`` of ``pixel_values (B, C, Z, Y, X)``."""
        pooled: torch.Tensor = self.model(images.to(self.model.device)).pooler_output.float()
        return F.normalize(pooled, dim=-1) if normalize else pooled


def load_image_tower(source: str | Path) -> ImageTower | None:
    """Load a 3D image tower in float32; None if the folder or Hub id holds another kind of model.

    Raises:
        ValueError: If weights are missing: a partly random tower embeds, too, and nobody notices.
    """
    if not isinstance(AutoConfig.from_pretrained(source, trust_remote_code=False), CT3DVisionConfig):
        return None
    loaded: Any = load_model(AutoModel, source, dtype=torch.float32, output_loading_info=True)
    model, report = loaded
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"an image tower must find all its weights, got {source} without {len(missing)}, such as "
            f"{missing[0]}. Point to the folder that its training saved at its end."
        )
    return ImageTower(
        model.eval(), AutoImageProcessor.from_pretrained(source, trust_remote_code=False), str(source)
    )
