import math

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import roc_auc_score

from radtower.data.finding_truth import FindingTruth
from radtower.data.manifest import Manifest
from radtower.evaluation.read_outs.labeled_vectors import LabeledVectors
from radtower.evaluation.read_outs.linear_probe import linear_probe
from radtower.evaluation.read_outs.neighbors import nearest_neighbors
from radtower.evaluation.zero_shot.labeled_volumes import (
    LabeledSplit,
    LabeledVolumes,
    embed_labeled,
    label_splits,
)
from radtower.evaluation.zero_shot.protocol import load_protocol
from radtower.evaluation.zero_shot.scan_read_outs import (
    check_fits,
    check_read_outs,
    further_read_outs,
    head_read_out,
    needed_splits,
    num_saturated,
    zero_shot_read_out,
    zero_shot_scores,
)
from radtower.evaluation.zero_shot.threshold_choice import ThresholdChoice

RAD = load_protocol("rad_chestct_16")
CT_RATE = load_protocol("ct_rate_18")
ALL_SPLITS = {"train", "validation", "test"}


def images(num=40, is_cosine=True):
    vectors = torch.randn(num, 12, generator=torch.Generator().manual_seed(2))
    return torch.nn.functional.normalize(vectors, dim=-1) if is_cosine else vectors


def slow_scores(model, vectors, phrases, pair, is_cosine=True):
    """One softmax at a time, in float64."""
    scale = math.exp(float(model.logit_scale.log_value.detach())) if is_cosine else 1.0
    columns = []
    for phrase in phrases:
        texts = [template.replace("{finding}", phrase) for template in pair]
        present, absent = model.encode_text(texts, normalize=is_cosine).double()
        columns.append(
            [1 / (1 + math.exp(-scale * float(v @ present - v @ absent))) for v in vectors.double()]
        )
    return np.array(columns).T


@pytest.mark.parametrize("similarity", ["cosine", "legacy_dot"])
def test_the_larger_of_two_calcifications_and_neither_mosaic_nor_coronary(tiny_medclip, similarity):
    tiny_medclip.config.similarity = similarity
    is_cosine = similarity == "cosine"
    vectors = images(is_cosine=is_cosine)
    scores = zero_shot_scores(tiny_medclip, vectors, RAD)
    names = [finding.name for finding in RAD.asked.findings]
    pair = ("{finding} is present.", "{finding} is not present.")
    slow = slow_scores(tiny_medclip, vectors, names, pair, is_cosine)
    kept = [i for i in range(18) if i not in (13, 4)]  # CT-CLIP, scripts/eval.py, evaluate_external
    expected = slow[:, kept]
    expected[:, 1] = np.maximum(slow[:, 1], slow[:, 4])
    assert not np.allclose(expected[:, 1], slow[:, 1], atol=1e-6)
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_ranks_are_those_of_an_independent_computation(tiny_medclip):
    vectors, labels = images(), np.random.default_rng(0).integers(0, 2, 40)
    scores = zero_shot_scores(tiny_medclip, vectors, CT_RATE)
    margins = zero_shot_scores(tiny_medclip, vectors, CT_RATE.overridden(score="margin"))
    slow = slow_scores(
        tiny_medclip, vectors, CT_RATE.labels.names, ("{finding} is present.", "{finding} is not present.")
    )
    for column in range(18):
        np.testing.assert_array_equal(np.argsort(scores[:, column]), np.argsort(slow[:, column]))
        np.testing.assert_array_equal(np.argsort(scores[:, column]), np.argsort(margins[:, column]))
        assert roc_auc_score(labels, scores[:, column]) == roc_auc_score(labels, margins[:, column])


def test_a_softmax_in_float64_ranks_what_float32_ties(tiny_medclip):
    with torch.no_grad():
        tiny_medclip.text_projection.weight *= 2000
    tiny_medclip.config.similarity = "legacy_dot"
    one = CT_RATE.overridden(prompts="not")
    scores = zero_shot_scores(tiny_medclip, images(is_cosine=False), one)
    coarse = scores.astype(np.float32)
    assert num_saturated(coarse) > num_saturated(scores)
    assert num_saturated(np.array([[0.0, 0.5], [1.0, 1e-30]])) == 2


def split_of(num=20, seed=0, keys=RAD.labels.keys):
    rng = np.random.default_rng(seed)
    vectors = torch.tensor(rng.normal(size=(num, 12)), dtype=torch.float32)
    labels = (vectors[:, :1].numpy() + rng.normal(size=(num, len(keys))) * 0.3 > 0).astype(np.float32)
    studies = pd.DataFrame(
        {"volume_id": [f"{seed}{n}" for n in range(num)], "patient_id": [f"{seed}{n}" for n in range(num)]}
    )
    compared = torch.nn.functional.normalize(vectors, dim=-1)
    return LabeledVolumes(vectors, compared, studies, labels, tuple(keys), {})


