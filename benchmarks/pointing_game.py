"""Does the heat map point at the lesion? The pointing game on phantoms: every method, stage and pooling.

    python benchmarks/pointing_game.py --output DIR

Pointing game (Zhang et al. 2016, arXiv 1608.00507): a map wins whose maximum lies on the finding. Here: the
box of one voxel of the last feature map (48 x 40 x 40 mm), centered on the maximum, touches the lesion. The
maximum is taken in the grid of the scan, after the interpolation that ``radtower explain`` does. Every study
with the finding counts, whatever the model says of it. Two chances, by the same rule: a random place inside
the body; and, since a model may point at the usual place of a finding without looking, the maximum of every
other study with it. A finding counts as learned if the interval of its AUROC lies above 0.5.
Phantom results only. The method is chosen on validation and reported on test.
"""

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torch.nn.utils import convert_conv3d_weight_memory_format
from transformers import Trainer, TrainingArguments, set_seed

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.demo.cohort import DEFAULT_PREVALENCE
from radtower.demo.phantom import make_phantom
from radtower.demo.phantom_findings import PHANTOM_FINDINGS
from radtower.demo.walkthrough import WINDOWS_HU, DemoPlan
from radtower.evaluation.bootstrap import count_bootstrap, percentile_interval
from radtower.evaluation.heat_maps import (
    LAST_STAGE,
    Evidence,
    classifier_score,
    feature_grid,
    peak_voxel,
    to_scan_grid,
    trace_evidence,
)
from radtower.evaluation.metrics import auroc_per_finding, bootstrap_auroc
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing
from radtower.training.arguments import DEFAULTS

PLAN = DemoPlan()
SPLITS = {
    "train": 420,
    "validation": 120,
    "test": 240,
}
FIRST_SEED = {"train": 1_000_000, "validation": 2_000_000, "test": 3_000_000}
# Half a voxel of the last feature map: stem and two later stages halve every axis.
TOLERANCE_MM = tuple(8 * mm / 2 for mm in PLAN.spacing_mm)
NUM_RESAMPLES = 2000
METHODS: dict[str, Callable[[Evidence], Tensor]] = {
    "gradient x activation": lambda evidence: evidence.contributions,
    "Grad-CAM": lambda evidence: (
        evidence.activations * evidence.gradients.mean(dim=(1, 2, 3), keepdim=True)
    ).sum(dim=0),
    "LayerCAM": lambda evidence: (evidence.activations * evidence.gradients.relu()).sum(dim=0),
}


@dataclass(frozen=True, kw_only=True)
class Study:
    """A preprocessed phantom, and where its lesions are.

    Attributes:
        volume: Geometry of the scan; its voxels are not kept.
        pixel_values: ``(C, Z, Y, X)`` float16.
        labels: ``(F,)``, 0 or 1.
        lesions: ``(Z, Y, X)`` in the grid of the scan, by finding, packed bits.
        chance: Share of the body from which the pointing game is won, by finding.
    """

    volume: Volume
    pixel_values: Tensor
    labels: np.ndarray
    lesions: dict[str, np.ndarray]
    chance: dict[str, float]

    def hits(self, finding: str, peaks: list[np.ndarray]) -> list[bool]:
        """Whether the lesion reaches to ``TOLERANCE_MM`` from each voxel; never from outside the scan."""
        shape = np.array(self.volume.array_hu.shape)
        lesion = np.unpackbits(self.lesions[finding], count=int(shape.prod())).reshape(shape)
        low = np.array(peaks) - _reach(self.volume)
        high = np.array(peaks) + _reach(self.volume) + 1
        boxes = zip(low.clip(0).tolist(), high.clip(0).tolist(), strict=True)
        touches = [bool(lesion[tuple(map(slice, *box))].any()) for box in boxes]
        is_inside = [bool((peak >= 0).all() and (peak < shape).all()) for peak in peaks]
        return [touch and inside for touch, inside in zip(touches, is_inside, strict=True)]


