"""``radtower evaluate retrieval``: what is printed is what is written, and what is left out is named."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from transformers import ViTImageProcessor, ViTModel

from radtower.cli import extras
from radtower.data.volume_cache import build_volume_cache
from radtower.evaluation.reports.figures import read_pictures
from radtower.evaluation.results import read_results
from radtower.evaluation.rows import read_query_rows
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

REPORTS = ["no nodule", "small nodule", "There is effusion", "no effusion", "no nodule", "nodule present"]
SPACING_MM = (3.0, 2.0, 2.5)
QUICK = ("--k", 1, "--k", 2, "--resamples", 20)


def write_manifest(folder, images, reports=REPORTS, studies=None, **columns):
    number = range(len(images))
    frame = pd.DataFrame(
        {
            "volume_id": [f"v{n}" for n in number],
            "study_id": studies or [f"s{n}" for n in number],
            "patient_id": [f"p{(studies or list(number))[n]}" for n in number],
            "image_path": images,
            **({} if reports is None else {"report": reports}),
            "split": "test",
            **columns,
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
    other = results.get("recall_at_2", direction="report_to_image", protocol="same report")
    assert other.chance == pytest.approx((4 * 2 / 6 + 2 * (1 - 4 * 3 / 30)) / 6)
    shown = [f"{m.value:.2f} ({m.ci_low:.2f}-{m.ci_high:.2f})" for m in (item, other)]
    line = next(line for line in done.out.split("same report")[1].splitlines() if "recall@2" in line)
    # Of the five reports that differ, one stands for two scans: it is first or second two times out of five.
    assert item.chance == pytest.approx((2 * (2 / 5) + 4 * (1 / 5 + 3 / 20)) / 6)
    chances = [f"{m.chance:.2f}" for m in (item, other)]
    cells = [cell.strip() for cell in line.split("\u2502")[1:-1]]
    assert cells == ["recall@2", shown[0], chances[0], shown[1], chances[1]]
    assert "images_clip on manifest.csv, test split" in done.out
    assert "same report, 6 queries" in done.out
    rows = read_query_rows(results, output).frame
    found = rows[(rows["protocol"] == "same report") & (rows["direction"] == "image_to_report")]
    assert found["value"].tolist() == ranks.tolist()
    assert found["query_id"].tolist() == [f"v{n}" for n in range(6)]
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
    assert "2 of 6 volumes are left out" in done.err
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
    assert "1 of 6 volumes are left out." in done.err
    assert "not measured: recall@5: only 5 pairs" in done.err
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


def test_the_usual_ks_that_are_too_large_are_named(radtower, image_tower, images, tmp_path):
    manifest, output = write_manifest(tmp_path, images), tmp_path / "r.json"
    arguments = ("evaluate", "retrieval", image_tower, manifest, "-o", output, "--resamples", 20)
    done = radtower(*arguments, "--protocol", "exact-row")
    assert done.code == 0, done.err
    names = [item.metric for item in read_results(output).metrics]
    assert names[:4] == ["recall_at_1", "recall_at_5", "median_rank", "mrr"]
    assert "not measured: recall@10: only 6 pairs" in done.err
    assert read_results(output).not_measured == tuple(f"recall@{k}: only 6 pairs" for k in (10, 50, 100))


def test_an_image_tower_finds_images_by_their_findings(
    radtower, tiny_vision_config, volumes, tmp_path, write_labels
):
    tower, output = tmp_path / "tower", tmp_path / "r.json"
    CT3DVisionModel(tiny_vision_config).eval().save_pretrained(tower)
    CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8)).save_pretrained(tower)
    manifest = write_manifest(tmp_path, volumes, None, ["a", "a", "b", "c"])
    labels = write_labels({"v0": 1, "v1": 1, "v2": 0, "v3": 1})
    arguments = ("evaluate", "retrieval", tower, manifest, "-o", output, "--resamples", 20)
    done = radtower(*arguments, "--labels", labels, "--protocol", "study-excluded", "--k", 1, "--phantom")
    assert done.code == 0, done.err
    results = read_results(output)
    assert (results.model_id, results.phantom) == ("tower", True)
    assert {m.direction for m in results.metrics} == {"image_to_image"}
    assert {(m.class_set, m.label_source) for m in results.metrics} == {
        ("ct_rate_18, 1 findings", "labels.csv")
    }
    item = results.get("map_at_1", direction="image_to_image", protocol="study excluded; shares a finding")
    # v2 has no finding, and nothing is like it.
    assert item.n == 3
    assert "1 queries left out: the gallery has nothing right for them" in item.note
    assert item.chance == pytest.approx((1 / 2 + 1 / 2 + 2 / 3) / 3)
    assert "image to image, study excluded; shares a finding" in " ".join(done.out.split())
    assert "Research use only, not for diagnosis." in done.out
    assert "These are phantom results" in done.out
    frame = read_query_rows(results, output).frame
    assert set(frame["metric"]) == {"map_at_1", "precision_at_1", "ndcg_at_1", "mean_jaccard_at_1"}
    assert radtower(*arguments, "--task", "pairs").code == 2


@pytest.fixture
def write_labels(tmp_path):
    def write(of_volume, column="Lung nodule"):
        table = pd.DataFrame({"VolumeName": [f"{name}.nii.gz" for name in of_volume]})
        table[column] = list(of_volume.values())
        table.to_csv(tmp_path / "labels.csv", index=False)
        return tmp_path / "labels.csv"

    return write


def test_a_vision_transformer_finds_images_by_their_concepts(radtower, images, tiny_vit_config, tmp_path):
    ViTModel(tiny_vit_config).save_pretrained(tmp_path / "vit")
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(tmp_path / "vit")
    manifest = write_manifest(tmp_path, images, None, concepts=["C1", "C1;C2", "C2", "C3", "C3", "C1"])
    output = tmp_path / "r.json"
    command = ("evaluate", "retrieval", tmp_path / "vit", manifest, "-o", output, *QUICK)
    done = radtower(*command, "--relevance", "concepts", "--json")
    assert done.code == 0, done.err
    results = read_results(output)
    assert results.model_id == "vit"
    found = [item for item in results.metrics if item.metric == "map_at_2"]
    assert [(item.n, item.class_set) for item in found] == [(6, "3 concepts")] * len(found)
    assert {item.protocol for item in found} == {
        f"self excluded; shares {what}" for what in ("a concept", "half of the concepts")
    }


def test_both_tasks_and_the_script_of_ct_clip_in_one_run(radtower, image_tower, images, tmp_path):
    columns = {"lung_nodule": [1, 1, 0, 0, 1, 1], "pleural_effusion": [0, 0, 1, 0, 0, 1]}
    manifest = write_manifest(
        tmp_path, images, studies=list("aabcde"), reports=REPORTS[:1] * 2 + REPORTS[1:5], **columns
    )
    output = tmp_path / "r.json"
    tasks = ("--task", "pairs", "--task", "images", "--k", 1, "--k", 2, "--resamples", 20)
    protocols = ("--protocol", "legacy-ct-clip", "--protocol", "self-excluded", "--protocol", "study-level")
    done = radtower("evaluate", "retrieval", image_tower, manifest, "-o", output, *tasks, *protocols)
    assert done.code == 0, done.err
    results = read_results(output)
    assert {m.protocol for m in results.metrics if m.direction != "image_to_image"} == {"study level"}
    legacy = results.get("legacy_ct_clip_map_at_1", direction="image_to_image")
    assert (legacy.value, legacy.chance, legacy.n) == (pytest.approx(5 / 6), pytest.approx(5 / 6), 6)
    oracle = results.get(
        "mean_jaccard_at_1_oracle_baseline",
        direction="image_to_image",
        protocol="CT-CLIP script, list emptied, self excluded",
    )
    # Of the five with findings four have a like one, among others or in their study; one shares half.
    assert oracle.value == pytest.approx((1 + 1 + 0.5 + 0 + 1 + 0.5) / 6)
    table = done.out.split("MAP@k of CT-CLIP's script in %")[1]
    model, best = (
        next(x for x in table.splitlines() if f"@1 {n}" in x) for n in ("this model", "label oracle")
    )
    cells = [cell.strip().split(" ")[0] for cell in model.split("\u2502")[2:-1]]
    assert cells[:2] == ["83.3", "83.3"]
    assert f"{100 * oracle.value:.1f}" in best
    assert "as printed" in table
    assert "not measured: CT-CLIP's script at 5: too few labeled images" in done.err


@pytest.mark.slow
def test_figures_of_both_tasks_lie_beside_the_results(radtower, image_tower, images, tmp_path):
    columns = {"lung_nodule": [1, 1, 0, 0, 1, 1], "pleural_effusion": [0, 0, 1, 0, 0, 1]}
    manifest = write_manifest(tmp_path, images, **columns)
    tasks = ("--task", "pairs", "--task", "images", "--k", 1, "--resamples", 20, "--phantom")
    arguments = ("evaluate", "retrieval", image_tower, manifest, "-o", tmp_path / "r.json", *tasks)
    done = radtower(*arguments, "--figures", "--label-source", "a table")
    assert done.code == 0, done.err
    pictures = read_pictures(read_results(tmp_path / "r.json"), tmp_path / "r.json")
    assert [picture.caption.file for picture in pictures] == [
        "gallery-report-to-scan.png",
        "map-of-scans-and-reports.png",
        "gallery-scan-to-scan.png",
        "map-of-scans.png",
    ]
    assert all("a table" in picture.caption.caption for picture in pictures)
    assert f"Pictures: {tmp_path / 'r.figures'}" in done.err
    done = radtower("report", tmp_path / "r.json", "-o", tmp_path / "report", "--resamples", 5)
    assert done.code == 0, done.err
    assert (tmp_path / "report" / "report.html").read_text().count("data:image/png;base64,") == 4


def test_figures_of_volumes_come_from_the_cache_and_name_no_finding_where_none_is_known(
    radtower, dual_tower, volumes, tmp_path
):
    manifest = write_manifest(tmp_path, volumes, REPORTS[:4])
    scans = {f"v{n}": tmp_path / name for n, name in enumerate(volumes)}
    processor = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8))
    build_volume_cache(scans, processor, tmp_path / "cache")
    for name in volumes:
        (tmp_path / name).unlink()
    flags = ("--cache", tmp_path / "cache", "--figures", *QUICK)
    done = radtower("evaluate", "retrieval", dual_tower, manifest, "-o", tmp_path / "r.json", *flags)
    assert done.code == 0, done.err
    pictures = read_pictures(read_results(tmp_path / "r.json"), tmp_path / "r.json")
    assert len(pictures) == 2
    assert not any("Findings:" in picture.caption.caption for picture in pictures)


def test_figures_need_their_extra_before_the_work(radtower, dual_tower, volumes, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "plots", ("no_such_module",))
    manifest = write_manifest(tmp_path, volumes, REPORTS[:4])
    done = radtower("evaluate", "retrieval", dual_tower, manifest, "-o", tmp_path / "r.json", "--figures")
    assert (done.code, "extra 'plots'" in done.err) == (2, True)
    assert not (tmp_path / "r.json").exists()


def test_images_are_found_by_irma_codes_in_another_split(radtower, image_tower, images, tmp_path):
    codes = ["1121-127-700-500"] * 3 + ["1121-127-700-400"] * 3
    splits = ["test"] * 2 + ["train"] * 4
    manifest = write_manifest(tmp_path, images, split=splits, irma_code=codes)
    output = tmp_path / "r.json"
    options = ("--task", "images", "--relevance", "irma", "--gallery-split", "train", "--k", 4, "--json")
    done = radtower("evaluate", "retrieval", image_tower, manifest, "-o", output, *options, *QUICK[-2:])
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads(output.read_text())
    item = read_results(output).get("precision_at_4", direction="image_to_image")
    assert (item.n, item.value, item.class_set) == (2, pytest.approx(1 / 4), "2 IRMA codes")
    assert "gallery of 4 images" in item.note
    vote = read_results(output).get("irma_error_at_4", direction="image_to_image")
    assert 0 < vote.value <= 0.25


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
    assert "ks must be between 1 and 3, got [5]" in refusal(dual_tower, "--k", 5)
    assert "protocol must be one of exact-row, study, study-level, report, got 'case'" in refusal(
        dual_tower, *QUICK, "--protocol", "case"
    )
    assert "--dataset must name the data" in refusal(dual_tower, *QUICK, "--dataset", " ")
    images = ("--task", "images")
    assert "--label-source must name who gave the labels" in refusal(dual_tower, "--label-source", " ")
    assert "task must be one of pairs, images, got 'text'" in refusal(dual_tower, "--task", "text")
    assert "got none of medical_material" in refusal(dual_tower, *images)
    assert "relevance must be one of findings, concepts, irma, got 'x'" in refusal(
        dual_tower, *images, "--relevance", "x"
    )
    assert "must have a column irma_code for --relevance irma" in refusal(
        dual_tower, *images, "--relevance", "irma"
    )
    assert "--ignore-concept must come with --relevance concepts, got findings" in refusal(
        dual_tower, *images, "--ignore-concept", "C1"
    )
    assert "--labels and --label-id must come with --relevance findings, got irma" in refusal(
        dual_tower, *images, "--relevance", "irma", "--labels", "x.csv"
    )
    assert "must come with the task images, got test" in refusal(dual_tower, "--gallery-split", "test")
    other = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 2.0), size=(8, 8, 8))
    build_volume_cache({"v0": tmp_path / volumes[0]}, other, tmp_path / "other")
    assert "the cache must come from the settings of the processor" in refusal(
        dual_tower, *QUICK, "--cache", tmp_path / "other"
    )


def test_too_few_images_are_refused_before_any_is_read(radtower, image_tower, images, tmp_path):
    manifest = write_manifest(tmp_path, images)
    for name in images:
        (tmp_path / name).write_bytes(b"damaged")
    table = pd.read_csv(manifest)
    table["irma_code"] = ["1121-127-700-500"] * 5 + ["1121"]
    table.to_csv(manifest, index=False)
    arguments = (
        "evaluate",
        "retrieval",
        image_tower,
        manifest,
        "-o",
        tmp_path / "r.json",
        "--task",
        "images",
    )
    done = radtower(*arguments, "--relevance", "irma")
    assert done.code != 0
    assert "got '1121' of volume v5." in done.err
    table.assign(irma_code="1121-127-700-500", concepts="a").to_csv(manifest, index=False)
    done = radtower(*arguments, "--relevance", "concepts", "--k", 6)
    assert "ks must be at most 5, the images that every query can find, got [6]" in done.err
    assert not (tmp_path / "r.json").exists()
