"""CT volume in Hounsfield units -> ``pixel_values`` of a fixed size, one channel per window.

Two stages: ``resample`` (HU on the grid of the processor) and ``window`` (channels in [-1, 1]); a cache keeps
what is between them. Ships to the Hub: imports torch and transformers only, and reads no files. The package
plugs ``read_volume`` into ``CT3DImageProcessor.reader``. Axes: B batch, C windows, Z Y X voxels; triples are
(Z, Y, X).
"""

import copy
import math
import warnings
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor
from transformers import BaseImageProcessor, BatchFeature

from .image_processing_ct3d_settings import (
    CROPS,
    CT_RANGE_HU,
    OWN_SETTINGS,
    CT3DImageProcessorKwargs,
    Triple,
    checked_cache_size,
    checked_orientation,
    checked_size,
    checked_spacing,
    checked_windows,
    refuse_foreign_settings,
)
from .image_processing_resampling import axis_filter, lung_center, resample_volume

# The rule of the package's hounsfield.py: fat ends at about -150.
AIR_SEEN_BELOW_HU, TISSUE_SEEN_ABOVE_HU = -200.0, -500.0
PADDING_BELOW_HU, MIN_AIR_FRACTION, NUM_JUDGED = -1500.0, 2e-4, 1 << 16