def make_study(seed: int, has_lesions: bool) -> Study:
    """Draw findings at the demo's prevalence and make the phantom; lesions are for the evaluation only."""
    chances = np.array([DEFAULT_PREVALENCE[name] for name in PHANTOM_FINDINGS])
    is_on = np.random.default_rng([seed, 77]).random(len(chances)) < chances
    names = [name for name, on in zip(PHANTOM_FINDINGS, is_on, strict=True) if on]
    phantom = make_phantom(seed, names)
    affine, source = affine_from_spacing(phantom.spacing_mm), VolumeSource("phantom", "none")
    volume = Volume(phantom.volume_hu, phantom.spacing_mm, affine, "LPS", source)
    pixel_values = image_processor()(volume)["pixel_values"][0].half()
    lesions, chance = {}, {}
    if has_lesions:
        body = _body(phantom.volume_hu)
        width = [2 * by + 1 for by in _reach(volume)]
        for name, lesion in phantom.lesions.items():
            lesions[name] = np.packbits(lesion)
            chance[name] = float(ndimage.maximum_filter(lesion, size=width)[body].mean())
    geometry = np.broadcast_to(np.int16(0), volume.array_hu.shape)
    volume = Volume(geometry, phantom.spacing_mm, affine, "LPS", source)
    labels = is_on.astype(np.float32)
    return Study(volume=volume, pixel_values=pixel_values, labels=labels, lesions=lesions, chance=chance)


def make_split(name: str) -> list[Study]:
    seeds = range(FIRST_SEED[name], FIRST_SEED[name] + SPLITS[name])
    make = partial(make_study, has_lesions=name != "train")
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        return list(pool.map(make, seeds, chunksize=8))


def image_processor() -> CT3DImageProcessor:
    return CT3DImageProcessor(spacing_mm=PLAN.spacing_mm, size=PLAN.size, windows_hu=WINDOWS_HU)


def train_classifier(studies: list[Study], pooling: str, folder: Path) -> CT3DVisionForImageClassification:
    """Train the demo's classifier on the truth of the phantoms."""
    set_seed(0)
    config = CT3DVisionConfig(
        num_channels=len(WINDOWS_HU),
        hidden_sizes=list(PLAN.hidden_sizes),
        layers=[1] * len(PLAN.hidden_sizes),
        pooling=pooling,
        image_size=list(PLAN.size),
        id2label=dict(enumerate(PHANTOM_FINDINGS)),
    )
    model = CT3DVisionForImageClassification(config)
    convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    arguments = TrainingArguments(
        **DEFAULTS,
        output_dir=str(folder),
        num_train_epochs=PLAN.vision_epochs,
        per_device_train_batch_size=8,
        learning_rate=6e-3,
        weight_decay=0.01,
        warmup_steps=80,
        lr_scheduler_type="cosine",
        dataloader_drop_last=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        seed=0,
    )
    samples = [{"pixel_values": study.pixel_values.float(), "labels": study.labels} for study in studies]
    Trainer(model, arguments, train_dataset=samples).train()
    return model.eval()


def score_studies(model: CT3DVisionForImageClassification, studies: list[Study]) -> np.ndarray:
    """``(N, F)`` logits."""
    with torch.no_grad():
        logits = [model(study.pixel_values[None].float()).logits[0] for study in studies]
    return torch.stack(logits).numpy().astype(np.float64)


def find_peaks(
    model: CT3DVisionForImageClassification, studies: list[Study], stage: int
) -> dict[tuple[str, str], dict[int, np.ndarray]]:
    """Voxel of the maximum by (method, finding) and position of the study, if it has the finding."""
    grid, processor = feature_grid(model.vision_model, stage), image_processor()
    peaks: dict[tuple[str, str], dict[int, np.ndarray]] = {}
    for row, study in enumerate(studies):
        center = processor.center(study.volume)
        for name in study.lesions:
            evidence = trace_evidence(
                model.vision_model, study.pixel_values[None].float(), classifier_score(model, name), stage
            )
            for method, contributions in METHODS.items():
                mapped, seen = to_scan_grid(
                    contributions(evidence).numpy(), grid, processor, study.volume, center
                )
                peaks.setdefault((method, name), {})[row] = np.array(peak_voxel(mapped, seen))
    return peaks


def play(studies: list[Study], peaks: dict[int, np.ndarray], finding: str) -> np.ndarray:
    """``(N, 3)``: hit, chance inside the body, chance with other studies' maxima; NaN without the finding."""
    table = np.full((len(studies), 3), np.nan)
    offsets = {row: _to_center_mm(studies[row].volume, peak) for row, peak in peaks.items()}
    for row, peak in peaks.items():
        study = studies[row]
        others = [_from_center_mm(study.volume, mm) for other, mm in offsets.items() if other != row]
        own, *of_others = study.hits(finding, [peak, *others])
        table[row] = own, study.chance[finding], np.mean(of_others)
    return table


