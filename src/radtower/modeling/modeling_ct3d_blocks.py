"""Parts of the 3D ResNet: residual blocks, gated pooling, folded batch norm, recomputed activations.

Axes in this file: B batch, C channels, Z Y X voxels of the input, z y x positions of a map, N positions,
E embedding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import nn

from ..configuration.configuration_ct3d import BOTTLENECK_EXPANSION
from .modeling_ct3d_winograd import convolve_by_winograd, suits_winograd

Kind = Literal["full", "planar", "factored"]


def convolve_and_norm(conv: nn.Module, norm: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """Apply a convolution and its batch norm; in eval mode as one convolution with folded weights.

    The fold is exact up to rounding and made anew in each call: it costs one pass over the weights, less than
    one percent of a scan, and can neither go stale nor reach a checkpoint.

    Args:
        conv: A convolution without bias, or a factored one as :func:`build_convolution` makes it.
        norm: The batch norm of its output.
        x: ``(B, C, Z, Y, X)``.

    Returns:
        ``(B, C', Z', Y', X')``; the caller may overwrite it.
    """
    if isinstance(conv, nn.Sequential):
        x = convolve_and_norm(conv[0], conv[1], x).relu_()
        conv = conv[3]
    if not isinstance(conv, nn.Conv3d) or not isinstance(norm, nn.BatchNorm3d):
        return norm(conv(x))
    mean, variance = norm.running_mean, norm.running_var
    if norm.training or mean is None or variance is None or not _is_plain(conv) or not _is_plain(norm):
        return norm(conv(x))
    # At least float32: the scale of a bf16 checkpoint has too few digits to be multiplied twice.
    dtype = torch.promote_types(conv.weight.dtype, torch.float32)
    scale = norm.weight.to(dtype) * torch.rsqrt(variance.to(dtype) + norm.eps)
    weight = (conv.weight * scale.view(-1, 1, 1, 1, 1)).to(conv.weight.dtype)
    bias = (norm.bias - mean * scale).to(conv.weight.dtype)
    if suits_winograd(conv, x):
        return convolve_by_winograd(x, weight, bias)
    return F.conv3d(x, weight, bias, conv.stride, conv.padding, conv.dilation)


def _is_plain(module: nn.Module) -> bool:
    """Whether calling the module does what its class does: no hook or offloading would be skipped."""
    hooks = module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    return type(module) in (nn.Conv3d, nn.BatchNorm3d) and not hooks and "forward" not in vars(module)


def build_convolution(
    kind: Kind, channels: tuple[int, int], mid_channels: int, stride: int, dilation: int
) -> nn.Module:
    """Make the 3 x 3 x 3 convolution of a block, or what stands in its place.

    Args:
        kind: ``full`` 3 x 3 x 3; ``planar`` 1 x 3 x 3; ``factored`` 1 x 3 x 3, batch norm, ReLU, 3 x 1 x 1.
        channels: In and out.
        mid_channels: Channels between the two halves of a factored one.
        stride: Of Y and X, and of Z unless planar.
        dilation: Likewise.
    """
    first, last = channels
    if kind == "full":
        return nn.Conv3d(first, last, 3, stride, padding=dilation, dilation=dilation, bias=False)
    out = last if kind == "planar" else mid_channels
    plane = nn.Conv3d(
        first,
        out,
        (1, 3, 3),
        (1, stride, stride),
        padding=(0, dilation, dilation),
        dilation=(1, dilation, dilation),
        bias=False,
    )
    if kind == "planar":
        return plane
    depth = nn.Conv3d(
        out,
        last,
        (3, 1, 1),
        (stride, 1, 1),
        padding=(dilation, 0, 0),
        dilation=(dilation, 1, 1),
        bias=False,
    )
    return nn.Sequential(plane, nn.BatchNorm3d(out), nn.ReLU(), depth)


class CT3DRecomputation:
    """Gradient checkpointing that updates batch-norm statistics once.

    transformers sets the two attributes. A checkpointed function runs a second time in the backward pass; the
    second run works on copies of the buffers, so that the running statistics are those of plain training.
    """

    gradient_checkpointing = False
    training: bool
    _gradient_checkpointing_func: Callable[..., Any]

    def _recomputed(self, function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
        """Call ``function``; if checkpointing is on, keep its inputs only."""
        if not (self.gradient_checkpointing and self.training and torch.is_grad_enabled()):
            return function(*inputs)
        if torch.compiler.is_compiling():  # the compiler writes each buffer once, after the forward pass
            return self._gradient_checkpointing_func(function, *inputs)
        # Reentrant checkpointing takes the output for a constant unless an input requires gradients.
        anchor = torch.empty(0, requires_grad=True)
        has_run = False

        def run(_: torch.Tensor, *arguments: torch.Tensor) -> torch.Tensor:
            nonlocal has_run
            if has_run:
                assert isinstance(self, nn.Module)
                with _copied_buffers(self):
                    return function(*arguments)
            has_run = True
            return function(*arguments)

        return self._gradient_checkpointing_func(run, anchor, *inputs)


@contextmanager
def _copied_buffers(module: nn.Module) -> Iterator[None]:
    """Let the module write to copies of its buffers; the originals are neither changed nor versioned."""
    kept = [
        (owner, name, buffer)
        for owner in module.modules()
        for name, buffer in owner.named_buffers(recurse=False)
    ]
    try:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer.clone())
        yield
    finally:
        for owner, name, buffer in kept:
            setattr(owner, name, buffer)


class CT3DPaddedShortcut(nn.Module):
    """Skip connection without weights: every ``stride``-th voxel, zeros for new channels.

    "Type A" of He et al. 2016, arXiv 1512.03385, section 3.3. Differs from MedicalNet's in training: there
    no gradient flows through it.
    """

    def __init__(self, new_channels: int, stride: tuple[int, int, int]) -> None:
        super().__init__()
        self.new_channels = new_channels
        self.stride = stride

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        z, y, x_step = self.stride
        return F.pad(x[:, :, ::z, ::y, ::x_step], (0, 0, 0, 0, 0, 0, 0, self.new_channels))


def build_shortcut(
    in_channels: int, out_channels: int, stride: tuple[int, int, int], shortcut: str
) -> nn.Module:
    """Make what a skip connection does to its input; nothing if the shape stays. ``stride`` is (Z, Y, X)."""
    if stride == (1, 1, 1) and in_channels == out_channels:
        return nn.Identity()
    if shortcut == "pad":
        return CT3DPaddedShortcut(out_channels - in_channels, stride)
    return nn.Sequential(
        nn.Conv3d(in_channels, out_channels, 1, stride, bias=False), nn.BatchNorm3d(out_channels)
    )


class CT3DResidualBlock(CT3DRecomputation, nn.Module):
    """What the blocks share: a body, a last convolution, and a skip connection around both."""

    downsample: nn.Module

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(B, C, Z, Y, X)`` to ``(B, C', Z', Y', X')``."""
        # Two halves, each recomputed on its own: fewer maps of full size are alive in the backward pass.
        return self._recomputed(self._join, self._recomputed(self._body, x), x)

    def _body(self, x: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _last(self, h: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def _join(self, h: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
        h = self._last(h)
        if isinstance(self.downsample, nn.Sequential):
            h += convolve_and_norm(self.downsample[0], self.downsample[1], x)
        else:
            h += self.downsample(x)
        return h.relu_()


class CT3DBasicBlock(CT3DResidualBlock):
    """Two convolutions (He et al. 2016, arXiv 1512.03385), full, planar or factored (arXiv 1711.11248).

    The width between the halves of a factored convolution is that of torchvision's weights: equal numbers of
    weights as a full one for the first convolution of a block, and the same width for the second. Differs
    from equation (1) of arXiv 1711.11248, which is computed for each convolution.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int,
        kind: Kind = "full",
        dilation: int = 1,
        shortcut: str = "conv",
    ) -> None:
        super().__init__()
        mid_channels = (in_channels * out_channels * 27) // (in_channels * 9 + 3 * out_channels)
        self.conv1 = build_convolution(kind, (in_channels, out_channels), mid_channels, stride, dilation)
        self.norm1 = nn.BatchNorm3d(out_channels)
        self.conv2 = build_convolution(kind, (out_channels, out_channels), mid_channels, 1, dilation)
        self.norm2 = nn.BatchNorm3d(out_channels)
        strides = (1 if kind == "planar" else stride, stride, stride)
        self.downsample = build_shortcut(in_channels, out_channels, strides, shortcut)

    def _body(self, x: torch.Tensor) -> torch.Tensor:
        return convolve_and_norm(self.conv1, self.norm1, x).relu_()

    def _last(self, h: torch.Tensor) -> torch.Tensor:
        return convolve_and_norm(self.conv2, self.norm2, h)


class CT3DBottleneckBlock(CT3DResidualBlock):
    """1 x 1 x 1, 3 x 3 x 3 and 1 x 1 x 1 convolutions, narrow in between (arXiv 1512.03385).

    The stride is that of the 3 x 3 x 3 convolution, as in torchvision and MedicalNet.
    """

    def __init__(
        self, in_channels: int, out_channels: int, stride: int, dilation: int = 1, shortcut: str = "conv"
    ) -> None:
        super().__init__()
        width = out_channels // BOTTLENECK_EXPANSION
        self.conv1 = nn.Conv3d(in_channels, width, 1, bias=False)
        self.norm1 = nn.BatchNorm3d(width)
        self.conv2 = build_convolution("full", (width, width), width, stride, dilation)
        self.norm2 = nn.BatchNorm3d(width)
        self.conv3 = nn.Conv3d(width, out_channels, 1, bias=False)
        self.norm3 = nn.BatchNorm3d(out_channels)
        self.downsample = build_shortcut(in_channels, out_channels, (stride, stride, stride), shortcut)

    def _body(self, x: torch.Tensor) -> torch.Tensor:
        h = convolve_and_norm(self.conv1, self.norm1, x).relu_()
        return convolve_and_norm(self.conv2, self.norm2, h).relu_()

    def _last(self, h: torch.Tensor) -> torch.Tensor:
        return convolve_and_norm(self.conv3, self.norm3, h)


class CT3DGatedPooling(nn.Module):
    """Weighted mean of a feature map, with one learned map of weights per channel.

    The scores are those of gated attention (Ilse et al. 2018, arXiv 1802.04712, equation 9), with one output
    per channel instead of one for all. A fresh one is almost the plain mean.

    Args:
        hidden_size: Channels of the map, E.
    """

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        width = max(hidden_size // 4, 1)  # 128 for 512, the width in that paper
        self.value = nn.Linear(hidden_size, width)
        self.gate = nn.Linear(hidden_size, width)
        self.score = nn.Linear(width, hidden_size)

    def forward(self, feature_map: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Pool a map.

        Args:
            feature_map: ``(B, E, z, y, x)``.

        Returns:
            The mean ``(B, E)``, its weights ``(B, E, z, y, x)``, which sum to 1 over the positions, and
            the logarithm of the sum of the unnormalized weights ``(B, E)``, float32, with which the means of
            several maps make the mean over all of them.
        """
        h_BNE = feature_map.flatten(2).transpose(1, 2)
        scores_BNE = self.score(self.value(h_BNE).tanh() * self.gate(h_BNE).sigmoid()).float()
        weights_BNE = scores_BNE.softmax(dim=1).to(h_BNE.dtype)
        weights = weights_BNE.transpose(1, 2).reshape(feature_map.shape)
        return (weights_BNE * h_BNE).sum(dim=1), weights, scores_BNE.logsumexp(dim=1)
