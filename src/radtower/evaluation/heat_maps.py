"""Where in a scan a tower sees evidence for a finding: signed maps, in the geometry of the scan.

Axes: E embedding, C channels, Z Y X voxels of the scan, z y x voxels of a feature map; triples are (Z, Y, X).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import SimpleITK as sitk
import torch
from torch import Tensor, nn
from torch.func import functional_call
from transformers import AutoConfig, AutoImageProcessor

from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.safe_loading import load_model
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import LPS_FROM_RAS, Volume

Score = Callable[[Tensor], Tensor]  # pooled embedding (1, E) -> the logit to explain, a scalar
ExplainableModel = CT3DVisionForImageClassification | MedCLIPModel
Triple = tuple[float, float, float]
Box = tuple[tuple[int, int], tuple[int, int], tuple[int, int]]  # first voxel and the one after the last
LAST_STAGE = -1
MAP_SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha")
# Have a grid of their own; DICOM slices are put in order by us.
ONE_FILE_FORMATS = ("NIfTI", "NRRD", "MetaImage")


@dataclass(frozen=True, eq=False)
class Evidence:
    """What the places of a feature map do to a logit.

    Attributes:
        activations: ``(E, z, y, x)`` float32, the feature map.
        gradients: ``(E, z, y, x)`` float32, derivative of the logit by the feature map.
        logit: What is explained.
    """

    activations: Tensor
    gradients: Tensor
    logit: float

    @property
    def contributions(self) -> Tensor:
        """``(z, y, x)``: gradient times activation, summed over the channels; > 0 speaks for the finding.

        For average pooling and a linear head this is the class activation map of Zhou et al. (arXiv
        1512.04150) divided by the number of places; for every pooling that is linear in the map or picks
        from it, the sum over the places is the logit minus the bias (HiResCAM, arXiv 2011.08891). Grad-CAM
        (arXiv 1610.02391) takes the mean gradient of a channel instead, which spreads the one place that a
        maximum was taken from over the whole map, and it drops what speaks against the finding.
        """
        return (self.activations * self.gradients).sum(dim=0)


@dataclass(frozen=True)
class FeatureGrid:
    """Where the voxels of a feature map lie: voxel i is centered on input voxel ``first + stride * i``.

    Attributes:
        first: Input voxel on which the first feature voxel is centered; may be between two.
        stride: Input voxels from one feature voxel to the next.
    """

    first: Triple
    stride: tuple[int, int, int]


@dataclass(frozen=True, eq=False)
class HeatMap:
    """The evidence for one finding, at every voxel of a scan.

    Attributes:
        array: ``(Z, Y, X)`` float32: contribution of a feature voxel centered here to the logit. Trilinear
            between feature voxels, constant beyond the outermost, 0 outside the crop that the model saw.
        volume: The scan.
        logit: What the model says of the finding; its sigmoid is the score.
        total: Sum of the contributions of all feature voxels. ``logit - total`` belongs to no place: the
            bias, and what a head or a pooling that is not linear adds.
        strongest: Largest contribution of a feature voxel, be it in the padding around the scan.
        feature_mm: Size of a feature voxel.
        seen: First voxel of the scan inside the crop and the one after the last, along Z, Y and X.
    """

    array: np.ndarray
    volume: Volume
    logit: float
    total: float
    strongest: float
    feature_mm: Triple
    seen: Box

    @property
    def score(self) -> float:
        """Sigmoid of the logit, uncalibrated."""
        return 1 / (1 + math.exp(-self.logit))

    @property
    def peak(self) -> tuple[int, int, int]:
        """Voxel (Z, Y, X), of those seen, where most speaks for the finding, or least against it."""
        return peak_voxel(self.array, self.seen)

    @property
    def peak_value(self) -> float:
        """Contribution at the peak; where it is not > 0, nothing in the scan speaks for the finding."""
        return float(self.array[self.peak])

    @property
    def peak_mm(self) -> Triple:
        """The peak in the patient, (right to left, back to front, feet to head): RAS+ as viewers show it."""
        x, y, z = (self.volume.affine @ [*reversed(self.peak), 1.0])[:3].tolist()
        return x, y, z

    @property
    def seen_share(self) -> float:
        """Share of the scan's voxels inside the crop."""
        return math.prod(stop - start for start, stop in self.seen) / self.array.size


