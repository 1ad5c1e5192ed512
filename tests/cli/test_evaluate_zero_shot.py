"""``radtower evaluate zero-shot``: what is printed is what is written, and what is left out is named."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.metrics import average_precision_score, roc_auc_score

from radtower.evaluation.pairs.embedded_pairs import load_dual_tower
from radtower.evaluation.results import read_results
from radtower.evaluation.rows import read_score_rows
from radtower.labeling.findings import load_findings
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
            "report": "",
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
    assert precision.chance == pytest.approx(truth[:, nodule].mean())
    decided = results.get("macro_f1", class_set="ct_rate_16")
    assert decided.threshold_source == "validation split, nearest to the (0, 1) corner"
    assert results.get("macro_weighted_f1", class_set="ct_rate_18").value is not None
    shown = f"{mean.value:.2f} ({mean.ci_low:.2f}-{mean.ci_high:.2f})"
    assert shown in next(line for line in done.out.splitlines() if "mean, ct_rate_18" in line)
    assert "images_clip on manifest.csv, test split: 8 volumes" in done.out
    assert "not for diagnosis" in done.out
