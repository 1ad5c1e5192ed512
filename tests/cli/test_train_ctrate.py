"""CT-RATE from the download to a trained tower, by the commands of its recipe, on a generated tree."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoImageProcessor, AutoModelForImageClassification

from radtower.data.manifest import read_manifest
from radtower.data.volume_cache import open_volume_cache
from radtower.labeling.findings import load_findings
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

RECIPE = Path(__file__).parents[2] / "recipes" / "vision_ctrate.yaml"
VOLUMES = {
    "train": ["train_1_a_1", "train_1_a_2", "train_2_a_1", "train_3_a_1", "train_4_a_1", "train_10_a_1"],
    "valid": ["valid_1_a_1"],
}
POSITION = {volume: row for volumes in VOLUMES.values() for row, volume in enumerate(volumes)}
SLOPE, INTERCEPT = 1.5, -8192  # what the metadata of the generated tree says


def _spacing(path):
    row = POSITION[path.name.removesuffix(".nii.gz")]
    return (row + 1.5, float(f"0.{row + 5}"), 0.75)  # as the metadata


def _raw(path):
    """Stored values of a body with two lungs in air: ``raw * SLOPE + INTERCEPT`` is HU."""
    z, y, x = np.meshgrid(*(np.linspace(-1, 1, n) for n in (14, 40, 36)), indexing="ij")
    hu = np.where(y**2 + x**2 < 0.8, 40.0, -1000.0)
    for side in (-0.4, 0.4):
        hu[(z / 0.9) ** 2 + (y / 0.5) ** 2 + ((x - side) / 0.3) ** 2 < 1] = -850.0
    noise = np.random.default_rng(POSITION[path.name.removesuffix(".nii.gz")]).normal(0, 15, hu.shape)
    return np.round((hu + noise - INTERCEPT) / SLOPE)


def _write(array, spacing_mm, path):
    affine = affine_from_spacing(spacing_mm)
    write_volume(Volume(array, spacing_mm, affine, "LPS", VolumeSource("test", "none")), path)


def write_v1(path):
    _write(_raw(path).astype(np.int16), (1.0, 1.0, 1.0), path)


def write_v2(path):
    _write(np.round(_raw(path) * SLOPE + INTERCEPT).astype(np.int16), _spacing(path), path)


@pytest.fixture
def small_processor(tmp_path):
    folder = tmp_path / "small_processor"
    CT3DImageProcessor(spacing_mm=(3.0, 1.5, 1.5), size=(8, 16, 24)).save_pretrained(folder)
    return folder


@pytest.fixture
def prepare(radtower, write_ct_rate, small_processor, tmp_path):
    """Tree, manifest and cache; gives the folder they are in."""

    def run(name, suffix, write):
        root = write_ct_rate(tmp_path / name, suffix, write, VOLUMES)
        flags = ("--validation", 0.4, "--seed", 7)
        done = radtower("manifest", "ct-rate", root, "-o", root / "manifest.csv", *flags)
        assert done.code == 0, done.err
        options = ("--processor", small_processor, "--workers", 0)
        done = radtower("preprocess", root / "manifest.csv", "-o", root / "cache", *options)
        assert done.code == 0, done.err
        return root

    return run


def test_both_versions_of_the_volumes_give_the_same_scans(prepare):
    first, second = prepare("first", "", write_v1), prepare("second", "_fixed", write_v2)
    for volume in POSITION:
        left, right = (open_volume_cache(root / "cache")[volume] for root in (first, second))
        # One HU of rounding in a window of 1200.
        torch.testing.assert_close(left, right, atol=2.5 / 1200, rtol=0)
        assert left.std() > 0.1


def test_what_is_outside_of_the_scan_is_air(prepare):
    cache = open_volume_cache(prepare("second", "_fixed", write_v2) / "cache")
    # 36 voxels of 0.75 mm are 27 mm, of 36 mm in the crop; HU -400 would be 0.
    assert (cache["train_1_a_1"][..., :2] == -1).all()
    assert (cache["train_1_a_1"][..., -2:] == -1).all()


@pytest.fixture
def flags(tmp_path):
    settings = {
        "bf16": "false",
        "use_cpu": "true",
        "disable_tqdm": "true",
        "dataloader_num_workers": 0,
        "hidden_sizes": "[4, 8]",
        "layers": "[1, 1]",
        "per_device_train_batch_size": 2,
        "num_train_epochs": 2,
        "logging_steps": 1,
        "ema_decay": 0.9,
        "layer_lr_decay": 0.75,
    }
    return [str(part) for name, value in settings.items() for part in (f"--{name}", value)]


def _paths(root, output):
    return ("--manifest", root / "manifest.csv", "--cache", root / "cache", "--output_dir", output)


def test_the_recipe_trains_on_a_tree_laid_out_as_ct_rate(radtower, prepare, flags, tmp_path):
    root = prepare("second", "_fixed", write_v2)
    output = tmp_path / "model"
    done = radtower("train", "vision", RECIPE, *_paths(root, output), *flags)
    assert (done.code, f"Saved {output}" in done.out) == (0, True), done.err
    model = AutoModelForImageClassification.from_pretrained(output)
    assert tuple(model.config.id2label.values()) == load_findings("ct_rate_18").keys
    pixels = AutoImageProcessor.from_pretrained(output)(
        str(root / "dataset/valid_fixed/valid_1/valid_1_a/valid_1_a_1.nii.gz")
    )["pixel_values"]
    assert model(pixels).logits.shape == (1, 18)
    lines = [json.loads(line) for line in (output / "training_log.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "eval_macro_auroc" in line]
    assert [line["eval_num_findings"] for line in evaluations] == [1.0, 1.0]
    assert lines[0]["learning_rate"] == pytest.approx(1e-4 * 0.75**3)  # of the stem
    frame = read_manifest(root / "manifest.csv").frame
    num_steps = frame["split"].eq("train").sum() // 2 * 2
    assert evaluations[-1]["step"] == num_steps
    record = yaml.safe_load((output / "run.yaml").read_text())
    assert record["training"]["lr_scheduler_kwargs"] == {"min_lr": 1e-6}
    assert record["run"]["findings"] == "ct_rate_18"


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("emphysema", "-1", "-1 mixes uncertain with not mentioned"),
        ("patient_id", "valid_1", "a patient must be in one split"),
        ("split", "test", "a patient must be in one split"),
    ],
)
def test_the_defects_of_published_code_are_exit_code_2(
    radtower, prepare, flags, tmp_path, column, value, message
):
    root = prepare("second", "_fixed", write_v2)
    frame = read_manifest(root / "manifest.csv").frame.set_index("volume_id")
    # The first training volume; one of the patient with two, to be moved to another split.
    volume = "train_1_a_2" if column == "split" else frame.index[frame["split"] == "train"][0]
    frame.assign(**{column: frame[column].mask(frame.index == volume, value)}).to_csv(root / "manifest.csv")
    done = radtower("train", "vision", RECIPE, *_paths(root, tmp_path / "model"), *flags)
    assert (done.code, message in done.err) == (2, True), done.err
    assert not (tmp_path / "model").exists()


def test_a_diverged_run_is_exit_code_2_and_its_last_checkpoint_stays(radtower, prepare, flags, tmp_path):
    root = prepare("second", "_fixed", write_v2)
    output = tmp_path / "model"
    wild = ("--learning_rate", "1e18", "--eval_strategy", "no", "--load_best_model_at_end", "false")
    saving = (
        "--save_strategy",
        "steps",
        "--save_steps",
        1,
        "--save_total_limit",
        1,
    )
    longer = list(flags)
    longer[longer.index("--num_train_epochs") + 1] = 20
    done = radtower("train", "vision", RECIPE, *_paths(root, output), *longer, *wild, *saving)
    assert done.code == 2, done.err
    assert "must be finite, got" in done.err
    assert "Traceback" not in done.err
    (checkpoint,) = output.glob("checkpoint-*")
    weights = AutoModelForImageClassification.from_pretrained(checkpoint).state_dict()
    assert all(torch.isfinite(value).all() for value in weights.values())
    assert not (output / "model.safetensors").exists()
