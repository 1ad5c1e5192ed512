"""Configuration of the 3D ResNet that encodes a CT volume."""

from typing import Literal

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig


@strict
class CT3DVisionConfig(PreTrainedConfig):
    """Shape of a :class:`CT3DVisionModel`.

    The defaults are the network of arXiv 2509.13175: a 3D ResNet-18 of 33 million parameters whose stem
    halves every axis once, so that a 96 x 192 x 192 crop becomes a 6 x 12 x 12 map. Spacing, intensity
    window and crop belong to :class:`CT3DImageProcessor`; the findings of a classifier are ``id2label``.

    Args:
        num_channels: Channels of ``pixel_values``; one per intensity window.
        stem_kernel_size: Kernel of the first convolution in (Z, Y, X) order. Odd entries are padded by half
            their size, even ones not at all.
        stem_stride: Stride of the first convolution, (Z, Y, X).
        hidden_sizes: Output channels of each stage. Every stage after the first halves Z, Y and X.
        layers: Residual blocks in each stage; same length as ``hidden_sizes``.
        pooling: How the last feature map becomes one vector: ``avg`` or ``max`` over all positions.
        image_size: Voxels of the training crop, (Z, Y, X). Recorded for exporters; any size runs.

    Raises:
        StrictDataclassClassValidationError: If the stages disagree in length, or an entry is not positive.
            ``@strict`` wraps the ValueError below in it.
    """

    model_type = "ct3d_vision"

    num_channels: int = 1
    # Both types: the default is a tuple, but config.json reloads it as a list and @strict checks.
    stem_kernel_size: list[int] | tuple[int, ...] = (2, 2, 2)
    stem_stride: list[int] | tuple[int, ...] = (2, 2, 2)
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    layers: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    pooling: Literal["avg", "max"] = "avg"
    image_size: list[int] | tuple[int, ...] = (96, 192, 192)

    @property
    def hidden_size(self) -> int:
        """Size of the pooled embedding, under the name that every transformers tower uses."""
        return self.hidden_sizes[-1]

    def validate_stages(self) -> None:
        if len(self.layers) != len(self.hidden_sizes) or not self.layers:
            raise ValueError(
                f"layers and hidden_sizes must have the same length, got {self.layers} and "
                f"{self.hidden_sizes}. Give one number of blocks and one width per stage."
            )

    def validate_sizes(self) -> None:
        for name in ("stem_kernel_size", "stem_stride", "image_size"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must be (Z, Y, X), got {getattr(self, name)}. Give three numbers.")
        for name in ("stem_kernel_size", "stem_stride", "image_size", "hidden_sizes", "layers"):
            if any(entry < 1 for entry in getattr(self, name)):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}. Use 1 or more.")
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be positive, got {self.num_channels}. Use 1 per window.")
