"""Configuration of the 3D ResNet that encodes a CT volume."""

import difflib
import itertools
from typing import Any, Literal, Self

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

BOTTLENECK_EXPANSION = (
    4  # output over inner channels of a bottleneck block (He et al. 2016, arXiv 1512.03385)
)
LAYERS_OF_DEPTH = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3)}


@strict
class CT3DVisionConfig(PreTrainedConfig):
    """Shape of a :class:`CT3DVisionModel`.

    The defaults are the network of arXiv 2509.13175: a 3D ResNet-18 of 33 million parameters whose stem
    halves every axis once, so that a 96 x 192 x 192 crop becomes a 6 x 12 x 12 map. :meth:`from_depth` gives
    the other depths. Spacing, intensity window and crop belong to :class:`CT3DImageProcessor`; the findings
    of a classifier are ``id2label``.

    Args:
        num_channels: Channels of ``pixel_values``; one per intensity window.
        block_type: ``basic``, two 3 x 3 x 3 convolutions; ``r2plus1d``, each of them factored into 1 x 3 x 3
            and 3 x 1 x 1; ``mc3``, 3 x 3 x 3 in the first stage and 1 x 3 x 3 after it, where Z is not halved
            either (all three: arXiv 1711.11248); ``bottleneck``, 1 - 3 x 3 x 3 - 1 (arXiv 1512.03385).
        stem_kernel_size: Kernel of the first convolution in (Z, Y, X) order. Odd entries are padded by half
            their size, even ones not at all. 2 with stride 2 is the published network, 4 with stride 4 its
            light variant, (3, 7, 7) with stride (1, 2, 2) that of video ResNets.
        stem_stride: Stride of the first convolution, (Z, Y, X).
        stem_hidden_size: Channels between the (1, Y, X) and the (Z, 1, 1) half of a factored stem, 45 in
            R(2+1)D. None: the stem is one convolution.
        stem_max_pool: Whether a 3 x 3 x 3 max pooling of stride 2 follows the stem, as in MedicalNet.
        hidden_sizes: Output channels of each stage, of its last convolution: 256 to 2048 in a ResNet-50.
        layers: Residual blocks in each stage; same length as ``hidden_sizes``.
        dilations: Dilation of the convolutions of each stage. Every stage after the first halves Z, Y and X,
            unless its dilation is above 1 (MedicalNet: 1, 1, 2, 4). None: no dilation.
        shortcut: How a skip connection changes its shape: ``conv``, 1 x 1 x 1 convolution and batch norm
            ("type B"), or ``pad``, every second voxel and zeros for the new channels ("type A").
        pooling: How the last feature map becomes one vector: ``avg`` or ``max`` over all positions, or
            ``gated``, a learned weighted mean whose weights differ by channel (:class:`CT3DGatedPooling`).
        image_size: Voxels of the training crop, (Z, Y, X). Recorded for exporters and the window of
            ``encode_volume``; any size runs.

    Raises:
        StrictDataclassClassValidationError: If the stages disagree in length, or an entry is not positive.
            ``@strict`` wraps the ValueError below in it.
        TypeError: If an unknown field is almost one of these, such as ``hiden_sizes``.
    """

    model_type = "ct3d_vision"

    num_channels: int = 1
    block_type: Literal["basic", "r2plus1d", "mc3", "bottleneck"] = "basic"
    # Both types: the default is a tuple, but config.json reloads it as a list and @strict checks.
    stem_kernel_size: list[int] | tuple[int, ...] = (2, 2, 2)
    stem_stride: list[int] | tuple[int, ...] = (2, 2, 2)
    stem_hidden_size: int | None = None
    stem_max_pool: bool = False
    hidden_sizes: list[int] | tuple[int, ...] = (64, 128, 256, 512)
    layers: list[int] | tuple[int, ...] = (2, 2, 2, 2)
    dilations: list[int] | tuple[int, ...] | None = None
    shortcut: Literal["conv", "pad"] = "conv"
    pooling: Literal["avg", "max", "gated"] = "avg"
    image_size: list[int] | tuple[int, ...] = (96, 192, 192)

    def __post_init__(self, **kwargs: Any) -> None:
        # transformers keeps unknown fields, so that a typing error would train the default network.
        for name in kwargs:
            for own in difflib.get_close_matches(name, CT3DVisionConfig.__annotations__, n=1, cutoff=0.8):
                raise TypeError(f"{name} is no field of {type(self).__name__}, got it as one. Write {own}.")
        super().__post_init__(**kwargs)

    @classmethod
    def from_depth(cls, depth: int, **fields: Any) -> Self:
        """Give the network that the literature calls ResNet-``depth``.

        Args:
            depth: 10, 18 or 34, of basic blocks unless ``block_type`` says otherwise; 50, of bottleneck
                blocks with 256 to 2048 channels.
            **fields: Other fields of the configuration.

        Raises:
            ValueError: If there is no such network, or the block type does not go with the depth.
        """
        if depth not in LAYERS_OF_DEPTH:
            raise ValueError(
                f"depth must be one of {sorted(LAYERS_OF_DEPTH)}, got {depth}. Set layers for others."
            )
        is_deep = depth == 50  # the others have two convolutions per block
        block_type = fields.setdefault("block_type", "bottleneck" if is_deep else "basic")
        if is_deep != (block_type == "bottleneck"):
            raise ValueError(
                f"block_type must be bottleneck at depth 50 and only there, got {block_type!r} at {depth}. "
                "Set layers and hidden_sizes for another network."
            )
        expansion = BOTTLENECK_EXPANSION if is_deep else 1
        widths = [size * expansion for size in (64, 128, 256, 512)]
        return cls(**{"layers": list(LAYERS_OF_DEPTH[depth]), "hidden_sizes": widths} | fields)

    @property
    def hidden_size(self) -> int:
        """Size of the pooled embedding, under the name that every transformers tower uses."""
        return self.hidden_sizes[-1]

    @property
    def stem_size(self) -> int:
        """Output channels of the stem: the inner width of the first stage."""
        expansion = BOTTLENECK_EXPANSION if self.block_type == "bottleneck" else 1
        return self.hidden_sizes[0] // expansion

    @property
    def stage_dilations(self) -> list[int]:
        """One dilation per stage."""
        return [1] * len(self.layers) if self.dilations is None else list(self.dilations)

    def validate_stages(self) -> None:
        if len(self.layers) != len(self.hidden_sizes) or not self.layers:
            raise ValueError(
                f"layers and hidden_sizes must have the same length, got {self.layers} and "
                f"{self.hidden_sizes}. Give one number of blocks and one width per stage."
            )
        if len(self.stage_dilations) != len(self.layers):
            raise ValueError(
                f"dilations must have one entry per stage, got {self.dilations} for {self.layers}. "
                "Leave it out for a network without dilation."
            )
        if self.block_type == "bottleneck" and any(size % BOTTLENECK_EXPANSION for size in self.hidden_sizes):
            raise ValueError(
                f"hidden_sizes must be multiples of 4 with bottleneck blocks, got {self.hidden_sizes}. "
                "They are the outputs of the blocks, four times their inner width."
            )
        widths = [self.stem_size, *self.hidden_sizes]
        if self.shortcut == "pad" and any(out < given for given, out in itertools.pairwise(widths)):
            raise ValueError(
                f"hidden_sizes must not shrink when shortcut is pad, got {self.hidden_sizes}. Use conv."
            )

    def validate_sizes(self) -> None:
        for name in ("stem_kernel_size", "stem_stride", "image_size"):
            if len(getattr(self, name)) != 3:
                raise ValueError(f"{name} must be (Z, Y, X), got {getattr(self, name)}. Give three numbers.")
        for name in ("stem_kernel_size", "stem_stride", "image_size", "hidden_sizes", "layers", "dilations"):
            if any(entry < 1 for entry in getattr(self, name) or ()):
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}. Use 1 or more.")
        if self.num_channels < 1:
            raise ValueError(f"num_channels must be positive, got {self.num_channels}. Use 1 per window.")
        if self.stem_hidden_size is not None and self.stem_hidden_size < 1:
            raise ValueError(
                f"stem_hidden_size must be positive, got {self.stem_hidden_size}. None is a stem of one step."
            )
