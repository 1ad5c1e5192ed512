"""Samples of rows: how scans and images are read, what is left out, and how rows are called."""

import pytest
import torch
from datasets import Nifti
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from parquet_sets import nifti, png, write_set
from radtower.data.manifest import identifier_hash
from radtower.data.pair_keys import keys_of_study
from radtower.data.streams.hub_rows import HubRows, HubSource
from radtower.data.streams.study_stream import StudyStream, name_of
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor


def _rows(folder, **settings):
    given = {"image_column": "image", "report_column": "report", "shuffle_buffer": 1}
    return HubRows(HubSource(dataset=str(folder), **given | settings))


def _length(report):
    return {"length": torch.tensor(len(report))}, "short" if len(report) < 5 else None


@pytest.fixture
def for_images(tiny_tokenizer):
    return MedCLIPProcessor(
        ViTImageProcessorPil(size={"height": 4, "width": 6}, do_normalize=False), tiny_tokenizer
    )


@pytest.fixture
def for_volumes(tiny_tokenizer):
    return MedCLIPProcessor(CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(6, 8, 8)), tiny_tokenizer)


def test_an_image_becomes_a_sample(tmp_path, for_images):
    write_set(tmp_path, [png(51)], ["No  nodule."], ["study 1"])
    (study,) = StudyStream(_rows(tmp_path, study_column="study_id"), for_images, _length)
    assert (study.name, study.named_by, study.reason) == (identifier_hash("study 1"), "study", None)
    assert study.sample.keys() == {"pixel_values", "pair_keys", "row", "length"}
    torch.testing.assert_close(study.sample["pixel_values"], torch.full((3, 4, 6), 0.2))
    assert tuple(study.sample["pair_keys"].tolist()) == keys_of_study("No nodule.", "study 1")
    assert name_of(int(study.sample["row"])) == study.name
    assert int(study.sample["length"]) == len("No nodule.")  # normalized


def test_a_scan_becomes_what_the_image_processor_makes_of_its_file(tmp_path, for_volumes):
    write_set(tmp_path / "set", [nifti(3)], ["Clear"], feature=Nifti(decode=False))
    (study,) = StudyStream(_rows(tmp_path / "set"), for_volumes, _length)
    (tmp_path / "scan.nii.gz").write_bytes(nifti(3))
    expected = for_volumes(images=str(tmp_path / "scan.nii.gz"))["pixel_values"][0]
    assert torch.equal(study.sample["pixel_values"], expected)
    assert study.sample["pair_keys"].tolist()[1] == 0
    assert (study.name, study.named_by) == (identifier_hash("Clear"), "report")


def test_what_cannot_be_read_is_said_and_left_out(tmp_path, for_images):
    images = [png(1), b"damaged", None, png(4), png(5)]
    write_set(tmp_path, images, ["", "report b", "report c", None, "dash"], ["a", "b", "c", None, "e"])
    studies = list(StudyStream(_rows(tmp_path, study_column="study_id"), for_images, _length))
    assert [study.sample is None for study in studies] == [True, True, True, True, False]
    assert [study.named_by for study in studies] == ["study", "study", "study", "image", "study"]
    reasons = [study.reason for study in studies]
    assert reasons[0] == reasons[3] == "the report is empty"
    assert reasons[1].startswith("ValueError: an image must be one of PNG, ")
    assert reasons[2].startswith("ValueError: an image must have bytes or a path, got neither")
    assert reasons[4] == "short"
    assert studies[3].name == studies[3].name.lower()
    assert len(studies[3].name) == 12


def test_an_image_that_is_not_there_is_left_out_and_a_network_that_is_down_ends_the_run(
    tmp_path, for_images, monkeypatch
):
    write_set(tmp_path, [png(1)], ["report"])
    rows = _rows(tmp_path)
    row = next(rows.read())
    missing = row._replace(image={"path": str(tmp_path / "gone.png"), "bytes": None})
    monkeypatch.setattr(rows, "read", lambda *_args: iter([missing]))
    (study,) = StudyStream(rows, for_images, _length)
    assert (study.sample, study.reason) == (None, "the image is not there")
    monkeypatch.setattr("datasets.config.STREAMING_OPEN_MAX_RETRIES", 1)
    monkeypatch.setattr("datasets.config.STREAMING_OPEN_RETRY_INTERVAL", 0.01)
    refused = row._replace(image={"path": "http://127.0.0.1:9/a.png", "bytes": None})
    monkeypatch.setattr(rows, "read", lambda *_args: iter([refused]))
    with pytest.raises(ConnectionError, match=r"no answer from 127\.0\.0\.1:9\. Resume"):
        list(StudyStream(rows, for_images, _length))


def test_refuses_an_image_processor_of_other_dimensions(tmp_path, for_images, for_volumes):
    write_set(tmp_path / "flat", [png(1)], ["a"])
    write_set(tmp_path / "deep", [nifti(1)], ["a"], feature=Nifti(decode=False))
    with pytest.raises(TypeError, match=r"must be one for images, got CT3DImageProcessor"):
        StudyStream(_rows(tmp_path / "flat"), for_volumes, _length)
    with pytest.raises(TypeError, match=r"must be one for volumes, got ViTImageProcessorPil"):
        StudyStream(_rows(tmp_path / "deep"), for_images, _length)
