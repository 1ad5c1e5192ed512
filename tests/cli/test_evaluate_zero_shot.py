"""``radtower evaluate zero-shot``: what is printed is what is written, and what is left out is named."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score
from tokenizers import processors

from radtower.data.volume_cache import build_volume_cache
from radtower.evaluation.pairs.embedded_pairs import load_dual_tower
from radtower.evaluation.results import read_results
from radtower.evaluation.retrieval.precisions import average_precision_at_random
from radtower.evaluation.rows import read_score_rows
from radtower.labeling.findings import load_findings
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

FINDINGS = load_findings("ct_rate_18")
SPACING_MM = (3.0, 2.0, 2.5)
NUM_TEST, NUM_VALIDATION = 8, 4
QUICK = ("--resamples", 20)


def write_manifest(folder, images, seed=0, studies=None, **columns):
    """The last volumes are for validation; every finding has both classes in both splits."""
    num, rng = len(images), np.random.default_rng(seed)
    studies = studies or [f"s{n}" for n in range(num)]
    truth = rng.integers(0, 2, (num, 18))
    truth[[0, -1]], truth[[1, -2]] = 0, 1
    frame = pd.DataFrame(
        {
            "volume_id": [f"v{n}" for n in range(num)],
            "study_id": studies,
            "patient_id": [f"p{study}" for study in studies],
            "image_path": images,
            "split": ["test"] * NUM_TEST + ["validation"] * (num - NUM_TEST),
            **dict(zip(FINDINGS.keys, truth.T, strict=True)),
            **columns,
        }
    )
    frame.to_csv(folder / "manifest.csv", index=False)
    return folder / "manifest.csv"


def noisy(folder, num, suffix):
    names = [f"i{n}{suffix}" for n in range(num)]
    for seed, name in enumerate(names):
        rng = np.random.default_rng(seed)
        if suffix == ".png":
            Image.fromarray(rng.integers(0, 256, (18, 20), dtype=np.uint8)).save(folder / name)
        else:
            array = rng.integers(-1000, 600, (8, 12, 10)).astype(np.int16)
            source = VolumeSource("t", "n")
            write_volume(
                Volume(array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", source), folder / name
            )
    return names


@pytest.fixture
def images(tmp_path):
    return noisy(tmp_path, NUM_TEST + NUM_VALIDATION, ".png")


@pytest.fixture
def image_tower(tiny_image_clip, tmp_path):
    tiny_image_clip.save_pretrained(tmp_path / "images_clip")
    return tmp_path / "images_clip"


@pytest.fixture
def evaluate(radtower, tmp_path):
    def run(model, manifest, *options, protocol="ct_rate_18"):
        output = tmp_path / "r.json"
        done = radtower(
            "evaluate", "zero-shot", model, manifest, "-o", output, "--protocol", protocol, *QUICK, *options
        )
        return done, output

    return run


def scores_in(output):
    """Rows of the first class set."""
    frame = read_score_rows(read_results(output), output).frame
    return frame[frame["class_set"] == frame["class_set"][0]]


def labels_of(manifest, split="test"):
    frame = pd.read_csv(manifest)
    return frame[frame["split"] == split][list(FINDINGS.keys)].to_numpy()


def test_a_2d_tower_is_measured_as_its_zero_shot_scores_are(evaluate, image_tower, images, tmp_path):
    manifest = write_manifest(tmp_path, images)
    done, output = evaluate(image_tower, manifest)
    assert done.code == 0, done.err
    results = read_results(output)
    tower = load_dual_tower(image_tower)
    expected = tower.zero_shot([tmp_path / name for name in images], list(FINDINGS.names), "is_present")
    rows = read_score_rows(results, output).frame
    of_16 = rows[rows["class_set"] == "ct_rate_16"]
    assert set(of_16["finding"]) == set(load_findings("ct_rate_16").keys)
    rows = rows[rows["class_set"] == "ct_rate_18"]
    behind = rows[rows["finding"].isin(of_16["finding"])].drop(columns="class_set")
    assert behind.to_numpy().tolist() == of_16.drop(columns="class_set").to_numpy().tolist()
    assert list(rows["item_id"].unique()) == [f"v{n}" for n in range(NUM_TEST)]
    assert list(rows["finding"].unique()) == list(FINDINGS.keys)
    scores = rows["score"].to_numpy().reshape(NUM_TEST, 18)
    np.testing.assert_allclose(scores, expected[:NUM_TEST].numpy(), atol=1e-5)
    truth = labels_of(manifest)
    np.testing.assert_array_equal(rows["label"].to_numpy().reshape(NUM_TEST, 18), truth)
    areas = [roc_auc_score(truth[:, f], scores[:, f]) for f in range(18)]
    mean = results.get("macro_auroc", class_set="ct_rate_18", threshold_source=None)
    assert mean.value == pytest.approx(np.mean(areas))
    assert (mean.n, mean.dataset) == (NUM_TEST, "manifest.csv, test split")
    assert mean.protocol == "ct_rate_18: prompts is_present of finding names, softmax, per volume"
    assert mean.label_source == "label columns of manifest.csv"
    kept = [FINDINGS.keys.index(key) for key in load_findings("ct_rate_16").keys]
    mean16 = results.get("macro_auroc", class_set="ct_rate_16")
    assert mean16.value == pytest.approx(np.mean([areas[f] for f in kept]))
    nodule = FINDINGS.keys.index("lung_nodule")
    precision = results.get("average_precision", "lung_nodule")
    assert precision.value == pytest.approx(average_precision_score(truth[:, nodule], scores[:, nodule]))
    assert precision.chance == pytest.approx(
        average_precision_at_random(int(truth[:, nodule].sum()), NUM_TEST)
    )
    decided = results.get("macro_f1", class_set="ct_rate_16")
    assert decided.threshold_source == "validation split, nearest to the (0, 1) corner"
    assert results.get("macro_weighted_f1", class_set="ct_rate_18").value is not None
    shown = f"{mean.value:.2f} ({mean.ci_low:.2f}-{mean.ci_high:.2f})"
    assert shown in done.out.split("threshold: validation split")[0]
    assert "mean, ct_rate_18 (18 of 18)" in done.out
    assert "mean, ct_rate_16 (16 of 16)" in done.out
    assert "images_clip on manifest.csv, test split: 8 volumes" in done.out
    assert "not for diagnosis" in done.out


def test_one_scan_alone_scores_as_in_the_evaluation(radtower, evaluate, dual_tower, tmp_path):
    images = noisy(tmp_path, NUM_TEST, ".nii.gz")
    manifest = write_manifest(tmp_path, images)
    for protocol in ("ct_rate_18", "rad_chestct_16"):
        done, output = evaluate(dual_tower, manifest, protocol=protocol)
        assert done.code == 0, done.err
        rows = scores_in(output)
        alone = json.loads(
            radtower("zero-shot", dual_tower, tmp_path / images[3], "--protocol", protocol, "--json").out
        )
        of_scan = rows[rows["item_id"] == "v3"]
        assert list(of_scan["finding"]) == list(alone["scores"])
        assert list(of_scan["score"]) == pytest.approx(list(alone["scores"].values()), abs=1e-6)
    # The usual scores of one scan: an ensemble of the first prompts.
    options = ("--prompts", "ensemble", "--phrases", "prompt")
    done, output = evaluate(dual_tower, manifest, *options)
    rows = scores_in(output)
    alone = json.loads(radtower("zero-shot", dual_tower, tmp_path / images[3], "--json").out)["scores"]
    assert list(rows[rows["item_id"] == "v3"]["score"]) == pytest.approx(list(alone.values()), abs=1e-6)
    assert rows["protocol"][0] == "ct_rate_18: prompts ensemble of finding prompts, softmax, per volume"
    done = radtower("zero-shot", dual_tower, images[0], "--protocol", "ct_rate_18", "--findings", "x")
    assert done.code == 2
    assert "--findings must not come with --protocol" in done.err


def test_files_and_cache_agree_and_studies_are_averaged(evaluate, dual_tower, tmp_path):
    images = noisy(tmp_path, NUM_TEST, ".nii.gz")
    studies = ["s0", "s1", "s2", "s2", "s4", "s4", "s6", "s7"]
    truth = {key: [0, 1, 1, 1, 0, 0, 1, 0] for key in FINDINGS.keys}
    manifest = write_manifest(tmp_path, images, studies=studies, **truth)
    done, output = evaluate(dual_tower, manifest)
    assert done.code == 0, done.err
    assert "Decisions are not measured: the manifest has no validation split. Give --threshold." in done.err
    rows = scores_in(output).pivot(index="item_id", columns="finding", values="score")
    done, output = evaluate(
        dual_tower, manifest, "--unit", "study", "--threshold", "0.5", "--dataset", "Noise"
    )
    assert done.code == 0, done.err
    assert "Noise: 6 studies of 8 volumes" in done.out
    results = read_results(output)
    averaged = scores_in(output).pivot(index="item_id", columns="finding", values="score")
    expected = rows.groupby(studies).mean().loc[averaged.index]
    np.testing.assert_allclose(averaged, expected, atol=1e-7)
    processor = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8))
    scans = {f"v{n}": tmp_path / name for n, name in enumerate(images)}
    build_volume_cache(scans, processor, tmp_path / "cache")
    done, output = evaluate(dual_tower, manifest, "--cache", tmp_path / "cache", "--batch-size", 3)
    assert done.code == 0, done.err
    cached = scores_in(output)
    cached = cached.pivot(index="item_id", columns="finding", values="score")
    np.testing.assert_allclose(cached, rows, atol=5e-4)  # a cache is rounded to HU
    mean = results.get("macro_accuracy", class_set="ct_rate_18")
    assert (mean.n, mean.threshold_source) == (6, "fixed at 0.5")
    assert "6 studies of 8 volumes" in mean.note
    assert mean.protocol.endswith("softmax, per study")


def test_what_cannot_be_read_is_named_and_the_rest_is_measured(evaluate, image_tower, images, tmp_path):
    (tmp_path / images[1]).write_bytes(b"damaged")
    (tmp_path / images[-1]).write_bytes(b"damaged")
    table = tmp_path / "valid_predicted_labels.csv"
    manifest = write_manifest(tmp_path, images)
    frame = pd.read_csv(manifest)
    names = dict(zip(FINDINGS.keys, FINDINGS.names, strict=True))
    labels = frame.rename(columns={"volume_id": "VolumeName", **names})
    labels = labels[["VolumeName", *FINDINGS.names]].drop(index=2)
    labels.assign(VolumeName=labels["VolumeName"] + ".nii.gz").to_csv(table, index=False)
    frame.drop(columns=list(FINDINGS.keys)).to_csv(manifest, index=False)
    done, output = evaluate(image_tower, manifest, "--labels", table, "--json", "--phantom")
    assert done.code == 1
    assert "failed: v1: an image must be one of PNG" in done.err
    assert "failed: v2: it is not in valid_predicted_labels.csv" in done.err
    assert f"failed: v{len(images) - 1}: " in done.err
    assert "3 of 12 volumes are left out" in done.err
    assert json.loads(done.out) == json.loads(output.read_text())
    results = read_results(output)
    assert {item.n for item in results.metrics} == {6}
    assert results.phantom
    assert {item.label_source for item in results.metrics} == {
        "valid_predicted_labels.csv, output of a model, not gold"
    }
    done, output = evaluate(image_tower, manifest, "--labels", table, "--label-source", "RadBERT")
    assert read_results(output).metrics[0].label_source == "RadBERT"


def test_read_outs_stand_behind_the_prompts(evaluate, tiny_image_clip, images, tmp_path):
    tiny_image_clip.config.findings = ["cardiomegaly", "lung_nodule"]
    tiny_image_clip.finding_head = torch.nn.Linear(12, 2)
    tiny_image_clip.save_pretrained(tmp_path / "headed")
    more = noisy(tmp_path, NUM_TEST + NUM_VALIDATION + 8, ".png")
    split = ["test"] * NUM_TEST + ["validation"] * NUM_VALIDATION + ["train"] * 8
    manifest = write_manifest(tmp_path, more, split=split)
    frame = pd.read_csv(manifest)
    frame.loc[frame["split"] == "train", list(FINDINGS.keys)] = np.tile([[0], [1]], (4, 18))
    frame.to_csv(manifest, index=False)
    options = [word for name in ("knn", "linear-probe", "finding-head") for word in ("--read-out", name)]
    options += ["--threshold", "test_oracle", "--threshold", "validation"]
    done, output = evaluate(tmp_path / "headed", manifest, *options)
    assert done.code == 0, done.err
    results = read_results(output)
    rows = scores_in(output)
    protocols = list(rows["protocol"].unique())
    assert len(protocols) == 4
    assert all(protocol.endswith("per volume") for protocol in protocols)
    assert list(dict.fromkeys(item.protocol for item in results.metrics)) == protocols
    head = protocols[3]
    assert list(rows[rows["protocol"] == head]["finding"].unique()) == ["cardiomegaly", "lung_nodule"]
    tower = load_dual_tower(tmp_path / "headed")
    raw = tower.encode_image([tmp_path / name for name in more[:NUM_TEST]], normalize=False)
    with torch.no_grad():
        probabilities = tower.finding_head(raw).sigmoid().numpy().ravel()
    np.testing.assert_allclose(rows[rows["protocol"] == head]["score"], probabilities, atol=1e-5)
    oracle = {item.threshold_source for item in results.metrics if item.metric == "f1"}
    assert any(source.startswith("test_oracle: chosen on the very labels") for source in oracle)
    assert "validation split, nearest to the (0, 1) corner" in oracle
    unknown = results.get("auroc", "hiatal_hernia", protocol=head)
    assert unknown.value is None
    assert "the finding head does not know" in unknown.note
    assert "undefined: the finding head does not know all of it; 2 of 18 findings known" in done.out
    assert "mean, ct_rate_18 (2 of 18)" in done.out
    assert f"{head}; threshold: test_oracle" in " ".join(done.out.split())
    frame.loc[frame["split"] == "train", list(FINDINGS.keys)] = 0
    frame.to_csv(manifest, index=False)
    done, _ = evaluate(tmp_path / "headed", manifest, "--read-out", "knn")
    assert "both classes in train, got none of 18 findings in 8 volumes" in " ".join(done.err.split())
    assert "Embedding" not in done.err


def test_findings_without_labels_are_said(evaluate, image_tower, images, tmp_path):
    manifest = write_manifest(tmp_path, images)
    pd.read_csv(manifest).drop(columns=["medical_material", "mosaic_attenuation_pattern"]).to_csv(
        manifest, index=False
    )
    done, output = evaluate(image_tower, manifest, "--threshold", "none", protocol="rad_chestct_16")
    assert done.code == 0, done.err
    assert "Decisions are not measured" not in done.err
    results = read_results(output)
    assert results.metrics[0].class_set == "15 of 16 findings of rad_chestct_16"
    assert results.metrics[0].dataset == "manifest.csv, all splits"
    assert results.metrics[0].n == len(images)
    reason = "medical_material: there is no column of labels for medical_material"
    assert results.not_measured == (reason,)
    assert f"Not measured: {reason}." in done.out


def test_a_protocol_of_ones_own_and_scores_that_tie(evaluate, tiny_image_clip, images, tmp_path):
    tiny_image_clip.config.similarity = "legacy_dot"
    with torch.no_grad():
        tiny_image_clip.text_projection.weight *= 1e9
    tiny_image_clip.save_pretrained(tmp_path / "loud")
    own = tmp_path / "custom.yaml"
    own.write_text(
        'name: two\nsource: me\nasked: two_findings.yaml\nprompts: [["{finding}.", ""]]\nsplit: validation\n'
    )
    (tmp_path / "two_findings.yaml").write_text(
        "name: two\nbase: ct_rate_18\nkeys: [lung_nodule, cardiomegaly]\n"
    )
    manifest = write_manifest(tmp_path, images)
    done, output = evaluate(tmp_path / "loud", manifest, protocol=own)
    assert done.code == 0, done.err
    assert "the validation split is under test" in done.err
    results = read_results(output)
    assert (results.metrics[0].n, results.metrics[0].class_set) == (NUM_VALIDATION, "two")
    assert '"{finding}." / ""' in results.metrics[0].protocol
    num_tied = 2 * NUM_VALIDATION
    assert f"{num_tied} scores are rounded to exactly 0 or 1 and tie; --score margin ranks them." in done.out
    assert f"{num_tied} of {num_tied} scores are rounded to exactly 0 or 1 and tie" in results.metrics[0].note
    done, output = evaluate(tmp_path / "loud", manifest, "--score", "margin", protocol=own)
    assert "rounded" not in done.out
    assert scores_in(output)["score"].abs().max() > 1


def test_unusable_input_is_refused_before_the_work(
    radtower, evaluate, image_tower, tiny_image_clip, labeler, images, tmp_path
):
    manifest = write_manifest(tmp_path, images)

    def refusal(*options, model=image_tower, **protocol):
        done, output = evaluate(model, manifest, *options, **protocol)
        assert (done.code, output.exists()) == (2, False)
        assert "Embedding" not in done.err
        return " ".join(done.err.split())

    assert "model must be a dual tower, got" in refusal(model=labeler)
    assert "got 'ct_rate'. Shipped: ct_rate_16, ct_rate_18, rad_chestct_15" in refusal(protocol="ct_rate")
    assert "prompts must be 'ensemble' or one of" in refusal("--prompts", "has")
    assert "score must fit its field, got 'max'" in refusal("--score", "max")
    assert "unit must fit its field, got 'case'" in refusal("--unit", "case")
    assert "split must be one of test, validation in this manifest, got 'train'" in refusal(
        "--split", "train"
    )
    assert "--dataset must name the data, got an empty text" in refusal("--dataset", " ")
    assert "--label-source must name who gave the labels, got an empty text" in refusal("--label-source", "")
    assert "a threshold must be validation or test_oracle" in refusal("--threshold", "best")
    assert "the threshold rule must be one of max_f1" in refusal("--threshold-rule", "best")
    assert "softmax for the rule legacy_ct_clip" in refusal("--threshold", "test_oracle", "--score", "margin")
    assert "knn must have a train and a validation split" in refusal("--read-out", "knn")
    assert "model must have a finding head" in refusal("--read-out", "finding-head")
    assert "specificity must be between 0 and 1, got 1.0" in refusal("--specificity", "1")
    assert "cache must be left out for a tower of 2D images" in refusal("--cache", tmp_path)
    (tmp_path / "t.csv").write_text("volume_id\nv0\n")
    assert "a column of at least one finding" in refusal("--labels", tmp_path / "t.csv")
    assert "the column 'scan', got none" in refusal("--labels", tmp_path / "t.csv", "--label-id", "scan")
    bare = tiny_image_clip.processor.tokenizer.backend_tokenizer
    bare.post_processor = processors.ByteLevel()  # no special tokens
    tiny_image_clip.save_pretrained(tmp_path / "bare")
    assert "got none from" in refusal("--prompts", "seed", model=tmp_path / "bare")
    done = radtower("evaluate", "zero-shot", image_tower, manifest, "-o", "r.txt", "--protocol", "ct_rate_18")
    assert "-o must be a file that ends in .json" in done.err