def summarize(tables: list[np.ndarray]) -> dict[str, object]:
    """Mean over findings of the share of hits, its chances and its leads over them: value, 95 % interval."""
    columns = np.stack(tables)  # (F, N, 3)
    columns = np.concatenate([columns, columns[..., :1] - columns[..., 1:]], axis=-1)
    has = ~np.isnan(columns[..., 0])
    rows = np.arange(columns.shape[1])

    def macro(counts: np.ndarray) -> np.ndarray:
        weights = counts[:, None] * has  # (R, F, N)
        sums = np.einsum("rfn,fnk->rfk", weights, np.where(has[..., None], columns, 0))
        with np.errstate(invalid="ignore"):
            return np.nanmean(sums / weights.sum(axis=-1)[..., None], axis=1)

    values = macro(np.ones((1, len(rows))))[0]
    resampled = count_bootstrap(macro, rows, NUM_RESAMPLES)
    names = ("hits", "chance_in_body", "chance_other_study", "above_body", "above_other_study")
    summary: dict[str, object] = {"num_pairs": int(has.sum())}
    for column, name in enumerate(names):
        interval = percentile_interval(resampled[:, column], rows)
        summary[name] = [round(float(v), 3) for v in (values[column], interval.low, interval.high)]
    return summary


def measure(
    model: CT3DVisionForImageClassification, studies: list[Study], stage: int, learned: set[str]
) -> dict[str, Any]:
    """Play with every method at one stage: all findings, those the model has learned, each."""
    peaks, results = find_peaks(model, studies, stage), {}
    for method in METHODS:
        tables = {name: play(studies, peaks[method, name], name) for name in PHANTOM_FINDINGS}
        results[method] = {
            "all": summarize(list(tables.values())),
            "learned": summarize([tables[name] for name in PHANTOM_FINDINGS if name in learned]),
            **{name: summarize([table]) for name, table in tables.items()},
        }
    return results


def measure_auroc(model: CT3DVisionForImageClassification, studies: list[Study]) -> dict[str, list[float]]:
    """AUROC and its interval by finding."""
    scores, labels = score_studies(model, studies), np.stack([study.labels for study in studies])
    values = auroc_per_finding(scores, labels)
    intervals, _ = bootstrap_auroc(scores, labels, np.arange(len(studies)), NUM_RESAMPLES)
    return {
        name: [round(float(number), 3) for number in (value, interval.low, interval.high)]
        for name, value, interval in zip(PHANTOM_FINDINGS, values, intervals, strict=True)
    }


def main() -> None:
    """Train a classifier per pooling, compare methods and stages on validation, report on test."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder for the classifiers")
    output = parser.parse_args().output
    studies = {split: make_split(split) for split in SPLITS}
    for pooling in ("max", "avg"):
        model = train_classifier(studies["train"], pooling, output / pooling)
        model.save_pretrained(output / pooling)
        image_processor().save_pretrained(output / pooling)
        report(model, pooling, studies)


def report(model: CT3DVisionForImageClassification, pooling: str, studies: dict[str, list[Study]]) -> None:
    """Print one line of JSON per split and stage."""
    for split, stages in (("test", [LAST_STAGE]), ("validation", [LAST_STAGE, LAST_STAGE - 1])):
        auroc = measure_auroc(model, studies[split])
        learned = {name for name, (_, low, _) in auroc.items() if low > 0.5}
        head = {"pooling": pooling, "split": split, "num_studies": len(studies[split])}
        print(json.dumps(head | {"auroc": auroc, "learned": sorted(learned)}), flush=True)
        for stage in stages:
            results = measure(model, studies[split], stage, learned)
            print(json.dumps(head | {"stage": stage, "results": results}), flush=True)


def _to_center_mm(volume: Volume, voxel: np.ndarray) -> np.ndarray:
    return (voxel - (np.array(volume.array_hu.shape) - 1) / 2) * volume.spacing_mm


def _from_center_mm(volume: Volume, offset_mm: np.ndarray) -> np.ndarray:
    center = (np.array(volume.array_hu.shape) - 1) / 2
    return np.rint(offset_mm / volume.spacing_mm + center).astype(int)


def _reach(volume: Volume) -> list[int]:
    return [round(mm / spacing) for mm, spacing in zip(TOLERANCE_MM, volume.spacing_mm, strict=True)]


def _body(volume_hu: np.ndarray) -> np.ndarray:
    """``(Z, Y, X)`` bool: the largest solid thing, its inside filled slice by slice."""
    # Opened: the table touches the back of some phantoms.
    labels, _ = ndimage.label(ndimage.binary_opening(volume_hu > -400, iterations=2))
    largest = labels == np.bincount(labels.ravel())[1:].argmax() + 1
    return np.stack([ndimage.binary_fill_holes(plane) for plane in largest])


if __name__ == "__main__":
    main()
