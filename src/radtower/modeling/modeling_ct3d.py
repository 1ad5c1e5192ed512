"""3D ResNet over CT volumes.

Axes in this file: B batch, C channels, Z Y X voxels (Z is the slice axis), E embedding, F findings.
"""

import itertools
import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import nn
from transformers import PreTrainedModel
from transformers import initialization as init
from transformers.modeling_outputs import (
    BaseModelOutputWithPoolingAndNoAttention,
    ImageClassifierOutputWithNoAttention,
)
from transformers.utils.generic import can_return_tuple

from ..configuration.configuration_ct3d import CT3DVisionConfig
from .losses import masked_binary_cross_entropy
from .modeling_ct3d_blocks import (
    CT3DBasicBlock,
    CT3DBottleneckBlock,
    CT3DGatedPooling,
    CT3DRecomputation,
    CT3DResidualBlock,
    Kind,
    convolve_and_norm,
)
from .modeling_ct3d_import import read_video_resnet

AIR = -1.0  # what the processor makes of air, in every window
RANGE_TOLERANCE = 0.01  # of values outside [-1, 1]: rounding, not another scale


@dataclass
class CT3DVisionOutput(BaseModelOutputWithPoolingAndNoAttention):
    """Output of :class:`CT3DVisionModel`.

    Args:
        last_hidden_state: ``(B, E, z, y, x)``, the map that is pooled.
        pooler_output: ``(B, E)``, not normalized.
        hidden_states: Maps ``(B, C, Z, Y, X)`` behind the stem and behind each stage; the last one is
            ``last_hidden_state``. None unless asked for.
        attention_map: ``(B, E, z, y, x)``, the weight of each position in ``pooler_output``, which sums to 1
            over the positions. None unless the pooling is gated.
    """

    attention_map: torch.Tensor | None = None


class CT3DVisionPreTrainedModel(PreTrainedModel):
    """What the models of this family share."""

    config_class = CT3DVisionConfig
    base_model_prefix = "vision_model"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    accepts_loss_kwargs = False  # the loss is a mean over the batch: Trainer must scale it when accumulating
    _no_split_modules = ["CT3DBasicBlock", "CT3DBottleneckBlock", "CT3DGatedPooling"]
    # It has no attention, so that any implementation will do: a dual tower asks both towers for the same one.
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, nn.Conv3d):  # the default of transformers, N(0, 0.02), is made for transformers
            init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    @classmethod
    def from_video_resnet(
        cls, state_dict: Mapping[str, Any], stem: Literal["fold", "replace"] = "fold", **config: Any
    ) -> Self:
        """Start from the weights of a video ResNet of torchvision or a 3D ResNet of MedicalNet.

        Read are ``r3d_18``, ``mc3_18``, ``r2plus1d_18`` and relatives of other depth (arXiv 1711.11248), the
        same with the stem of arXiv 2509.13175, and MedicalNet's ``resnet_10`` to ``resnet_200`` (arXiv
        1904.00625) with shortcuts of either type. Depth, widths and block type come from the weights. The
        heads of the former tasks (``fc``, ``conv_seg``) are left out; anything else must fit exactly.

        Other 3D ResNets share MedicalNet's names (``conv1.weight``) but not its stride and dilation, which
        no weight shows. With an ``fc`` they are refused unless ``dilations``, ``stem_stride`` and
        ``stem_max_pool`` are given (the first alone with a replaced stem); without, give them too.

        Args:
            state_dict: Their names and tensors; the whole content of a MedicalNet file will do.
            stem: ``fold`` keeps the first convolution and, if ``num_channels`` differs from its own number of
                inputs, spreads their sum evenly: equal windows give what a gray video gave. ``replace``
                makes a new one from the configuration, by default the stem of arXiv 2509.13175, and keeps
                the batch norm behind it.
            **config: Fields of :class:`CT3DVisionConfig` that override what the weights say. MedicalNet is
                read with the dilation it was trained with; ``dilations=None`` halves those stages instead.
                ``layers`` is needed for a depth that was never published. ``dtype`` converts the weights.

        Returns:
            The model in eval mode, as ``from_pretrained`` gives it.

        Raises:
            KeyError: If there are weights that this network has no place for, or weights of it are missing.
            TypeError: If ``state_dict`` is not a mapping of tensors.
            ValueError: If ``stem`` is neither, the weights leave open what only ``config`` can say (stride,
                dilation, depth), a tensor is not finite, or only a part of the names begins with ``module.``.
            RuntimeError: If a tensor has another shape than its place.
        """
        config.setdefault("num_channels", 1)
        fields, weights = read_video_resnet(state_dict, stem, config)
        model = cls(cls.config_class(**fields | config))
        missing, unused = model.base_model.load_state_dict(weights, strict=False)
        new = ("pooler.", "stem.0.") if stem == "replace" else ("pooler.",)
        missing = [name for name in missing if not name.startswith(new) and "num_batches" not in name]
        if missing or unused:
            raise KeyError(
                f"state_dict must fit the network exactly, got {len(unused)} unused ({unused[:3]}) and "
                f"{len(missing)} missing ({missing[:3]}). Check the configuration: {fields | config}."
            )
        if isinstance(model.config.dtype, torch.dtype):  # only from_pretrained makes weights of that type
            nn.Module.to(model, model.config.dtype)
        return model.eval()