def test_prompts_score_the_findings_that_have_labels(tiny_medclip):
    keys = ("lung_nodule", "arterial_wall_calcification")
    test, validation = split_of(keys=keys), split_of(5, 1, keys)
    read = zero_shot_read_out(tiny_medclip, RAD, test, validation)
    columns = [RAD.labels.keys.index(key) for key in keys]
    np.testing.assert_array_equal(read.test, zero_shot_scores(tiny_medclip, test.compared, RAD)[:, columns])
    np.testing.assert_array_equal(
        read.validation, zero_shot_scores(tiny_medclip, validation.compared, RAD)[:, columns]
    )
    assert zero_shot_read_out(tiny_medclip, RAD, test).validation is None
    assert read.protocol == RAD.description


def test_the_head_is_joined_as_the_prompts_are(tiny_medclip):
    known = ["coronary_artery_wall_calcification", "lung_nodule", "arterial_wall_calcification"]
    tiny_medclip.config.findings = known
    tiny_medclip.finding_head = torch.nn.Linear(12, 3)
    test, validation = split_of(), split_of(6, 1)
    read = head_read_out(tiny_medclip, RAD, test, validation)
    with torch.no_grad():
        logits = tiny_medclip.finding_head(test.projected).sigmoid().numpy()
    arterial, nodule = (RAD.labels.keys.index(key) for key in ("arterial_wall_calcification", "lung_nodule"))
    np.testing.assert_allclose(read.test[:, arterial], np.maximum(logits[:, 0], logits[:, 2]), atol=1e-6)
    np.testing.assert_allclose(read.test[:, nodule], logits[:, 1], atol=1e-6)
    assert read.validation.shape == (6, 16)
    assert set(read.undefined) == set(RAD.labels.keys) - {"lung_nodule", "arterial_wall_calcification"}
    tiny_medclip.config.findings = ["coronary_artery_wall_calcification", "lung_nodule", "hernia"]
    read = head_read_out(tiny_medclip, RAD, test)
    assert "arterial_wall_calcification" in read.undefined  # the maximum of what is half known
    assert read.validation is None
    assert np.isnan(read.test[:, arterial]).all()


def test_a_head_of_other_findings_is_refused(tiny_medclip):
    tiny_medclip.config.findings = ["coronary_artery_wall_calcification", "hernia"]
    tiny_medclip.finding_head = torch.nn.Linear(12, 2)
    with pytest.raises(ValueError, match="one of the findings with labels, got coronary_artery_wall_calc"):
        head_read_out(tiny_medclip, RAD, split_of())


def test_fitted_read_outs_read_what_the_model_compares(tiny_medclip):
    protocol = RAD.overridden(split="test")
    splits = {"train": split_of(60, 1), "validation": split_of(40, 2), "test": split_of(40, 3)}
    vectors = {
        name: LabeledVectors(v.compared.numpy(), v.labels, list(v.studies["patient_id"]))
        for name, v in splits.items()
    }
    found = further_read_outs(["linear-probe", "knn"], tiny_medclip, protocol, splits)
    for read, fit in zip(found, (linear_probe, nearest_neighbors), strict=True):
        expected = fit(vectors["train"], vectors["validation"], vectors["test"], RAD.labels.keys)
        np.testing.assert_array_equal(read.test, expected.test)
        np.testing.assert_array_equal(read.validation, expected.validation)
        assert (read.protocol, read.note) == (expected.protocol, expected.note)
    tiny_medclip.config.findings = ["lung_nodule"]
    tiny_medclip.finding_head = torch.nn.Linear(12, 1)
    (read,) = further_read_outs(["finding-head"], tiny_medclip, protocol, {"test": splits["test"]})
    assert "finding head" in read.protocol


def labeled(**positive):
    """Splits of two volumes; a finding is present in the first, or as told in both."""
    truth = np.array([[1.0, -100.0], [0.0, -100.0]], dtype=np.float32)
    one_class = np.where(truth == 0, 1, truth)
    keys = ("lung_nodule", "cardiomegaly")
    return {
        name: LabeledSplit(None, FindingTruth(keys, one_class if name in positive else truth, {}, {}, "s"))
        for name in ("train", "validation", "test")
    }


