"""``radtower evaluate retrieval``: what is printed is what is written, and what is left out is named."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from radtower.data.volume_cache import build_volume_cache
from radtower.evaluation.results import read_results
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

REPORTS = ["no nodule", "small nodule", "There is effusion", "no effusion", "no nodule", "nodule present"]
SPACING_MM = (3.0, 2.0, 2.5)
QUICK = ("--k", 1, "--k", 2, "--resamples", 20)


def write_manifest(folder, images, reports=REPORTS, studies=None):
    number = range(len(images))
    frame = pd.DataFrame(
        {
            "volume_id": [f"v{n}" for n in number],
            "study_id": studies or [f"s{n}" for n in number],
            "patient_id": [f"p{(studies or list(number))[n]}" for n in number],
            "image_path": images,
            "report": reports,
            "split": "test",
        }
    )
    frame.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


@pytest.fixture
def image_tower(tiny_image_clip, tmp_path):
    tiny_image_clip.save_pretrained(tmp_path / "images_clip")
    return tmp_path / "images_clip"


@pytest.fixture
def images(tmp_path):
    rng = np.random.default_rng(0)
    names = [f"i{n}.png" for n in range(len(REPORTS))]
    for name in names:
        Image.fromarray(rng.integers(0, 256, (18, 20), dtype=np.uint8)).save(tmp_path / name)
    return names


@pytest.fixture
def volumes(tmp_path):
    names = [f"c{n}.nii.gz" for n in range(4)]
    for seed, name in enumerate(names):
        array = np.random.default_rng(seed).integers(-1000, 600, (8, 12, 10)).astype(np.int16)
        volume = Volume(array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("t", "n"))
        write_volume(volume, tmp_path / name)
    return names


def test_a_2d_tower_is_measured_on_image_files(radtower, image_tower, images, tmp_path):
    output = tmp_path / "out" / "results.json"
    manifest = write_manifest(tmp_path, images)
    done = radtower("evaluate", "retrieval", image_tower, manifest, "-o", output, *QUICK)
    assert done.code == 0, done.err
    results = read_results(output)
    assert (results.model_id, results.phantom) == ("images_clip", False)
    assert {m.protocol for m in results.metrics} == {"exact row", "same report"}
    assert {m.dataset for m in results.metrics} == {"manifest.csv, test split"}
    assert [m.metric for m in results.metrics[:4]] == ["recall_at_1", "recall_at_2", "median_rank", "mrr"]
    item = results.get("recall_at_2", direction="image_to_report", protocol="same report")
    model = MedCLIPModel.from_pretrained(image_tower).eval()
    similarity = model.compute_similarities([tmp_path / name for name in images], REPORTS).numpy()
    twin = [4 if row == 0 else 0 if row == 4 else row for row in range(6)]
    best = np.maximum(similarity[np.arange(6), np.arange(6)], similarity[np.arange(6), twin])
    wrong = [np.delete(similarity[row], [row, twin[row]]) for row in range(6)]
    ranks = np.array([1 + (others >= best[row] - 1e-6).sum() for row, others in enumerate(wrong)])
    assert (item.n, item.value) == (6, pytest.approx((ranks <= 2).mean()))
    assert item.chance == pytest.approx((4 * 2 / 6 + 2 * (1 - 4 * 3 / 30)) / 6)
    other = results.get("recall_at_2", direction="report_to_image", protocol="same report")
    shown = [f"{m.value:.2f} ({m.ci_low:.2f}-{m.ci_high:.2f})" for m in (item, other)]
    line = next(line for line in done.out.split("same report")[1].splitlines() if "recall@2" in line)
    assert [cell.strip() for cell in line.split("\u2502")[1:-1]] == ["recall@2", *shown, f"{item.chance:.2f}"]
    assert "images_clip on manifest.csv, test split: 6 scans" in done.out
    assert "stands before it" in done.out


def test_what_cannot_be_read_is_named_and_the_rest_is_measured(radtower, image_tower, images, tmp_path):
    (tmp_path / images[1]).write_bytes(b"damaged")
    manifest = write_manifest(tmp_path, images, [*REPORTS[:3], " ", *REPORTS[4:]])
    output = tmp_path / "r.json"
    options = (*QUICK, "--protocol", "exact-row", "--json", "--phantom", "--dataset", "Six images")
    done = radtower("evaluate", "retrieval", image_tower, manifest, "-o", output, *options)
    assert done.code == 1
    assert "failed: v1: an image must be one of PNG" in done.err
    assert "failed: v3: the report is empty" in done.err
    assert "2 of 6 studies are left out" in done.err
    assert json.loads(done.out) == json.loads(output.read_text())
    results = read_results(output)
    assert {(m.n, m.protocol, m.dataset) for m in results.metrics} == {(4, "exact row", "Six images")}
    assert results.phantom
    assert "2 more pairs could not be read" in results.metrics[0].note


def test_a_k_that_failures_make_too_large_is_named_and_the_others_are_measured(
    radtower, image_tower, images, tmp_path
):
    (tmp_path / images[1]).write_bytes(b"damaged")
    manifest, output = write_manifest(tmp_path, images), tmp_path / "r.json"
    arguments = ("evaluate", "retrieval", image_tower, manifest, "-o", output, "--protocol", "exact-row")
    done = radtower(*arguments, *QUICK, "--k", 5)
    assert done.code == 1
    assert "1 of 6 studies are left out." in done.err
    assert "recall@5 is left out: 5 studies remain." in done.err
    names = [item.metric for item in read_results(output).metrics]
    assert names[:4] == ["recall_at_1", "recall_at_2", "median_rank", "mrr"]
    output.unlink()
    done = radtower(*arguments, "--k", 5)
    assert (done.code, output.exists()) == (2, False)
    assert "failed: v1: an image must be one of PNG" in done.err
    assert "ks must be between 1 and 4, got [5]" in " ".join(done.err.split())


def test_a_3d_tower_is_measured_on_files_and_on_a_cache(radtower, dual_tower, volumes, tmp_path):
    manifest = write_manifest(tmp_path, volumes, ["no nodule"] * 2 + REPORTS[1:3], ["a", "a", "b", "c"])
    scans = {f"v{n}": tmp_path / name for n, name in enumerate(volumes)}
    processor = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8))
    build_volume_cache(scans, processor, tmp_path / "cache")
    outputs = tmp_path / "files.json", tmp_path / "cached.json"
    arguments = ("evaluate", "retrieval", dual_tower, manifest, *QUICK)
    done = radtower(*arguments, "-o", outputs[0])
    assert done.code == 0, done.err
    assert "same study" in done.out
    assert "same report" not in done.out
    done = radtower(*arguments, "-o", outputs[1], "--cache", tmp_path / "cache", "--batch-size", 3)
    assert done.code == 0, done.err
    files, cached = (read_results(path).metrics for path in outputs)
    assert [m.value for m in files] == [m.value for m in cached]


def test_unusable_input_is_refused_before_the_work(radtower, dual_tower, labeler, volumes, tmp_path):
    manifest = write_manifest(tmp_path, volumes, REPORTS[:4])
    output = tmp_path / "r.json"

    def refusal(model, *options):
        done = radtower("evaluate", "retrieval", model, manifest, "-o", output, *options)
        assert (done.code, output.exists()) == (2, False)
        assert "Embedding" not in done.err
        return " ".join(done.err.split())

    assert "model must be a dual tower, got" in refusal(labeler, *QUICK)
    assert "split must be one of test in this manifest, got 'validation'" in refusal(
        dual_tower, *QUICK, "--split", "validation"
    )
    assert "ks must be between 1 and 3, got [5, 10]" in refusal(dual_tower)
    assert "protocol must be one of exact-row, study, report, got 'case'" in refusal(
        dual_tower, *QUICK, "--protocol", "case"
    )
    assert "--dataset must name the data" in refusal(dual_tower, *QUICK, "--dataset", " ")
    other = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 2.0), size=(8, 8, 8))
    build_volume_cache({"v0": tmp_path / volumes[0]}, other, tmp_path / "other")
    assert "the cache must come from the settings of the processor" in refusal(
        dual_tower, *QUICK, "--cache", tmp_path / "other"
    )