class CT3DVisionModel(CT3DRecomputation, CT3DVisionPreTrainedModel):
    """CT volume in, one embedding out: the 3D ResNet of arXiv 2509.13175 and 2603.06467, and its family.

    On a CPU the maps are laid out channels last, which is faster there; elsewhere the layout is that of the
    caller (``model.to(memory_format=torch.channels_last_3d)``). In eval mode batch norm is folded into the
    convolutions as they run (:func:`convolve_and_norm`); weights and checkpoints know nothing of either.

    Args:
        config: Shape of the network.
    """

    def __init__(self, config: CT3DVisionConfig) -> None:
        super().__init__(config)
        self.stem = _build_stem(config)
        width = config.stem_size
        stages = []
        for stage, dilation in enumerate(config.stage_dilations):
            blocks = []
            for block in range(config.layers[stage]):
                stride = 2 if stage > 0 and block == 0 and dilation == 1 else 1
                blocks.append(_build_block(config, stage, width, stride))
                width = config.hidden_sizes[stage]
            stages.append(nn.Sequential(*blocks))
        self.stages = nn.ModuleList(stages)
        if config.pooling == "gated":
            self.pooler = CT3DGatedPooling(width)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, output_hidden_states: bool | None = None
    ) -> CT3DVisionOutput:
        """Encode a batch of volumes.

        Args:
            pixel_values: ``(B, C, Z, Y, X)`` in [-1, 1], as :class:`CT3DImageProcessor` returns it.
            output_hidden_states: Whether to return the maps behind the stem and each stage. None does as the
                configuration says.

        Returns:
            ``pooler_output`` ``(B, E)``, not normalized, ``last_hidden_state`` ``(B, E, z, y, x)``, the map
            it was pooled from, ``hidden_states`` if asked for, and, if the pooling is gated,
            ``attention_map``.

        Raises:
            ValueError: If ``pixel_values`` is not 5-D, has other channels than the configuration, or is
                smaller than the stem.
        """
        self._check(pixel_values)
        x = pixel_values.to(self.dtype)
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        inner: list[torch.Tensor] = []
        if output_hidden_states:
            *inner, h = self._maps(x)
        else:
            # One segment, so that checkpointing does not keep the map between stem and first block, the
            # largest.
            h = self._recomputed(self._stem_and_first_block, x)
            for block in self._blocks()[1:]:
                h = self._recomputed(block, h)
        h = h.contiguous()
        pooled, attention_map, _ = self._pool(h)
        return CT3DVisionOutput(
            last_hidden_state=h,
            pooler_output=pooled,
            hidden_states=(*inner, h) if output_hidden_states else None,
            attention_map=attention_map,
        )

    @torch.no_grad()
    def encode_volume(
        self,
        volume: torch.Tensor,
        window_size: Sequence[int] | None = None,
        overlap: float = 0.25,
        aggregation: Literal["avg", "max", "gated"] | None = None,
        batch_size: int = 1,
    ) -> torch.Tensor:
        """Encode one scan of any size, window by window, so that nothing of it is cropped away.

        The windows are spread evenly from edge to edge and overlap by ``overlap`` at least; an axis shorter
        than its window is centered in air. Memory does not grow with the scan: windows are cut, moved to
        the device and aggregated as they come.

        Args:
            volume: ``(C, Z, Y, X)`` in [-1, 1], as :class:`CT3DImageProcessor` returns it without its crop;
                -1 is air, and fills what a short axis lacks.
            window_size: Voxels in (Z, Y, X). None: ``config.image_size``, the training crop.
            overlap: Part of a window, in [0, 1), that neighbors share at least.
            aggregation: How window embeddings become one: their mean (``avg``), their maximum per channel
                (``max``), or the gated mean over all positions of all windows (``gated``, for a model with
                gated pooling). None: as the model pools the positions of one window.
            batch_size: Windows per forward pass.

        Returns:
            ``(E,)``, not normalized. A scan of one window gives its ``pooler_output``.

        Raises:
            RuntimeError: If the model is in training mode, where windows would share batch statistics.
            TypeError: If ``volume`` is not a tensor, or a number of voxels or windows not a whole one.
            ValueError: If the volume is not 4-D, has an empty axis or values that are not finite or not in
                [-1, 1], or a setting is out of its range.
        """
        if _whole("batch_size", batch_size) < 1:
            raise ValueError(f"batch_size must be positive, got {batch_size}. 1 needs the least memory.")
        aggregation = aggregation or self.config.pooling
        size = _window_triple(self.config.image_size if window_size is None else window_size)
        self._check_windows(volume, size, overlap, aggregation)
        windows = _cut_windows(volume, size, overlap)
        total: torch.Tensor | None = None
        log_mass: torch.Tensor | None = None
        count = 0
        while batch := list(itertools.islice(windows, batch_size)):
            stacked = torch.stack(batch)
            _check_values(stacked)  # here, so that a scan on disk is read once
            output = self(stacked.to(self.device), return_dict=True)
            pooled = output.pooler_output.float()
            count += len(batch)
            if aggregation == "max":
                largest = pooled.amax(dim=0)
                total = largest if total is None else torch.maximum(total, largest)
            elif aggregation == "avg":
                total = pooled.sum(dim=0) if total is None else total + pooled.sum(dim=0)
            else:
                masses = self.pooler(output.last_hidden_state)[2]
                if total is not None and log_mass is not None:
                    pooled, masses = torch.cat([total[None], pooled]), torch.cat([log_mass[None], masses])
                total, log_mass = (masses.softmax(dim=0) * pooled).sum(dim=0), masses.logsumexp(dim=0)
        assert total is not None  # a volume has a window at least
        return (total / count if aggregation == "avg" else total).to(self.dtype)

    def _maps(self, x: torch.Tensor) -> list[torch.Tensor]:
        """Maps behind the stem and behind each stage."""
        maps = [self._recomputed(self._stem, x)]
        for stage in self.stages:
            h = maps[-1]
            for block in stage.children():
                h = self._recomputed(block, h)
            maps.append(h)
        return maps

    def _blocks(self) -> list[nn.Module]:
        return [block for stage in self.stages for block in stage.children()]

    def _stem_and_first_block(self, x: torch.Tensor) -> torch.Tensor:
        return self._blocks()[0](self._recomputed(self._stem, x))

    def _stem(self, x: torch.Tensor) -> torch.Tensor:
        if _prefers_channels_last(x):
            x = _channels_last(x)
        layers = list(self.stem)
        while layers[2:]:
            x = convolve_and_norm(layers[0], layers[1], x).relu_()
            layers = layers[3:]
        return layers[0](x) if layers else x

    def _pool(self, h: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, torch.Tensor | None]:
        if self.config.pooling == "gated":
            return self.pooler(h)
        pooled = h.flatten(2).mean(dim=-1) if self.config.pooling == "avg" else h.flatten(2).amax(dim=-1)
        return pooled, None, None

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

    def _check_windows(
        self, volume: torch.Tensor, size: tuple[int, int, int], overlap: float, aggregation: str
    ) -> None:
        if self.training:
            raise RuntimeError("The model must be in eval mode, got training mode. Call eval().")
        if not isinstance(volume, torch.Tensor):
            raise TypeError(f"volume must be a tensor, got {type(volume).__name__}. Use torch.as_tensor.")
        if volume.ndim != 4:
            raise ValueError(
                f"volume must be (C, Z, Y, X), got shape {tuple(volume.shape)}. Give one scan at a time."
            )
        if 0 in volume.shape:
            raise ValueError(
                f"volume must have voxels, got shape {tuple(volume.shape)}. Read the scan again."
            )
        if min(size) < 1:
            raise ValueError(f"window_size must be positive, got {size}. Give voxels in (Z, Y, X).")
        if not 0 <= overlap < 1:
            raise ValueError(f"overlap must be in [0, 1), got {overlap}. 0.25 is a quarter of a window.")
        if aggregation not in ("avg", "max", "gated"):
            raise ValueError(f"aggregation must be avg, max or gated, got {aggregation!r}. Leave it out.")
        if aggregation == "gated" and self.config.pooling != "gated":
            raise ValueError(
                f"aggregation must be avg or max without a gate, got 'gated' on {self.config.pooling}. "
                "Train with pooling='gated'."
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

    @can_return_tuple
    def forward(
        self,
        pixel_values: torch.Tensor,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
    ) -> ImageClassifierOutputWithNoAttention:
        """Score every finding.

        Args:
            pixel_values: ``(B, C, Z, Y, X)`` in [-1, 1], as :class:`CT3DImageProcessor` returns it.
            labels: ``(B, F)`` in [0, 1], -100 where unknown. None skips the loss.
            output_hidden_states: See :meth:`CT3DVisionModel.forward`.

        Returns:
            ``logits`` ``(B, F)`` before the sigmoid, ``loss`` (:func:`masked_binary_cross_entropy`), None
            without ``labels``, and ``hidden_states``, None unless asked for.
        """
        output = self.vision_model(pixel_values, output_hidden_states, return_dict=True)
        logits = self.classifier(output.pooler_output)
        loss = None if labels is None else masked_binary_cross_entropy(logits, labels)
        return ImageClassifierOutputWithNoAttention(
            loss=loss, logits=logits, hidden_states=output.hidden_states
        )


def _build_stem(config: CT3DVisionConfig) -> nn.Sequential:
    """Convolution, batch norm, ReLU; twice if factored; then max pooling if there is one."""
    kernel, stride = _triple(config.stem_kernel_size), _triple(config.stem_stride)
    padding = _triple([size // 2 if size % 2 else 0 for size in kernel])
    width, mid = config.stem_size, config.stem_hidden_size
    layers: list[nn.Module] = []
    if mid is None:
        layers.append(nn.Conv3d(config.num_channels, width, kernel, stride, padding, bias=False))
    else:
        (kz, ky, kx), (sz, sy, sx), (pz, py, px) = kernel, stride, padding
        layers += [
            nn.Conv3d(config.num_channels, mid, (1, ky, kx), (1, sy, sx), (0, py, px), bias=False),
            nn.BatchNorm3d(mid),
            nn.ReLU(),
            nn.Conv3d(mid, width, (kz, 1, 1), (sz, 1, 1), (pz, 0, 0), bias=False),
        ]
    layers += [nn.BatchNorm3d(width), nn.ReLU()]
    if config.stem_max_pool:
        layers.append(nn.MaxPool3d(3, stride=2, padding=1))
    return nn.Sequential(*layers)


def _build_block(config: CT3DVisionConfig, stage: int, in_channels: int, stride: int) -> CT3DResidualBlock:
    out_channels, dilation = config.hidden_sizes[stage], config.stage_dilations[stage]
    if config.block_type == "bottleneck":
        return CT3DBottleneckBlock(in_channels, out_channels, stride, dilation, config.shortcut)
    planar: Kind = "full" if stage == 0 else "planar"
    kinds: dict[str, Kind] = {"basic": "full", "r2plus1d": "factored", "mc3": planar}
    kind = kinds[config.block_type]
    return CT3DBasicBlock(in_channels, out_channels, stride, kind, dilation, config.shortcut)


def _prefers_channels_last(x: torch.Tensor) -> bool:
    """Whether oneDNN runs the convolutions: 1.4 times as fast channels last as in PyTorch's own layout."""
    return x.device.type == "cpu" and (torch.compiler.is_compiling() or torch.backends.mkldnn.is_available())


def _channels_last(x: torch.Tensor) -> torch.Tensor:
    """``(B, C, Z, Y, X)`` with C fastest in memory."""
    if x.shape[1] > 1:
        return x.contiguous(memory_format=torch.channels_last_3d)
    # PyTorch takes a single channel for either layout and would choose the other one.
    return x.contiguous().view(x.shape[0], *x.shape[2:], 1).movedim(-1, 1)


def _cut_windows(volume: torch.Tensor, size: tuple[int, int, int], overlap: float) -> Iterator[torch.Tensor]:
    """Views of ``(C, *size)``, evenly spread from edge to edge; only the last step of a short axis copies."""
    starts = [_spread(length, window, overlap) for length, window in zip(volume.shape[1:], size, strict=True)]
    short = [max(window - length, 0) for length, window in zip(volume.shape[1:], size, strict=True)]
    margins = [margin for gap in reversed(short) for margin in (gap // 2, gap - gap // 2)]
    for z, y, x in itertools.product(*starts):
        window = volume[:, z : z + size[0], y : y + size[1], x : x + size[2]]
        yield F.pad(window, margins, value=AIR) if any(short) else window


def _spread(length: int, window: int, overlap: float) -> list[int]:
    """First voxels of the fewest windows that cover an axis and overlap as asked."""
    free = length - window
    if free <= 0:
        return [0]
    # 20 * (1 - 0.9) is a little less than 2 in floating point, and not a step of 1.
    step = max(math.floor(window * (1 - overlap) + 1e-6), 1)
    count = -(-free // step) + 1
    return [round(index * free / (count - 1)) for index in range(count)]


def _check_values(windows: torch.Tensor) -> None:
    """Refuse what the processor never returns, such as HU: the network would give an embedding of it too."""
    low, high = windows.aminmax()
    if not (low >= -1 - RANGE_TOLERANCE and high <= 1 + RANGE_TOLERANCE):  # NaN is neither
        raise ValueError(
            f"volume must be in [-1, 1], got {low.item():g} to {high.item():g}. "
            "Use the processor saved with the model."
        )


def _whole(name: str, number: int) -> int:
    """``number`` as an int, of whatever integer type it is."""
    try:
        return operator.index(number)
    except TypeError:
        raise TypeError(f"{name} must be whole numbers, got {number!r}. Round it.") from None


def _window_triple(sizes: Sequence[int]) -> tuple[int, int, int]:
    if not isinstance(sizes, Sequence) or len(sizes) != 3:
        raise ValueError(f"window_size must be (Z, Y, X), got {sizes!r}. Give three numbers of voxels.")
    return _triple([_whole("window_size", size) for size in sizes])


def _triple(sizes: Sequence[int]) -> tuple[int, int, int]:
    """(Z, Y, X), for PyTorch, from the list that config.json gives."""
    z, y, x = sizes
    return z, y, x
