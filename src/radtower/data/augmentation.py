"""Vary a cached scan for training: crop, small affine, noise, windows, and a flip where that is asked for.

Axes: C windows, Z Y X voxels; triples are (Z, Y, X).
"""

import math
from dataclasses import dataclass, fields

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from radtower.processing.image_processing_ct3d import CT3DImageProcessor

LARGEST = {
    "max_rotation_degrees": 45.0,
    "max_scaling": 0.5,
    "max_window_shift_hu": 1000.0,
    "max_noise_hu": 1000.0,
    "flip_probability": 1.0,
}


@dataclass(frozen=True, kw_only=True)
class VolumeAugmentation:
    """HU of a cache -> ``pixel_values``, drawn for each seed, epoch and index and the same for equal ones.

    The crop is drawn from the whole margin of the cache. The rest is off unless asked for: the published
    recipe crops and does no more. A flip exchanges left and right, which matters for the heart, the liver and
    every report that names a side.

    Args:
        image_processor: Size, spacing and windows of the output.
        seed: Of the run.
        max_rotation_degrees: About each axis, up to 45.
        max_scaling: Zoom by up to this fraction, in or out, up to 0.5.
        max_window_shift_hu: Each end of each window moves by up to this. Values beyond the span of the
            windows were clamped before.
        max_noise_hu: Standard deviation of Gaussian noise, drawn between 0 and this.
        flip_probability: Of exchanging left and right.

    Raises:
        ValueError: If a strength is out of range, or could turn a window around.
    """

    image_processor: CT3DImageProcessor
    seed: int
    max_rotation_degrees: float = 0.0
    max_scaling: float = 0.0
    max_window_shift_hu: float = 0.0
    max_noise_hu: float = 0.0
    flip_probability: float = 0.0

    def __post_init__(self) -> None:
        for name in (field.name for field in fields(self) if field.name in LARGEST):
            if not 0 <= getattr(self, name) <= LARGEST[name]:
                raise ValueError(
                    f"{name} must be between 0 and {LARGEST[name]:g}, got {getattr(self, name)}. "
                    "Use 0 for none."
                )
        narrowest = min(high - low for low, high in self.image_processor.windows_hu)
        if 2 * self.max_window_shift_hu >= narrowest:
            raise ValueError(
                f"max_window_shift_hu must be below half of the narrowest window of {narrowest:g} HU, got "
                f"{self.max_window_shift_hu}. Lower it."
            )

    def __call__(self, volume_hu: Tensor, epoch: int, index: int) -> Tensor:
        """Vary one volume.

        Args:
            volume_hu: ``(Z, Y, X)`` int16 HU, at least the size of the processor on each axis.
            epoch: Which pass over the data.
            index: Position of the volume in the data.

        Returns:
            ``(C, *size)`` float32 in [-1, 1].

        Raises:
            ValueError: If the volume is smaller than the output.
        """
        size = self.image_processor.size
        margins = [kept - n for kept, n in zip(volume_hu.shape, size, strict=True)]
        if min(margins) < 0:
            raise ValueError(
                f"volume_hu must be at least {size}, got shape {tuple(volume_hu.shape)}. Rebuild the cache."
            )
        entropy = np.random.SeedSequence([self.seed, epoch, index]).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(entropy[0]))
        starts = [int(torch.randint(margin + 1, (), generator=generator)) for margin in margins]
        if self.max_rotation_degrees or self.max_scaling:
            hu = self._affine(volume_hu, starts, generator)
        else:
            hu = volume_hu[
                tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))
            ].float()
        if self.max_noise_hu:
            deviation = self.max_noise_hu * torch.rand((), generator=generator)
            hu = hu + deviation * torch.randn(hu.shape, generator=generator)
        if self.flip_probability and torch.rand((), generator=generator) < self.flip_probability:
            hu = hu.flip(-1)
        shifts = self._uniform(generator, len(self.image_processor.windows_hu), 2) * self.max_window_shift_hu
        windows = torch.tensor(self.image_processor.windows_hu, dtype=torch.float64) + shifts
        return self.image_processor.window(hu, windows.tolist())

    def _affine(self, volume_hu: Tensor, starts: list[int], generator: torch.Generator) -> Tensor:
        """Rotate and zoom about the middle of the crop, in millimeters; outside the cache is fill."""
        size = torch.tensor(self.image_processor.size, dtype=torch.float64)
        kept = torch.tensor(volume_hu.shape, dtype=torch.float64)
        spacing = torch.tensor(self.image_processor.spacing_mm, dtype=torch.float64)
        angles = self._uniform(generator, 3) * math.radians(self.max_rotation_degrees)
        zoom = 1 + self.max_scaling * self._uniform(generator, 1)
        # From output to input, in the coordinates of affine_grid: -1 and 1 are the faces of the volume.
        linear = (2 / (kept * spacing))[:, None] * (_rotation(angles) / zoom) * (spacing * size / 2)
        middle = torch.tensor(starts, dtype=torch.float64) + size / 2
        offset = 2 * middle / kept - 1
        theta = torch.cat([linear, offset[:, None]], dim=1)
        theta = torch.cat([theta[:, :3].flip(1), theta[:, 3:]], dim=1).flip(0)  # affine_grid goes X, Y, Z
        shape = [1, 1, *self.image_processor.size]
        grid = F.affine_grid(theta[None].float(), shape, align_corners=False)
        fill_hu = self.image_processor.fill_hu
        shifted = volume_hu[None, None].float() - fill_hu  # so that the zeros of grid_sample are fill
        return F.grid_sample(shifted, grid, align_corners=False)[0, 0] + fill_hu

    def _uniform(self, generator: torch.Generator, *shape: int) -> Tensor:
        """Numbers in [-1, 1)."""
        return torch.rand(shape, generator=generator, dtype=torch.float64) * 2 - 1


def _rotation(angles: Tensor) -> Tensor:
    """``(3, 3)`` rotation about X, then Y, then Z, of vectors in (Z, Y, X) order."""
    matrix = torch.eye(3, dtype=torch.float64)
    for angle, (first, second) in zip(angles, ((0, 1), (0, 2), (1, 2)), strict=True):
        turn = torch.eye(3, dtype=torch.float64)
        turn[first, first] = turn[second, second] = torch.cos(angle)
        turn[first, second], turn[second, first] = -torch.sin(angle), torch.sin(angle)
        matrix = turn @ matrix
    return matrix
