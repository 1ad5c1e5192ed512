"""CT volume in Hounsfield units -> ``pixel_values`` of a fixed size, one channel per window.

Ships to the Hub: imports torch and transformers only, and reads no files. The package plugs ``read_volume``
into ``CT3DImageProcessor.reader``. Axes: B batch, C windows, Z Y X voxels; triples are (Z, Y, X).
"""

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature
from transformers.processing_utils import ImagesKwargs

Triple = tuple[float, float, float]
ORIENTATIONS = ("LPS", "RAS")
CT_RANGE_HU = (-1024.0, 30_710.0)  # 12-bit CT begins at -1024; the extended scale for metal ends at 30710


class CT3DImagesKwargs(ImagesKwargs, total=False):
    """Settings that ``from_pretrained`` may override, ``size`` among them; others would skip ``__init__``."""

    spacing_mm: Triple
    windows_hu: tuple[tuple[float, float], ...]
    fill_hu: float
    orientation: str


@runtime_checkable
class OrientedVolume(Protocol):
    """What a reader returns; ``radtower``'s ``Volume`` is one."""

    array_hu: Any
    spacing_mm: Any
    orientation: Any


@runtime_checkable
class NumpyArray(Protocol):
    """A numpy array, recognized without importing numpy."""

    __array_interface__: dict[str, Any]

    def copy(self) -> Any: ...