def test_what_cannot_be_fitted_is_refused_before_the_work():
    both = ("lung_nodule", "cardiomegaly")
    check_fits(["knn", "linear-probe"], labeled(), both)
    check_fits(["finding-head"], labeled(train=1), both)
    check_fits([], {}, both)
    for split in ("train", "validation"):
        message = f"knn must have a finding with both classes in {split}, got none of 2 findings in 2 volumes"
        with pytest.raises(ValueError, match=message):
            check_fits(["finding-head", "knn"], labeled(**{split: 1}), both)
    with pytest.raises(ValueError, match="got none of 1 findings"):
        check_fits(["knn"], labeled(), ("cardiomegaly",))


def test_splits_that_are_needed():
    validation = ThresholdChoice("validation", "youden")
    assert needed_splits(CT_RATE, (), ()) == ["test"]
    assert needed_splits(CT_RATE, [validation], ["finding-head"]) == ["test", "validation"]
    assert needed_splits(CT_RATE, (), ["knn"]) == ["test", "train", "validation"]


@pytest.mark.parametrize(
    ("names", "split", "splits", "message"),
    [
        (["svm"], "test", ALL_SPLITS, "of linear-probe, knn, finding-head, each once, got svm"),
        (["knn", "knn"], "test", ALL_SPLITS, "each once, got knn, knn"),
        (["knn"], "test", {"test", "train"}, "knn must have a train .* got no validation"),
        (
            ["knn", "linear-probe"],
            "all",
            ALL_SPLITS,
            "knn, linear-probe must .* got train, validation under test",
        ),
        (["linear-probe"], "train", ALL_SPLITS, "got train under test"),
    ],
)
def test_read_outs_that_cannot_be_made_are_refused(names, split, splits, message):
    check_read_outs(["finding-head"], split, splits)
    check_read_outs(["knn", "linear-probe"], "test", ALL_SPLITS)
    with pytest.raises(ValueError, match=message):
        check_read_outs(names, split, splits)


def study_manifest(**columns):
    frame = pd.DataFrame(
        {
            "volume_id": list("abcd"),
            "study_id": ["s", "s", "t", "u"],
            "patient_id": ["p", "p", "q", "r"],
            "report": "",
            "split": ["test"] * 3 + ["validation"],
            "lung_nodule": [1, 1, 0, 1],
            **columns,
        }
    )
    return Manifest(frame)


def test_volumes_without_labels_or_a_scan_are_named(tiny_medclip, tmp_path):
    table = tmp_path / "t.csv"
    pd.DataFrame({"volume_id": ["c", "a", "d"], "lung_nodule": [0, 1, 1]}).to_csv(table, index=False)
    splits = label_splits(study_manifest(), ["test", "validation"], CT_RATE, table)
    assert {name: len(split) for name, split in splits.items()} == {"test": 3, "validation": 1}
    scans = {name: torch.randn(1, 8, 8, 8) for name in "abd"}

    def load(volume_id):
        return scans[volume_id]

    keys = splits["test"].truth.labeled_keys
    assert keys == ("lung_nodule",)
    volumes = embed_labeled(tiny_medclip, splits["test"], keys, load)
    assert list(volumes.studies["volume_id"]) == ["a"]
    assert volumes.labels.tolist() == [[1.0]]
    assert volumes.failures == {"b": "it is not in t.csv", "c": "KeyError: 'c'"}
    torch.testing.assert_close(
        volumes.projected, tiny_medclip.encode_image(scans["a"][None], normalize=False)
    )
    torch.testing.assert_close(volumes.compared, tiny_medclip.encode_image(scans["a"][None]))
    assert (volumes.compared - volumes.projected).abs().max() > 0.01
    tiny_medclip.config.similarity = "legacy_dot"
    volumes = embed_labeled(tiny_medclip, splits["test"], keys, load)
    torch.testing.assert_close(volumes.compared, volumes.projected)


def test_all_volumes_and_studies_whose_labels_differ(tmp_path):
    assert len(label_splits(study_manifest(), ["all"], CT_RATE)["all"]) == 4
    per_study = CT_RATE.overridden(unit="study")
    assert len(label_splits(study_manifest(), ["test"], per_study)["test"]) == 3
    differing = study_manifest(lung_nodule=[1, 0, 0, 1])
    assert len(label_splits(differing, ["test"], CT_RATE)["test"]) == 3
    with pytest.raises(ValueError, match=r"agree within a study .* got 1 of 2 studies"):
        label_splits(differing, ["test"], per_study)
    table = tmp_path / "t.csv"  # a volume without labels does not differ
    pd.DataFrame({"volume_id": ["a", "c"], "lung_nodule": [1, 0]}).to_csv(table, index=False)
    assert len(label_splits(differing, ["test"], per_study, table)["test"]) == 3
    with pytest.raises(
        ValueError, match="split must be one of test, validation in this manifest, got 'train'"
    ):
        label_splits(study_manifest(), ["train"], CT_RATE)
