"""The pipeline scores as the model does, on paths, and refuses what it cannot read."""

import numpy as np
import pytest
import torch
from transformers import pipeline

from radtower.modeling.pipelines.zero_shot_ct import TASK
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

FINDINGS = ["effusion", "nodule", "hernia"]


@pytest.fixture
def scans(tmp_path):
    paths = [tmp_path / f"{number}.nii.gz" for number in range(3)]
    for seed, path in enumerate(paths):
        array = np.random.default_rng(seed).integers(-1000, 600, (8, 12, 10)).astype(np.int16)
        spacing = (3.0, 2.0, 2.5)
        write_volume(
            Volume(array, spacing, affine_from_spacing(spacing), "LPS", VolumeSource("t", "n")), path
        )
    return [str(path) for path in paths]


@pytest.fixture
def folder(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path / "dual")
    return str(tmp_path / "dual")


@pytest.fixture
def classify(folder):
    return pipeline(TASK, model=folder, device="cpu")


def as_rows(found):
    return [[{one["label"]: one["score"] for one in scan}[name] for name in FINDINGS] for scan in found]


def test_scores_are_those_of_the_model(classify, tiny_medclip, scans):
    expected = tiny_medclip.zero_shot(scans, FINDINGS)
    found = classify(scans, candidate_labels=FINDINGS)
    torch.testing.assert_close(torch.tensor(as_rows(found)), expected, atol=1e-5, rtol=0)
    for scan in found:
        values = [one["score"] for one in scan]
        assert values == sorted(values, reverse=True)
    batched = classify(scans, candidate_labels=FINDINGS, batch_size=2)
    torch.testing.assert_close(torch.tensor(as_rows(batched)), expected, atol=1e-5, rtol=0)
    one = classify(scans[1], candidate_labels=FINDINGS)
    torch.testing.assert_close(torch.tensor(as_rows([one])), expected[1:2], atol=1e-5, rtol=0)
    (only,) = classify(scans[0], candidate_labels="nodule")
    assert only["score"] == pytest.approx(expected[0, 1].item(), abs=1e-5)


def test_another_question_on_the_same_pipeline_is_answered_anew(classify, tiny_medclip, scans):
    classify(scans[0], candidate_labels=FINDINGS)
    margin = tiny_medclip.zero_shot(scans[:1], FINDINGS[::-1], prompts="not", score="margin")
    found = classify(scans[0], candidate_labels=FINDINGS[::-1], prompts="not", score="margin")
    torch.testing.assert_close(torch.tensor(as_rows([found])), margin.flip(1), atol=1e-5, rtol=0)
    present = tiny_medclip.zero_shot(scans[:1], FINDINGS[::-1], prompts="is_present", score="margin")
    found = classify(scans[0], candidate_labels=FINDINGS[::-1], prompts="is_present", score="margin")
    torch.testing.assert_close(torch.tensor(as_rows([found])), present.flip(1), atol=1e-5, rtol=0)


def test_refuses_what_it_cannot_answer(classify, tiny_image_clip, scans, tmp_path):
    with pytest.raises(ValueError, match="must name at least one finding, got none"):
        classify(scans[0])
    with pytest.raises(ValueError, match="must name at least one finding, got none"):
        classify(scans[0], candidate_labels=[])
    with pytest.raises(ValueError, match="score must be one of"):
        classify(scans[0], candidate_labels=FINDINGS, score="max")
    with pytest.raises(
        TypeError, match=r"candidate_labels, prompts and score, got \['hypothesis_template'\]"
    ):
        classify(scans[0], candidate_labels=FINDINGS, hypothesis_template="{}")
    tiny_image_clip.save_pretrained(tmp_path / "images")
    with pytest.raises(TypeError, match="must be a dual tower of volumes, got MedCLIPModel"):
        pipeline(TASK, model=str(tmp_path / "images"))
