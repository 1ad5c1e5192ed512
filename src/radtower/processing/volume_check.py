"""Say what a scan that could be read looks like, and what about it may hurt a chest model.

Nothing is refused here: ``volume_io`` refuses what cannot be used. Axes: Z Y X voxels.
"""

from dataclasses import dataclass

import numpy as np
import SimpleITK as sitk

from radtower.processing.volume_io import Volume

PERCENTILES = (1, 25, 50, 75, 99)
AIR_BELOW_HU = -900
# Averaged over blocks: lung is -950 to -600, emphysema and inspiration included; outer air stays below.
LUNG_HU, BODY_ABOVE_HU, BLOCK_MM = (-965, -600), -500, 5.0
MIN_LUNG_FRACTION = 0.11  # of the body; measured: chests 0.14 to 0.36, an abdomen with lung bases 0.08
MIN_EXTENT_Z_MM, MIN_EXTENT_XY_MM, MAX_SLICE_MM = 150.0, 200.0, 6.0
MIN_MATRIX, MAX_IN_PLANE_RATIO = 128, 1.02
BONE_HU = 700  # no chest lacks it: a lower maximum means a clipped range


@dataclass(frozen=True)
class VolumeReport:
    """What ``radtower doctor`` prints. Triples are (Z, Y, X)."""

    shape: tuple[int, ...]
    spacing_mm: tuple[float, ...]
    orientation: str
    extent_mm: tuple[float, ...]
    hu_min: float
    hu_max: float
    hu_percentiles: dict[int, float]
    air_fraction: float  # of all voxels
    lung_fraction: float  # of the body, lungs included
    rescale: str
    warnings: tuple[str, ...]
    verdict: str  # "usable" or "usable with warnings"


def inspect_volume(volume: Volume) -> VolumeReport:
    """Measure ``volume`` and warn of what a chest model was not made for."""
    array = volume.array_hu
    extent_mm = tuple(n * mm for n, mm in zip(array.shape, volume.spacing_mm, strict=True))
    lung_fraction = _lung_fraction(volume)
    warnings = (
        *volume.source.warnings,
        *_field_of_view_warnings(extent_mm, lung_fraction),
        *_resolution_warnings(array.shape, volume.spacing_mm),
        *_range_warnings(array),
    )
    sample = array[:, ::2, ::2]  # percentiles sort; a quarter of the voxels gives the same to 1 HU
    return VolumeReport(
        shape=array.shape,
        spacing_mm=volume.spacing_mm,
        orientation=volume.orientation,
        extent_mm=extent_mm,
        hu_min=float(array.min()),
        hu_max=float(array.max()),
        hu_percentiles=dict(zip(PERCENTILES, np.percentile(sample, PERCENTILES).tolist(), strict=True)),
        air_fraction=float(np.mean(array < AIR_BELOW_HU)),
        lung_fraction=lung_fraction,
        rescale=volume.source.rescale,
        warnings=warnings,
        verdict="usable with warnings" if warnings else "usable",
    )


def _lung_fraction(volume: Volume) -> float:
    """Share of the body that is aerated like lung; averaging over blocks first removes noise."""
    blocks = _block_means(volume)
    lung = sitk.GetImageFromArray(((blocks > LUNG_HU[0]) & (blocks < LUNG_HU[1])).astype(np.uint8))
    # The skin is a layer of half air, one or two blocks thick; opening with 3 blocks removes it.
    opened = sitk.BinaryMorphologicalOpening(lung, [1, 1, 1], sitk.sitkBox)
    num_lung = int(sitk.GetArrayViewFromImage(opened).sum())
    num_solid = int(np.count_nonzero(blocks > BODY_ABOVE_HU))
    return num_lung / max(1, num_lung + num_solid)


def _block_means(volume: Volume) -> np.ndarray:
    blocks = volume.array_hu
    for axis, mm in enumerate(volume.spacing_mm):
        factor = min(max(1, round(BLOCK_MM / mm)), blocks.shape[axis])
        sums = np.add.reduceat(blocks, np.arange(0, blocks.shape[axis], factor), axis=axis, dtype=np.float32)
        whole_blocks = range(blocks.shape[axis] // factor)  # the remainder at the end is left out
        blocks = sums.take(whole_blocks, axis=axis) / factor
    return blocks


def _field_of_view_warnings(extent_mm: tuple[float, ...], lung_fraction: float) -> list[str]:
    warnings = []
    if lung_fraction < MIN_LUNG_FRACTION:
        warnings.append(
            f"only {lung_fraction:.1%} of the body is lung: this may be an abdomen or a head, or the lungs "
            "are largely consolidated"
        )
    if extent_mm[0] < MIN_EXTENT_Z_MM:
        warnings.append(f"the scan is {extent_mm[0]:.0f} mm high: part of the chest is not in it")
    if min(extent_mm[1:]) < MIN_EXTENT_XY_MM:
        warnings.append(f"the field of view is {min(extent_mm[1:]):.0f} mm wide: the chest is cropped")
    return warnings


def _resolution_warnings(shape: tuple[int, ...], spacing_mm: tuple[float, ...]) -> list[str]:
    warnings = []
    if spacing_mm[0] > MAX_SLICE_MM:
        warnings.append(f"slices are {spacing_mm[0]:.1f} mm apart: small findings fall between them")
    if min(shape[1:]) < MIN_MATRIX:
        warnings.append(f"the matrix is {shape[1]} x {shape[2]}: too coarse for small findings")
    if max(spacing_mm[1:]) / min(spacing_mm[1:]) > MAX_IN_PLANE_RATIO:
        warnings.append(f"pixels are not square: {spacing_mm[1]:.3f} x {spacing_mm[2]:.3f} mm")
    return warnings


def _range_warnings(array: np.ndarray) -> list[str]:
    warnings = []
    if array.max() < BONE_HU:
        warnings.append(f"the highest value is {array.max():g} HU: intensities above were cut off")
    if array.min() > AIR_BELOW_HU:
        warnings.append(f"the lowest value is {array.min():g} HU: intensities below were cut off")
    return warnings
