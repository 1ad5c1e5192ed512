"""3D ResNet over CT volumes.

Axes in this file: B batch, C channels, Z Y X voxels (Z is the slice axis), E embedding, F findings.
"""

from collections.abc import Sequence

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)

from ..configuration.configuration_ct3d import CT3DVisionConfig
from .losses import masked_binary_cross_entropy


class CT3DBasicBlock(GradientCheckpointingLayer):
    """Two 3x3x3 convolutions with a skip connection (He et al. 2016, arXiv 1512.03385)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, out_channels, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = nn.Conv3d(out_channels, out_channels, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm3d(out_channels)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or in_channels != out_channels:
            self.downsample = nn.Sequential(
                nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.norm1(self.conv1(x)).relu()
        h = self.norm2(self.conv2(h))
        return (h + self.downsample(x)).relu()


class CT3DVisionPreTrainedModel(PreTrainedModel):
    """What the models of this family share."""

    config_class = CT3DVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer must scale it when accumulating
    _no_split_modules = ["CT3DBasicBlock"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv3d):  # the default of transformers, N(0, 0.02), is made for transformers
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class CT3DVisionModel(CT3DVisionPreTrainedModel):
    """CT volume in, one embedding out: the 3D ResNet of arXiv 2509.13175 and 2603.06467.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: CT3DVisionConfig) -> None:
        super().__init__(config)
        width = config.hidden_sizes[0]
        kernel = _triple(config.stem_kernel_size)
        padding = _triple([size // 2 if size % 2 else 0 for size in kernel])
        self.stem = nn.Sequential(
            nn.Conv3d(config.num_channels, width, kernel, _triple(config.stem_stride), padding, bias=False),
            nn.BatchNorm3d(width),
            nn.ReLU(),
        )
        stages = []
        for stage, (out_width, depth) in enumerate(zip(config.hidden_sizes, config.layers, strict=True)):
            blocks = []
            for block in range(depth):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(CT3DBasicBlock(width, out_width, stride))
                width = out_width
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        self.post_init()

    def forward(self, pixel_values: torch.Tensor) -> BaseModelOutputWithPoolingAndNoAttention:
        """Encode a batch of volumes.

        Args:
            pixel_values: ``(B, C, Z, Y, X)`` in [-1, 1], as :class:`CT3DImageProcessor` returns it.

        Returns:
            ``pooler_output`` ``(B, E)``, not normalized, and ``last_hidden_state`` ``(B, E, z, y, x)``, the
            map it was pooled from.

        Raises:
            ValueError: If ``pixel_values`` is not 5-D, has other channels than the configuration, or is
                smaller than the stem.
        """
        self._check(pixel_values)
        h = self.stem(pixel_values.to(self.dtype))
        for stage in self.stages:
            h = stage(h)
        pooled = h.flatten(2).mean(dim=-1) if self.config.pooling == "avg" else h.flatten(2).amax(dim=-1)
        return BaseModelOutputWithPoolingAndNoAttention(last_hidden_state=h, pooler_output=pooled)

    def _check(self, pixel_values: torch.Tensor) -> None:
        shape = tuple(pixel_values.shape)
        if len(shape) != 5:
            raise ValueError(
                f"pixel_values must be (B, C, Z, Y, X), got shape {shape}. Add the missing axis with [None]."
            )
        if shape[1] != self.config.num_channels:
            raise ValueError(
                f"pixel_values must have {self.config.num_channels} channels, got {shape[1]} in {shape}. "
                "Use the processor saved with the model: it has one window per channel."
            )
        if any(have < need for have, need in zip(shape[2:], self.config.stem_kernel_size, strict=True)):
            raise ValueError(
                f"pixel_values must be at least {tuple(self.config.stem_kernel_size)} voxels in (Z, Y, X), "
                f"got {shape[2:]}. Pad with air."
            )


class CT3DVisionForImageClassification(CT3DVisionPreTrainedModel):
    """CT volume in, one logit per finding out; the findings are ``config.id2label``.

    Args:
        config: Shape of the network; ``num_labels`` or ``id2label`` gives the findings.
    """

    def __init__(self, config: CT3DVisionConfig) -> None:
        super().__init__(config)
        self.vision_model = CT3DVisionModel(config)
        assert config.num_labels is not None  # transformers fills id2label
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def forward(
        self, pixel_values: torch.Tensor, labels: torch.Tensor | None = None
    ) -> ImageClassifierOutputWithNoAttention:
        """Score every finding.

        Args:
            pixel_values: ``(B, C, Z, Y, X)`` in [-1, 1], as :class:`CT3DImageProcessor` returns it.
            labels: ``(B, F)`` in [0, 1], -100 where unknown. None skips the loss.

        Returns:
            ``logits`` ``(B, F)`` before the sigmoid, and ``loss`` (:func:`masked_binary_cross_entropy`),
            None without ``labels``.
        """
        logits = self.classifier(self.vision_model(pixel_values).pooler_output)
        loss = None if labels is None else masked_binary_cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(loss=loss, logits=logits)


def _triple(sizes: Sequence[int]) -> tuple[int, int, int]:
    """(Z, Y, X), for PyTorch, from the list that config.json gives."""
    z, y, x = sizes
    return z, y, x
