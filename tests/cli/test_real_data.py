"""The commands on real scans and reports, where RADTOWER_REAL_DATA names a folder with them."""

import json
import os
from pathlib import Path

import nibabel
import numpy as np
import pytest
from typer.testing import CliRunner

from radtower.cli.main import app
from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.evaluation.features import read_features
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.processing.image_processing_ct3d import CT3DImageProcessor

if "RADTOWER_REAL_DATA" not in os.environ:
    pytest.skip("set RADTOWER_REAL_DATA to a folder with real scans and reports", allow_module_level=True)

DATA = Path(os.environ["RADTOWER_REAL_DATA"])
DICOM = DATA / "ct_dicom" / "acil_ct64" / "dicom"
NIFTI = DATA / "ct_nifti" / "totalseg_example_ct.nii.gz"
REPORTS = DATA / "ctrate_reports" / "train.csv"


@pytest.fixture
def model_folder(tiny_medclip, tmp_path) -> Path:
    tiny_medclip.save_pretrained(tmp_path / "model")
    tiny_medclip.processor.save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def run(*arguments: object) -> str:
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exit_code == 0, done.output
    return done.stdout


@pytest.mark.parametrize(
    ("scan", "shape", "spacing_mm"),
    [(DICOM, [79, 64, 64], [3.99, 4.17, 4.17]), (NIFTI, [112, 101, 122], [3.0, 3.0, 3.0])],
)
def test_doctor_reads_real_scans(scan, shape, spacing_mm):
    report = json.loads(run("doctor", scan, "--json"))
    assert report["shape"] == shape
    assert report["spacing_mm"] == pytest.approx(spacing_mm, abs=0.01)
    assert report["orientation"] == "LPS"
    assert report["hu_min"] < -950
    assert report["hu_max"] > 1000
    assert report["verdict"] == "usable with warnings"


def test_zero_shot_and_embed_run_on_real_scans(model_folder, tmp_path):
    for scan in (DICOM, NIFTI):
        scores = json.loads(run("zero-shot", model_folder, scan, "--json"))["scores"]
        assert len(scores) == 18
        assert all(0 < score < 1 for score in scores.values())
    run("embed", "images", model_folder, DICOM, NIFTI, "-o", tmp_path / "images")
    images = read_features(tmp_path / "images")
    assert images.ids == [str(DICOM), str(NIFTI)]
    assert images.vectors.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    assert (images.vectors[0] - images.vectors[1]).abs().max() > 1e-4


def test_embeds_fifty_real_reports(model_folder, tmp_path):
    columns = ("--id-column", "AccessionNo", "--text-column", "report_text")
    run("embed", "texts", model_folder, REPORTS, "-o", tmp_path / "texts", *columns, "--limit", 50)
    texts = read_features(tmp_path / "texts")
    assert texts.vectors.shape == (50, 12)
    assert len(set(texts.ids)) == 50


def test_explain_maps_real_scans_in_their_own_grid(tmp_path):
    config = CT3DVisionConfig(
        hidden_sizes=[4, 8], layers=[1, 1], id2label={0: "pleural_effusion", 1: "hernia"}
    )
    CT3DVisionForImageClassification(config).save_pretrained(tmp_path / "classifier")
    CT3DImageProcessor(spacing_mm=(6.0, 6.0, 6.0), size=(32, 40, 40)).save_pretrained(tmp_path / "classifier")
    scans = [*sorted((DATA / "ct_nifti").glob("*ct*.nii.gz")), DICOM]
    assert len(scans) > 3
    for number, scan in enumerate(scans):
        path = tmp_path / f"{number}.nii.gz"
        options = ("--finding", "Pleural effusion", "-o", path, "--png", tmp_path / f"{number}.png", "--json")
        content = json.loads(run("explain", tmp_path / "classifier", scan, *options))
        written = nibabel.load(path)
        if scan != DICOM:
            source = nibabel.load(scan)
            assert written.shape == source.shape
            np.testing.assert_allclose(written.affine, source.affine, atol=1e-4)
        values = written.get_fdata()
        at = np.rint(np.linalg.inv(written.affine) @ [*content["peak_ras_mm"], 1.0])[:3].astype(int)
        assert values[tuple(at)] == pytest.approx(content["peak"], abs=1e-5)
        assert values.max() == pytest.approx(content["peak"], abs=1e-5)
        assert (tmp_path / f"{number}.png").stat().st_size > 20_000