# Pipelines of transformers that open every input as a picture -> what does their work on scans.
PICTURE_PIPELINES = {
    "image-classification": "model(**processor(scan)).logits.sigmoid()",
    "image-feature-extraction": "model(**processor(scan)).pooler_output",
    "zero-shot-image-classification": 'pipeline("zero-shot-ct-classification") of radtower',
}


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

    The center of the volume, or of the lungs, becomes the center of the output. Where the output is coarser
    than the input, a triangle filter that reaches to the next output voxel averages it; where it is finer,
    interpolation is linear. Only the voxels that the output needs are converted to float. Intensities are
    clamped to the span of all windows first, so that metal does not bleed into its neighbors.

    Args:
        spacing_mm: Voxel size of the output, in (Z, Y, X) order.
        size: Voxels of the output, in (Z, Y, X) order.
        windows_hu: (low, high) of each output channel; mapped to -1 and 1, and clamped.
        fill_hu: Value outside the scan. Air, unless a published checkpoint was trained with another.
        orientation: Where the X, Y, Z axes of the output point to: ``"LPS"`` or ``"RAS"``.
        antialias: Whether to average where the output is coarser. False is linear interpolation everywhere,
            which aliases; for checkpoints that were trained so.
        crop: What is in the middle of the output: ``"center"`` of the scan, or the center of the bounding box
            of the ``"lung"``. A scan without lungs is centered on itself, with a warning.
        cache_size: Voxels that a cache of resampled scans keeps, for random crops. At least ``size``, and
            larger by an even number, so that its middle is the same grid. None keeps ``size``. Without
            influence on ``pixel_values``.

    Raises:
        ValueError: If a setting is not finite, positive or increasing where it must be.
    """

    model_input_names = ["pixel_values"]
    valid_kwargs = CT3DImageProcessorKwargs
    # Called with what is neither an array nor a volume, such as a path. None: such input is refused.
    reader: Callable[[Any], OrientedVolume] | None = None

    def __init__(  # noqa: PLR0913 -- every number of the preprocessing is a setting
        self,
        spacing_mm: Sequence[float] = (3.0, 1.5, 1.5),
        size: Sequence[int] = (96, 192, 192),
        windows_hu: Sequence[Sequence[float]] = ((-1000.0, 200.0),),
        fill_hu: float = -1000.0,
        orientation: str = "LPS",
        antialias: bool = True,
        crop: str = "center",
        cache_size: Sequence[int] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.spacing_mm = checked_spacing("spacing_mm", spacing_mm)
        self.size = checked_size("size", size)
        self.cache_size = None if cache_size is None else checked_cache_size(cache_size, self.size)
        self.windows_hu = checked_windows(windows_hu)
        if not CT_RANGE_HU[0] <= fill_hu <= CT_RANGE_HU[1]:
            raise ValueError(
                f"fill_hu must lie in {CT_RANGE_HU} HU, got {fill_hu!r}. Use -1000, which is air."
            )
        self.fill_hu = float(fill_hu)
        self.orientation = checked_orientation(orientation)
        if not isinstance(antialias, bool):
            raise TypeError(f"antialias must be true or false, got {antialias!r}. Leave it at true.")
        self.antialias = antialias
        if crop not in CROPS:
            raise ValueError(f"crop must be one of {CROPS}, got {crop!r}. Use 'center'.")
        self.crop = crop

    @classmethod
    def get_image_processor_dict(
        cls, pretrained_model_name_or_path: Any, **kwargs: Any
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """See transformers. Here a pipeline of pictures can still be told from others; later Pillow fails.

        Raises:
            ValueError: If such a pipeline asks.
        """
        task = kwargs.get("_from_pipeline")
        if task in PICTURE_PIPELINES:
            raise ValueError(
                f"the pipeline must be one of scans, got {task!r}, which opens every input as a picture. Use "
                f"{PICTURE_PIPELINES[task]}."
            )
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    def preprocess(
        self,
        images: Any,
        spacings_mm: Sequence[Sequence[float] | None] | Sequence[float] | None = None,
        return_tensors: str = "pt",
        **settings: Any,
    ) -> BatchFeature:
        """Prepare a batch; calling the processor calls this. Each study is resampled and then windowed.

        Args:
            images: One study or a list of them. A study is a torch or numpy ``(Z, Y, X)`` array in Hounsfield
                units, any signed dtype, in LPS order, with air and tissue in it; an object with ``array_hu``,
                ``spacing_mm`` and ``orientation``; or anything that ``reader`` reads, such as a path.
            spacings_mm: Voxel size of each array, in (Z, Y, X) order: a list as long as ``images``, with None
                for a study that brings its own; for a single study, also its triple alone.
            return_tensors: ``"pt"`` or ``"np"``.
            settings: For this call only, under the names and with the checks of the constructor. None is
                as if it were left out.

        Returns:
            ``pixel_values``, float32 ``(B, C, *size)`` in [-1, 1].

        Raises:
            TypeError: If a setting is unknown, an array has an unsigned dtype, or a file is given and no
                ``reader`` is set.
            ValueError: If a setting is one of pictures or fails its check, lengths differ, an array is not
                3-D, not finite, not in Hounsfield units or smaller than an output voxel, a spacing is
                missing, not wanted, not finite, not positive or above 50 mm, or an orientation is unknown.
        """
        if settings:
            return self._with(settings).preprocess(images, spacings_mm, return_tensors)
        is_batch = isinstance(images, list | tuple)
        studies = list(images) if is_batch else [images]
        if not studies:
            raise ValueError(f"images must hold at least one study, got {images!r}. Pass a volume or a path.")
        spacings = _spacing_per_study(spacings_mm, len(studies), is_batch)
        prepared = [
            self.window(self.resample(study, mm)) for study, mm in zip(studies, spacings, strict=True)
        ]
        return BatchFeature({"pixel_values": torch.stack(prepared)}, tensor_type=return_tensors)

    def _with(self, settings: dict[str, Any]) -> "CT3DImageProcessor":
        """Return a processor of other settings, with the reader of this one."""
        given = {name: value for name, value in settings.items() if value is not None}
        refuse_foreign_settings(given)
        # Of no influence on what comes out, but its check would refuse another size.
        kept = {name: getattr(self, name) for name in OWN_SETTINGS} | {"cache_size": None}
        other = copy.copy(self)
        CT3DImageProcessor.__init__(other, **(kept | given))
        return other

    @property
    def span_hu(self) -> tuple[float, float]:
        """Lowest and highest value of all windows: what ``resample`` clamps to."""
        return min(low for low, _ in self.windows_hu), max(high for _, high in self.windows_hu)

    def resample(
        self,
        study: Any,
        spacing_mm: Sequence[float] | None = None,
        size: tuple[int, int, int] | None = None,
        center: Triple | None = None,
    ) -> Tensor:
        """Put one study on the grid of the processor: the first stage.

        Args:
            study: As one of ``images`` in :meth:`preprocess`.
            spacing_mm: Voxel size (Z, Y, X) of an array; None for a study that brings its own.
            size: Voxels of the output, (Z, Y, X). None takes ``self.size``.
            center: What :meth:`center` returned for this study, to find it once. None finds it.

        Returns:
            ``(*size,)`` float32 HU inside ``span_hu``, up to rounding; ``fill_hu`` outside the scan, even
            where that lies beyond the windows.

        Raises:
            TypeError, ValueError: See :meth:`preprocess`.
        """
        array, spacing, orientation = self._open(study, spacing_mm)
        volume = _checked_volume(array)
        if isinstance(study, Tensor | NumpyArray):
            _require_hounsfield(volume)
        size = self.size if size is None else size
        center = self._middle(volume, spacing) if center is None else center
        axes = zip(volume.shape, spacing, size, self.spacing_mm, center, strict=True)
        filters = [axis_filter(*axis, self.antialias) for axis in axes]
        low, high = self.span_hu
        resampled_hu = torch.full(size, self.fill_hu, dtype=torch.float32)
        inside = tuple(slice(axis.first, axis.first + len(axis.weights)) for axis in filters)
        resampled_hu[inside] = resample_volume(volume, filters, low, high)
        if orientation != self.orientation:
            resampled_hu = resampled_hu.flip(-1, -2)
        return resampled_hu

    def center(self, study: Any, spacing_mm: Sequence[float] | None = None) -> Triple:
        """Return where the middle of the output lies in a study: by ``crop``, in the scan or in its lungs.

        Args:
            study: As one of ``images`` in :meth:`preprocess`.
            spacing_mm: Voxel size (Z, Y, X) of an array; None for a study that brings its own.

        Returns:
            Voxel (Z, Y, X) of the study, in fractions, in its own orientation.

        Raises:
            TypeError, ValueError: See :meth:`preprocess`.
        """
        array, spacing, _ = self._open(study, spacing_mm)
        return self._middle(_checked_volume(array), spacing)

    def window(self, volume_hu: Tensor, windows_hu: Sequence[Sequence[float]] | None = None) -> Tensor:
        """Map HU to channels: the second stage.

        Args:
            volume_hu: ``(Z, Y, X)`` of any size, HU, any signed dtype.
            windows_hu: (low, high) of each channel. None takes those of the processor.

        Returns:
            ``(C, Z, Y, X)`` float32 in [-1, 1].
        """
        windows_hu = self.windows_hu if windows_hu is None else windows_hu
        hu = volume_hu.float()
        return torch.stack([((hu - low) / (high - low) * 2 - 1).clamp_(-1, 1) for low, high in windows_hu])

    def _middle(self, volume: Tensor, spacing_mm: Triple) -> Triple:
        """Return the input voxel, in fractions, that becomes the middle of the output."""
        z, y, x = ((num_voxels - 1) / 2 for num_voxels in volume.shape)
        if self.crop == "center":
            return z, y, x
        found = lung_center(volume, spacing_mm)
        if found is None:
            # The scan is still usable, but nobody must believe that it was centered on the lungs. A cache
            # records the warning with the scan.
            warnings.warn(
                f"crop is 'lung' and there is no lung in a volume of shape {tuple(volume.shape)}: it is "
                "centered on itself",
                stacklevel=3,
            )
            return z, y, x
        return found

    def _open(self, study: Any, spacing_mm: Sequence[float] | None) -> tuple[Any, Triple, str]:
        """Return the array, its spacing and its orientation."""
        if isinstance(study, Tensor | NumpyArray):
            if spacing_mm is None:
                raise ValueError(
                    "spacings_mm must give the voxel size of every array, got None. "
                    "Pass (Z, Y, X) millimeters from the image header."
                )
            return study, checked_spacing("spacings_mm", spacing_mm), "LPS"
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
        spacing = checked_spacing("spacing_mm of the volume", study.spacing_mm)
        return study.array_hu, spacing, checked_orientation(study.orientation)


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


def _require_hounsfield(volume: Tensor) -> None:
    """Refuse what no scan of a body can be; files and volumes were judged when they were read."""
    low, high = (float(value) for value in torch.aminmax(volume))
    has_air = low <= AIR_SEEN_BELOW_HU
    if low < PADDING_BELOW_HU:  # a constant outside the field of view says nothing about the scale
        step = max(1, volume.numel() // NUM_JUDGED) | 1
        sample = volume.reshape(-1)[::step]
        rest = sample[sample != low]
        has_air = int((rest <= AIR_SEEN_BELOW_HU).sum()) >= max(1, MIN_AIR_FRACTION * len(rest))
    if not has_air:
        raise ValueError(
            f"images must be in Hounsfield units, got values from {low:g} to {high:g}, none of them air, "
            "which is near -1000. Apply RescaleSlope and RescaleIntercept, or undo the normalization, first."
        )
    if high < TISSUE_SEEN_ABOVE_HU:
        raise ValueError(
            f"images must be in Hounsfield units, got values from {low:g} to {high:g}, none of them tissue, "
            "which is near 0. Apply RescaleIntercept once, and pass a scan of a body."
        )
