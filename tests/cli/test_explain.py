import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from radtower.cli import extras
from radtower.cli.explain import _print_summary
from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.evaluation.heat_maps import HeatMap, explain_scan, load_explainable
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, read_volume


@pytest.fixture
def classifier(tmp_path):
    """A saved classifier of a finding of CT-RATE and one of its own."""
    config = CT3DVisionConfig(
        hidden_sizes=[4, 8], layers=[1, 1], id2label={0: "pleural_effusion", 1: "my_finding"}
    )
    model = CT3DVisionForImageClassification(config)
    torch.nn.init.normal_(model.classifier.weight)
    model.save_pretrained(tmp_path / "classifier")
    CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8)).save_pretrained(tmp_path / "classifier")
    return tmp_path / "classifier"


@pytest.mark.parametrize("finding", ["Pleural effusion", "pleural_effusion", "fluid in the pleural space"])
def test_explain_writes_the_map_of_a_finding(radtower, classifier, scans, tmp_path, finding):
    done = radtower(
        "explain", classifier, scans[0], "--finding", finding, "-o", tmp_path / "map.nii.gz", "--json"
    )
    assert done.code == 0, done.err
    expected = explain_scan(*load_explainable(classifier), read_volume(scans[0]), "pleural_effusion")
    written = nibabel.load(tmp_path / "map.nii.gz")
    np.testing.assert_allclose(written.affine, nibabel.load(scans[0]).affine, atol=1e-5)
    np.testing.assert_allclose(written.get_fdata(), expected.array.transpose(2, 1, 0), atol=1e-6)
    content = json.loads(done.out)
    assert content["finding"] == "pleural_effusion"
    assert content["score"] == pytest.approx(expected.score)
    assert content["logit"] == pytest.approx(expected.logit)
    assert content["sum_of_contributions"] == pytest.approx(expected.total)
    assert content["peak"] == pytest.approx(float(expected.array.max()))
    assert content["peak_ras_mm"] == pytest.approx(list(expected.peak_mm))
    assert content["strongest_feature_voxel"] == pytest.approx(expected.strongest)
    assert content["feature_voxel_mm"] == [12.0, 12.0, 12.0]
    assert content["share_of_the_scan_seen"] == pytest.approx(expected.seen_share)
    assert content["note"] == "Research use only, not for diagnosis."


def test_explain_prints_what_the_map_says(radtower, classifier, scans, tmp_path):
    options = ("--finding", "my finding", "-o", tmp_path / "map.nrrd", "--png", tmp_path / "map.png")
    done = radtower("explain", classifier, scans[1], *options)
    assert done.code == 0, done.err
    expected = explain_scan(*load_explainable(classifier), read_volume(scans[1]), "my_finding")
    numbers = [f"{expected.score:.3f}", f"{expected.logit:+.3f}", f"{expected.total:+.3f}"]
    assert [line.split()[-2] for line in done.out.splitlines() if "\u2502" in line][:3] == numbers
    assert "my_finding" in done.out
    assert f"{expected.seen_share:.0%}" in done.out
    assert "Research use only, not for diagnosis." in done.out
    assert (tmp_path / "map.nrrd").exists()
    assert (tmp_path / "map.png").read_bytes()[:4] == b"\x89PNG"


@pytest.mark.parametrize(
    ("value", "strongest", "is_evidence", "is_outside"),
    [
        (2.0, 3.9, True, False),
        (2.0, 4.1, True, True),
        (-2.0, -1.5, False, False),  # negative numbers: less than half, and still in the scan
        (-2.0, 0.5, False, True),
        (0.0, 0.0, False, False),
    ],
)
def test_explain_says_where_the_evidence_is_or_that_there_is_none(
    capsys, value, strongest, is_evidence, is_outside
):
    volume = Volume(
        np.zeros((2, 2, 2), np.int16),
        (1.0, 1.0, 1.0),
        affine_from_spacing((1.0, 1.0, 1.0)),
        "LPS",
        VolumeSource("t", "n"),
    )
    array = np.zeros((2, 2, 2), np.float32)
    array[1:] = value  # the model saw the upper slice only
    seen = ((1, 2), (0, 2), (0, 2))
    _print_summary(HeatMap(array, volume, 1.0, 1.0, strongest, (8.0, 8.0, 8.0), seen), "t", Path("map.nii"))
    out = capsys.readouterr().out
    assert (f"voxel, {strongest:+.3f}, lies in the air around" in out) is is_outside
    row = next(line for line in out.splitlines() if f"{value:+.3f}" in line and "\u2502" in line)
    assert ("strongest evidence for it" if is_evidence else "least against it") in row
    sentence = "There is no evidence for the finding; the least against it lies at 0, 0, 1 mm."
    assert (sentence in out) is not is_evidence