def load_explainable(folder: str | Path) -> tuple[ExplainableModel, CT3DImageProcessor]:
    """Load a classifier of scans or a dual tower, in float32 and evaluation mode, and its image processor.

    Raises:
        TypeError: If the model is of another family, or the image tower of a dual tower is.
        ValueError: If weights are missing: a tower without its classifier would explain random numbers.
    """
    families: dict[str, type[Any]] = {
        "ct3d_vision": CT3DVisionForImageClassification,
        "medclip": MedCLIPModel,
    }
    model_type = AutoConfig.from_pretrained(folder, trust_remote_code=False).model_type
    if model_type not in families:
        raise TypeError(
            f"model must be a classifier of scans or a dual tower, got {model_type} in {folder}. "
            "Train one with radtower train vision."
        )
    model, report = load_model(families[model_type], folder, dtype=torch.float32, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(
            f"model must bring all of its weights, got none for {sorted(report['missing_keys'])} in "
            f"{folder}. A tower alone has no findings to explain: use the classifier it was trained as."
        )
    if not isinstance(model.vision_model, CT3DVisionModel):
        raise TypeError(
            f"the image tower must be a CT3DVisionModel, got {type(model.vision_model).__name__} in "
            f"{folder}. Only towers of CT volumes can be explained."
        )
    return model.eval(), AutoImageProcessor.from_pretrained(folder, trust_remote_code=False)


def explain_scan(
    model: ExplainableModel, processor: CT3DImageProcessor, volume: Volume, finding: str
) -> HeatMap:
    """Map the evidence for one finding in one scan.

    Args:
        model: In evaluation mode.
        processor: The one the model was trained with.
        volume: As ``read_volume`` returns it.
        finding: For a classifier, one of its ``id2label``; for a dual tower, a phrase to put into prompts.

    Raises:
        KeyError: If a classifier does not have the finding.
        ValueError: If the model is in training mode.
    """
    if isinstance(model, MedCLIPModel):
        score = zero_shot_score(model, finding)
    else:
        score = classifier_score(model, finding)
    tower: Any = model.vision_model  # a CT3DVisionModel in both
    center = processor.center(volume)
    pixel_values = processor.window(processor.resample(volume, center=center))[None].to(model.device)
    evidence = trace_evidence(tower, pixel_values, score)
    grid = feature_grid(tower)
    contributions = evidence.contributions.cpu().numpy()
    array, seen = to_scan_grid(contributions, grid, processor, volume, center)
    z_mm, y_mm, x_mm = (
        count * spacing for count, spacing in zip(grid.stride, processor.spacing_mm, strict=True)
    )
    return HeatMap(
        array,
        volume,
        logit=evidence.logit,
        total=float(contributions.sum()),
        strongest=float(contributions.max()),
        feature_mm=(z_mm, y_mm, x_mm),
        seen=seen,
    )


def finding_keys(model: CT3DVisionForImageClassification) -> list[str]:
    """Return the findings of a classifier, in column order."""
    assert model.config.id2label is not None  # transformers fills it
    return [str(key) for key in model.config.id2label.values()]


def classifier_score(model: CT3DVisionForImageClassification, key: str) -> Score:
    """Return the logit of one finding of a classifier, as a function of the pooled embedding.

    Raises:
        KeyError: If the model has no such finding.
    """
    keys = finding_keys(model)
    if key not in keys:
        raise KeyError(f"finding must be one of {', '.join(keys)}, got {key!r}. Choose from the list.")
    column = keys.index(key)
    return lambda pooled: model.classifier(pooled)[0, column]


def zero_shot_score(model: MedCLIPModel, phrase: str) -> Score:
    """Return the logit of :meth:`MedCLIPModel.zero_shot` for one phrase, of the pooled image embedding.

    The length of the image vector counts as a constant. A cosine does not change with the length, so that
    with a linear projection and the whole gradient all contributions would add up to zero.
    """
    direction, scale = model.finding_directions(phrase)[0], model.zero_shot_scale()[0].detach()

    def score(pooled: Tensor) -> Tensor:
        vector = model.visual_projection(pooled)[0].float()
        length = vector.detach().norm().clamp_min(1e-12) if model.is_cosine else 1.0
        return scale * (vector @ direction) / length

    return score


def trace_evidence(
    tower: CT3DVisionModel, pixel_values: Tensor, score: Score, stage: int = LAST_STAGE
) -> Evidence:
    """Run one scan through the tower and differentiate the logit by the output of a stage's last block.

    Args:
        tower: In evaluation mode.
        pixel_values: ``(1, C, Z, Y, X)``.
        score: What is explained.
        stage: Position in ``tower.stages``. Only for the last do the contributions add up to the logit; its
            weights of gated pooling count as constants.

    Raises:
        ValueError: If the tower is in training mode, or there is more than one scan.
    """
    if tower.training:
        raise ValueError("tower must be in evaluation mode, got training mode. Call eval() on the model.")
    if len(pixel_values) != 1:
        raise ValueError(f"pixel_values must hold 1 scan, got {len(pixel_values)}. Explain one at a time.")
    is_last = range(len(tower.stages))[stage] == len(tower.stages) - 1
    feature_maps: list[Tensor] = []

    def cut(module: nn.Module, inputs: Any, output: Tensor) -> Tensor:
        feature_maps.append(output.detach().requires_grad_())
        return feature_maps[0]

    # Constants in place of parameters: what is before the cut keeps no activations for a backward pass.
    constants = {name: parameter.detach() for name, parameter in tower.named_parameters()}
    handle = list(tower.stages[stage].children())[-1].register_forward_hook(cut)
    try:
        with torch.enable_grad():
            output = functional_call(tower, constants, (pixel_values,))
            logit = score(output.pooler_output)
            if output.attention_map is None or not is_last:
                (gradients,) = torch.autograd.grad(logit, feature_maps)
            else:  # the pooled embedding is the mean of the map with these weights, taken for constants
                (pooled,) = torch.autograd.grad(logit, output.pooler_output)
                gradients = pooled[..., None, None, None] * output.attention_map.detach()
    finally:
        handle.remove()
    return Evidence(feature_maps[0].detach()[0].float(), gradients[0].float(), logit.item())


def feature_grid(tower: CT3DVisionModel, stage: int = LAST_STAGE) -> FeatureGrid:
    """Return where the receptive fields of a stage are centered.

    They are not the centers of equal shares of the crop, which resizing a map to the crop assumes: a padded
    convolution of stride 2 is centered on every second voxel, from the first one on. After the stem and
    three stages, resizing would move the map by 7 voxels, almost half a feature voxel.
    """
    last = range(len(tower.stages))[stage]
    first, stride = np.zeros(3), np.ones(3, dtype=int)
    for part in (tower.stem, *tower.stages[: last + 1]):
        for name, layer in part.named_modules():
            # In the order of the forward pass; the shortcut beside a block strides as the block does.
            if isinstance(layer, nn.Conv3d | nn.MaxPool3d) and "downsample" not in name:
                kernel, step, padding, dilation = (
                    np.broadcast_to(getattr(layer, field), 3)
                    for field in ("kernel_size", "stride", "padding", "dilation")
                )
                first = first + stride * (dilation * (kernel - 1) / 2 - padding)
                stride = stride * step
    z, y, x = first.tolist()
    z_stride, y_stride, x_stride = stride.tolist()
    return FeatureGrid((z, y, x), (z_stride, y_stride, x_stride))


def to_scan_grid(
    values: np.ndarray, grid: FeatureGrid, processor: CT3DImageProcessor, volume: Volume, center: Triple
) -> tuple[np.ndarray, Box]:
    """Interpolate a feature map ``(z, y, x)`` at every voxel of the scan that it came from.

    Args:
        values: The map.
        grid: Of the stage it is from.
        processor: What made the crop.
        volume: The scan.
        center: What ``processor.center`` returned for the scan: the middle of the crop.

    Returns:
        :attr:`HeatMap.array` and :attr:`HeatMap.seen`.

    Raises:
        ValueError: If the crop lies between two voxels of the scan.
    """
    mapped = values.astype(np.float32)
    seen = []
    for axis in range(3):
        num_voxels, size = volume.array_hu.shape[axis], processor.size[axis]
        step = volume.spacing_mm[axis] / processor.spacing_mm[axis]
        position = (np.arange(num_voxels) - center[axis]) * step + (size - 1) / 2
        is_seen = (position > -0.5) & (position < size - 0.5)
        inside = np.flatnonzero(is_seen)
        if not len(inside):
            crop_mm, voxel_mm = size * processor.spacing_mm[axis], volume.spacing_mm[axis]
            raise ValueError(
                f"the crop must hold the center of a voxel of the scan, got {crop_mm:g} mm between voxels of "
                f"{voxel_mm:g} mm along {'ZYX'[axis]}. Use a processor with a larger size."
            )
        seen.append((int(inside[0]), int(inside[-1]) + 1))
        if axis > 0 and processor.orientation != volume.orientation:
            position = size - 1 - position  # LPS and RAS: Y and X point the other way
        at = (position - grid.first[axis]) / grid.stride[axis]
        at = at.clip(0, values.shape[axis] - 1)
        weights = (1 - np.abs(at[:, None] - np.arange(values.shape[axis]))).clip(0) * is_seen[:, None]
        mapped = np.moveaxis(np.tensordot(weights.astype(np.float32), mapped, (1, axis)), 0, axis)
    return np.ascontiguousarray(mapped), (seen[0], seen[1], seen[2])


def peak_voxel(array: np.ndarray, seen: Box) -> tuple[int, int, int]:
    """Return the voxel (Z, Y, X) of the maximum; of a plateau, such as at the border, its middle.

    Only inside ``seen``: outside, the map is 0, which is more than any evidence against a finding.
    """
    inside = array[tuple(slice(*pair) for pair in seen)]
    highest = np.argwhere(inside >= inside.max()) + [first for first, _ in seen]
    middle = highest[((highest - highest.mean(axis=0)) ** 2).sum(axis=1).argmin()]
    z, y, x = middle.tolist()
    return z, y, x


def write_heat_map(heat_map: HeatMap, path: str | Path, scan: str | Path) -> None:
    """Write the map with the grid of the file that the scan was read from, so that it opens on top of it.

    Args:
        heat_map: The map of ``scan``.
        path: NIfTI, NRRD or MetaImage file to write.
        scan: What ``heat_map.volume`` was read from. The slices of a DICOM series have no grid of their own:
            their map is in LPS order.

    Raises:
        ValueError: If the folder of ``path`` is missing, its ending is unknown, or it is the scan.
    """
    check_map_path(path, scan)
    volume = heat_map.volume
    lps = LPS_FROM_RAS @ volume.affine
    image = sitk.GetImageFromArray(heat_map.array)
    spacing_xyz = np.array(volume.spacing_mm[::-1])
    image.SetSpacing(spacing_xyz.tolist())
    image.SetDirection((lps[:3, :3] / spacing_xyz).ravel().tolist())
    image.SetOrigin(lps[:3, 3].tolist())
    if volume.source.format in ONE_FILE_FORMATS:
        header = sitk.ImageFileReader()
        header.SetFileName(str(scan))
        header.ReadImageInformation()
        axes = sitk.DICOMOrientImageFilter.GetOrientationFromDirectionCosines(header.GetDirection())
        image = sitk.DICOMOrient(image, axes)
    sitk.WriteImage(image, str(path), useCompression=Path(path).suffix != ".nii")


def check_map_path(path: str | Path, scan: str | Path) -> None:
    """Refuse a path that :func:`write_heat_map` would refuse, before the work is done."""
    check_folder("output", path)
    if not str(path).lower().endswith(MAP_SUFFIXES):
        raise ValueError(
            f"output must end in one of {', '.join(MAP_SUFFIXES)}, got {path}. Change the ending."
        )
    if Path(path).resolve() == Path(scan).resolve():
        raise ValueError(f"output must not be the scan itself, got {path}. Choose another name.")


def check_folder(argument: str, path: str | Path) -> None:
    """Refuse a file that cannot be written because its folder is missing, or it is itself a folder."""
    if not Path(path).parent.is_dir() or Path(path).is_dir():
        raise ValueError(
            f"{argument} must be a file in a folder that exists, got {path}. Create the folder first."
        )