class CT3DImageProcessor(BaseImageProcessor):
    """Resample CT volumes around their center, pad with air, and window them.

    The center of the volume becomes the center of the output. Where the output is coarser than the input, a
    triangle filter that reaches to the next output voxel averages it; where it is finer, interpolation is
    linear. Only the voxels that the output needs are converted to float. Intensities are clamped to the span
    of all windows first, so that metal does not bleed into its neighbors.

    Args:
        spacing_mm: Voxel size of the output, in (Z, Y, X) order.
        size: Voxels of the output, in (Z, Y, X) order.
        windows_hu: (low, high) of each output channel; mapped to -1 and 1, and clamped.
        fill_hu: Value outside the scan. Air, unless a published checkpoint was trained with another.
        orientation: Where the X, Y, Z axes of the output point to: ``"LPS"`` or ``"RAS"``.

    Raises:
        ValueError: If a setting is not finite, positive or increasing where it must be.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = CT3DImagesKwargs
    # Called with what is neither an array nor a volume, such as a path. None: such input is refused.
    reader: Callable[[Any], OrientedVolume] | None = None

    def __init__(
        self,
        spacing_mm: Sequence[float] = (3.0, 1.5, 1.5),
        size: Sequence[int] = (96, 192, 192),
        windows_hu: Sequence[Sequence[float]] = ((-1000.0, 200.0),),
        fill_hu: float = -1000.0,
        orientation: str = "LPS",
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spacing_mm = _checked_spacing("spacing_mm", spacing_mm)
        self.size = _checked_size(size)
        self.windows_hu = _checked_windows(windows_hu)
        if not CT_RANGE_HU[0] <= fill_hu <= CT_RANGE_HU[1]:
            raise ValueError(
                f"fill_hu must lie in {CT_RANGE_HU} HU, got {fill_hu!r}. Use -1000, which is air."
            )
        self.fill_hu = float(fill_hu)
        self.orientation = _checked_orientation(orientation)

    def preprocess(
        self,
        images: Any,
        spacings_mm: Sequence[Sequence[float] | None] | Sequence[float] | None = None,
        return_tensors: str = "pt",
    ) -> BatchFeature:
        """Prepare a batch; calling the processor calls this.

        Args:
            images: One study or a list of them. A study is a torch or numpy ``(Z, Y, X)`` array in Hounsfield
                units, any signed dtype, in LPS order; an object with ``array_hu``, ``spacing_mm`` and
                ``orientation``; or anything that ``reader`` reads, such as a path.
            spacings_mm: Voxel size of each array, in (Z, Y, X) order: a list as long as ``images``, with None
                for a study that brings its own; for a single study, also its triple alone.
            return_tensors: ``"pt"`` or ``"np"``.

        Returns:
            ``pixel_values``, float32 ``(B, C, *size)`` in [-1, 1].

        Raises:
            TypeError: If an array has an unsigned dtype, or a file is given and no ``reader`` is set.
            ValueError: If lengths differ, an array is not 3-D, not finite or smaller than an output voxel, a
                spacing is missing, not wanted, not finite or not positive, or an orientation is unknown.
        """
        is_batch = isinstance(images, list | tuple)
        studies = list(images) if is_batch else [images]
        if not studies:
            raise ValueError(f"images must hold at least one study, got {images!r}. Pass a volume or a path.")
        spacings = _spacing_per_study(spacings_mm, len(studies), is_batch)
        prepared = [self._prepare(study, mm) for study, mm in zip(studies, spacings, strict=True)]
        return BatchFeature({"pixel_values": torch.stack(prepared)}, tensor_type=return_tensors)

    def _prepare(self, study: Any, spacing_mm: Sequence[float] | None) -> Tensor:
        array, spacing, orientation = self._open(study, spacing_mm)
        volume = _checked_volume(array)
        axes = zip(volume.shape, spacing, self.size, self.spacing_mm, strict=True)
        filters = [_axis_filter(*axis) for axis in axes]
        low = min(window[0] for window in self.windows_hu)
        high = max(window[1] for window in self.windows_hu)
        resampled_hu = torch.full(self.size, self.fill_hu, dtype=torch.float32)
        inside = tuple(slice(axis.first, axis.first + len(axis.weights)) for axis in filters)
        resampled_hu[inside] = _resample(volume, filters, low, high)
        if orientation != self.orientation:
            resampled_hu = resampled_hu.flip(-1, -2)
        channels = [(resampled_hu - low) / (high - low) * 2 - 1 for low, high in self.windows_hu]
        return torch.stack(channels).clamp_(-1, 1)

    def _open(self, study: Any, spacing_mm: Sequence[float] | None) -> tuple[Any, Triple, str]:
        """Return the array, its spacing and its orientation."""
        if isinstance(study, Tensor | NumpyArray):
            if spacing_mm is None:
                raise ValueError(
                    "spacings_mm must give the voxel size of every array, got None. "
                    "Pass (Z, Y, X) millimeters from the image header."
                )
            return study, _checked_spacing("spacings_mm", spacing_mm), "LPS"
        if spacing_mm is not None:
            raise ValueError(
                f"spacings_mm must be None for a {type(study).__name__}, got {tuple(spacing_mm)}. "
                "It brings its own spacing; leave this one out."
            )
        if not isinstance(study, OrientedVolume):
            if self.reader is None:
                raise TypeError(
                    f"images must be arrays in HU with spacings_mm, got {type(study).__name__}. "
                    "To read files, install the radtower package and import it."
                )
            study = self.reader(study)
        spacing = _checked_spacing("spacing_mm of the volume", study.spacing_mm)
        return study.array_hu, spacing, _checked_orientation(study.orientation)


class _AxisFilter(NamedTuple):
    """Resampling along one axis, cut to what overlaps."""

    first: int  # index of the first output voxel whose center lies inside the scan
    start: int  # index of the first input voxel that has a weight
    weights: Tensor  # (outputs inside, inputs from start on), float32; each row sums to 1


def _axis_filter(num_in: int, in_mm: float, num_out: int, out_mm: float) -> _AxisFilter:
    step = out_mm / in_mm
    steps_from_center = torch.arange(num_out, dtype=torch.float64) - (num_out - 1) / 2
    centers = steps_from_center * step + (num_in - 1) / 2  # output centers in units of input voxels
    half_voxel = 0.5 + 1e-6  # a center on the face of the scan belongs to it, on both sides
    inside = ((centers >= -half_voxel) & (centers <= num_in - 1 + half_voxel)).nonzero().flatten()
    if not len(inside):
        raise ValueError(
            f"each volume must be as large as one output voxel, got {num_in} voxels of {in_mm} mm for "
            f"{out_mm} mm. Pass a whole scan, and its spacing in (Z, Y, X) order."
        )
    distances = (centers[inside, None] - torch.arange(num_in)).abs()
    weights = (1 - distances / max(1.0, step)).clamp_min(0)
    # At the border the filter hangs over the edge; what is left counts fully.
    weights = weights / weights.sum(dim=1, keepdim=True)
    used = weights.any(dim=0).nonzero().flatten()
    start, stop = int(used[0]), int(used[-1]) + 1
    return _AxisFilter(int(inside[0]), start, weights[:, start:stop].float())


def _resample(volume: Tensor, filters: list[_AxisFilter], low: float, high: float) -> Tensor:
    """Filter ``volume``, clamped to [low, high], along all axes; one output slice in float at a time."""
    along_z, along_y, along_x = filters
    rows = slice(along_y.start, along_y.start + along_y.weights.shape[1])
    columns = slice(along_x.start, along_x.start + along_x.weights.shape[1])
    out = torch.empty([len(axis.weights) for axis in filters], dtype=torch.float32)
    for z, weights in enumerate(along_z.weights):
        used = weights.nonzero().flatten()
        start, stop = int(used[0]), int(used[-1]) + 1
        slab = volume[along_z.start + start : along_z.start + stop, rows, columns].float().clamp(low, high)
        mixed = torch.tensordot(weights[start:stop], slab, dims=1)
        out[z] = along_y.weights @ mixed @ along_x.weights.T
    return out


def _spacing_per_study(spacings_mm: Any, num_studies: int, is_batch: bool) -> list[Any]:
    if spacings_mm is None:
        return [None] * num_studies
    spacings = spacings_mm.tolist() if isinstance(spacings_mm, Tensor) else list(spacings_mm)
    if not is_batch and spacings and isinstance(spacings[0], Real):
        return [spacings]
    if len(spacings) != num_studies:
        raise ValueError(
            f"spacings_mm must have one entry per study, got {len(spacings)} for {num_studies}. "
            "Pass two lists of the same length."
        )
    return spacings


def _checked_volume(array: Any) -> Tensor:
    if not isinstance(array, Tensor):
        interface = array.__array_interface__
        is_read_only = interface["data"][1]
        # torch shares memory with numpy, which it cannot do with these two.
        if is_read_only or any(stride < 0 for stride in interface["strides"] or ()):
            array = array.copy()
        array = torch.as_tensor(array)
    array = array.detach().cpu()
    if not array.dtype.is_signed or array.dtype.is_complex:
        raise TypeError(
            f"images must be in Hounsfield units, got {array.dtype}, which cannot hold -1000. "
            "Apply RescaleSlope and RescaleIntercept first."
        )
    if array.ndim != 3 or not array.numel():
        raise ValueError(
            f"each volume must be (Z, Y, X) and not empty, got shape {tuple(array.shape)}. "
            "Remove channel axes, and pass a batch as a list."
        )
    if array.is_floating_point() and not all(math.isfinite(value) for value in torch.aminmax(array)):
        raise ValueError(
            f"each volume must be finite, got values from {float(array.min())} to {float(array.max())}. "
            "Set voxels outside the scan to -1000."
        )
    return array


def _checked_spacing(name: str, spacing_mm: Sequence[float]) -> Triple:
    values = tuple(float(value) for value in spacing_mm)
    if len(values) != 3 or not all(math.isfinite(value) and value > 0 for value in values):
        raise ValueError(
            f"{name} must be 3 positive millimeters (Z, Y, X), got {values}. Read them from the image header."
        )
    return values[0], values[1], values[2]


def _checked_size(size: Sequence[int]) -> tuple[int, int, int]:
    values = tuple(size)
    if len(values) != 3 or not all(isinstance(value, int) and value > 0 for value in values):
        raise ValueError(
            f"size must be 3 positive whole numbers (Z, Y, X), got {values}. Use (96, 192, 192)."
        )
    return values[0], values[1], values[2]


def _checked_windows(windows_hu: Sequence[Sequence[float]]) -> tuple[tuple[float, float], ...]:
    if not windows_hu:
        raise ValueError("windows_hu must hold at least one (low, high), got none. Use [[-1000, 200]].")
    for window in windows_hu:
        if len(window) != 2 or not all(map(math.isfinite, window)) or not window[0] < window[1]:
            raise ValueError(
                f"windows_hu must be (low, high) pairs with low < high, got {tuple(window)}. Swap or add one."
            )
    return tuple((float(low), float(high)) for low, high in windows_hu)


def _checked_orientation(orientation: str) -> str:
    if orientation not in ORIENTATIONS:
        raise ValueError(
            f"orientation must be one of {ORIENTATIONS}, got {orientation!r}. Reorient the volume first."
        )
    return orientation