def test_explain_looks_for_its_peak_where_the_model_looked(radtower, tmp_path, scans, classifier):
    model = CT3DVisionForImageClassification.from_pretrained(classifier)
    torch.nn.init.constant_(model.classifier.weight, -1.0)  # of a map that is never negative
    model.save_pretrained(classifier)
    CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(4, 4, 4)).save_pretrained(classifier)
    options = ("--finding", "my finding", "-o", tmp_path / "map.nii.gz", "--json")
    content = json.loads(radtower("explain", classifier, scans[0], *options).out)
    expected = explain_scan(*load_explainable(classifier), read_volume(scans[0]), "my_finding")
    assert expected.seen_share < 1
    assert content["peak"] == pytest.approx(expected.peak_value)
    assert content["peak"] < 0
    assert content["peak_ras_mm"] == pytest.approx(list(expected.peak_mm))


@pytest.mark.parametrize(
    ("output", "png", "message"),
    [
        ("no/map.nii.gz", "a.png", "output must be a file in a folder that exists, got"),
        ("map.nii.gz", "no/a.png", "png must be a file in a folder that exists, got"),
        ("map.nii.gz", "a.jpg", "png must end in .png, got"),
    ],
)
def test_explain_refuses_what_it_cannot_write_before_it_loads_anything(
    radtower, scans, tmp_path, output, png, message
):
    options = ("--finding", "my finding", "-o", tmp_path / output, "--png", tmp_path / png)
    done = radtower("explain", tmp_path / "no_model", scans[0], *options)
    assert done.code == 2
    assert message in done.err


def test_explain_asks_a_dual_tower_with_the_prompt_of_the_finding(radtower, dual_tower, scans, tmp_path):
    options = ("--finding", "Pleural effusion", "-o", tmp_path / "map.nii.gz", "--json")
    content = json.loads(radtower("explain", dual_tower, scans[0], *options).out)
    scores = json.loads(radtower("zero-shot", dual_tower, scans[0], "--json").out)["scores"]
    assert content["score"] == pytest.approx(scores["pleural_effusion"], abs=1e-6)
    assert content["finding"] == "pleural_effusion"


def test_explain_refuses_a_finding_the_model_does_not_have(radtower, classifier, scans, tmp_path):
    done = radtower(
        "explain", classifier, scans[0], "--finding", "Lung nodule", "-o", tmp_path / "map.nii.gz"
    )
    assert done.code == 2
    assert "one of pleural_effusion, my_finding, got 'Lung nodule', which is of 0" in done.err
    assert not (tmp_path / "map.nii.gz").exists()


def test_explain_never_overwrites_the_scan(radtower, classifier, scans):
    before = scans[0].read_bytes()
    done = radtower("explain", classifier, scans[0], "--finding", "my_finding", "-o", scans[0])
    assert done.code == 2
    assert "output must not be the scan itself, got" in done.err
    assert scans[0].read_bytes() == before


def test_a_picture_needs_the_plots_extra(radtower, classifier, scans, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "plots", ("a_module_that_is_not_there",))
    options = ("--finding", "my_finding", "-o", tmp_path / "map.nii.gz")
    done = radtower("explain", classifier, scans[0], *options, "--png", tmp_path / "map.png")
    assert done.code == 2
    assert "needs a_module_that_is_not_there from the extra 'plots'" in done.err
    assert radtower("explain", classifier, scans[0], *options).code == 0
