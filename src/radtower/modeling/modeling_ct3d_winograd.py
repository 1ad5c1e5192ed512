"""3 x 3 x 3 convolution with half the multiplications, for inference on a CPU.

Winograd's minimal filtering F(4, 3) along Z (Lavin and Gray 2016, arXiv 1509.09308, section 4): six slices
of the input, mixed, convolved in the plane and mixed again, give four slices of the output, where a direct
convolution needs twelve planar ones. Float32 keeps about 5e-6 of the largest value; the transforms of all
three axes together would save more and lose more digits.

Axes in this file: B batch, C channels in, K channels out, Z Y X voxels.
"""

import torch
import torch.nn.functional as F
from torch import nn

TILE = 4  # output slices per step, from TILE + 2 input slices
# Interpolation points 0, 1, -1, 2, -2 and infinity.
INPUT_TRANSFORM = (
    (4.0, 0.0, -5.0, 0.0, 1.0, 0.0),
    (0.0, -4.0, -4.0, 1.0, 1.0, 0.0),
    (0.0, 4.0, -4.0, -1.0, 1.0, 0.0),
    (0.0, -2.0, -1.0, 2.0, 1.0, 0.0),
    (0.0, 2.0, -1.0, -2.0, 1.0, 0.0),
    (0.0, 4.0, 0.0, -5.0, 0.0, 1.0),
)
WEIGHT_TRANSFORM = (
    (1 / 4, 0.0, 0.0),
    (-1 / 6, -1 / 6, -1 / 6),
    (-1 / 6, 1 / 6, -1 / 6),
    (1 / 24, 1 / 12, 1 / 6),
    (1 / 24, -1 / 12, 1 / 6),
    (0.0, 0.0, 1.0),
)
OUTPUT_TRANSFORM = (
    (1.0, 1.0, 1.0, 1.0, 1.0, 0.0),
    (0.0, 1.0, -1.0, 2.0, -2.0, 0.0),
    (0.0, 1.0, 1.0, 4.0, 4.0, 0.0),
    (0.0, 1.0, -1.0, 8.0, -8.0, 1.0),
)
# Below these the direct convolution is as fast: the transforms cost as much as they save.
MIN_CHANNELS = 32
MIN_PLANE = 256
MIN_POSITIONS = 4096


def suits_winograd(conv: nn.Conv3d, x: torch.Tensor) -> bool:
    """Whether :func:`convolve_by_winograd` is right and faster for ``conv`` on ``x``, ``(B, C, Z, Y, X)``."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        return False
    if x.device.type != "cpu" or x.dtype != torch.float32 or not torch.backends.mkldnn.enabled:
        return False
    is_plain = conv.kernel_size == (3, 3, 3) and conv.stride == conv.dilation == conv.padding == (1, 1, 1)
    is_large = x.shape[3:].numel() >= MIN_PLANE and x.shape[2:].numel() >= MIN_POSITIONS
    return is_plain and is_large and min(conv.in_channels, conv.out_channels) >= MIN_CHANNELS


def convolve_by_winograd(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Convolve with stride 1 and zero padding of 1, without gradients.

    Args:
        x: ``(B, C, Z, Y, X)`` float32.
        weight: ``(K, C, 3, 3, 3)``.
        bias: ``(K,)``.

    Returns:
        ``(B, K, Z, Y, X)``, channels last in memory.
    """
    volumes = x.permute(0, 2, 3, 4, 1).contiguous()  # (B, Z, Y, X, C)
    num_volumes, depth, height, width, channels = volumes.shape
    mix_in, mix_out = torch.tensor(INPUT_TRANSFORM), torch.tensor(OUTPUT_TRANSFORM)
    planar = torch.einsum("iz,kczyx->ikcyx", torch.tensor(WEIGHT_TRANSFORM), weight)
    kernels = [kernel.contiguous(memory_format=torch.channels_last) for kernel in planar]
    mixed = torch.empty(TILE + 2, height, width, channels)
    products = torch.empty(TILE + 2, height, width, len(bias))
    output = torch.empty(num_volumes, depth, height, width, len(bias))
    for volume, target in zip(volumes, output, strict=True):
        for start in range(0, depth, TILE):
            first, stop = max(start - 1, 0), min(start + TILE + 1, depth)
            # Slices beyond the ends are zeros: their columns of the transform are left out.
            columns = mix_in[:, first - start + 1 : stop - start + 1]
            torch.mm(columns, volume[first:stop].flatten(1), out=mixed.flatten(1))
            for source, kernel, product in zip(mixed, kernels, products, strict=True):
                product.copy_(_convolve_plane(source, kernel))
            slices = target[start : start + TILE]
            torch.mm(mix_out[: len(slices)], products.flatten(1), out=slices.flatten(1))
    return output.add_(bias).permute(0, 4, 1, 2, 3)


def _convolve_plane(source: torch.Tensor, kernel: torch.Tensor) -> torch.Tensor:
    """``(Y, X, C)`` to ``(Y, X, K)``."""
    return F.conv2d(source[None].permute(0, 3, 1, 2), kernel, padding=1)[0].permute(1, 2, 0)
