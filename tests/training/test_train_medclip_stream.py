"""A dual tower from a streamed data set, to a folder that loads."""

import json
from dataclasses import replace

import datasets
import pytest
import torch
from datasets import Nifti
from safetensors.torch import load_file
from transformers import AutoModel, AutoProcessor

from parquet_sets import nifti, noisy_png, write_set
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.training.clip.clip_run import ClipRun
from radtower.training.train_medclip import train_medclip

FRESH_VIT = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 8,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
WORDS = ["no nodule", "small nodule", "There is effusion", "no effusion", "nodule present"]


@pytest.fixture(autouse=True)
def _no_wait_between_passes(monkeypatch):
    """At the end of a pass, datasets waits five seconds for threads that read."""
    monkeypatch.setattr(datasets.config, "SLEEP_TIME_ON_THREADS_SHUTDOWN", 0.05)


@pytest.fixture
def image_set(tmp_path):
    """Twelve images with five reports, one damaged, one without a report."""
    images = [noisy_png(number) for number in range(12)]
    images[3] = b"damaged"
    reports = [WORDS[number % 5] for number in range(12)]
    reports[7] = ""
    return write_set(tmp_path / "set", images, reports, [f"s{n}" for n in range(12)], num_files=2)


@pytest.fixture
def run(image_set, text_folder):
    return ClipRun(
        dataset=str(image_set),
        image_column="image",
        report_column="report",
        study_column="study_id",
        shuffle_buffer=4,
        vision=FRESH_VIT,
        text=str(text_folder),
        vision_pooling="mean",
        projection_dim=12,
        max_length=40,
    )


@pytest.fixture
def volume_run(run, tmp_path, vision_folder, study_folder):
    """The run on six scans, with the reports and labels of the studies."""
    reports = [
        "There is a small nodule.",
        "Effusion is present.",
        "small effusion, no nodule",
        "never labeled",
    ]
    folder = write_set(
        tmp_path / "volumes", [nifti(n) for n in range(4)], reports, feature=Nifti(decode=False)
    )
    CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8)).save_pretrained(tmp_path / "processor")
    return replace(
        run,
        dataset=str(folder),
        study_column=None,
        vision=str(vision_folder),
        vision_pooling="pooler",
        processor=str(tmp_path / "processor"),
        labels=str(study_folder / "labels.parquet"),
    )


def _differing(left, right):
    left, right = (load_file(folder / "model.safetensors") for folder in (left, right))
    assert left.keys() == right.keys()
    return {name for name in left if not torch.equal(left[name], right[name])}


def test_images_are_learned_from_and_what_is_left_out_is_named(run, make_arguments):
    notes = []
    arguments = make_arguments(max_steps=6)
    folder = train_medclip(run, arguments, on_note=notes.append)
    named = [note for note in notes if note.startswith("left out: study ")]
    assert len(named) == 2  # in three passes
    assert any("the report is empty" in note for note in named)
    assert any("ValueError: an image must be one of PNG" in note for note in named)
    assert " rows read were left out, among them: study " in notes[-1]
    log = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4, 5, 6]
    assert AutoProcessor.from_pretrained(folder).max_length == 40
    assert AutoModel.from_pretrained(folder).config.projection_dim == 12


def test_volumes_are_read_with_the_processor_and_unlabeled_reports_are_masked(volume_run, make_arguments):
    notes = []
    folder = train_medclip(volume_run, make_arguments(), on_note=notes.append)
    assert sum("its report is not in the label table" in note for note in notes) == 1
    assert " rows read have no labels, among them: report " in notes[-1]
    model, processor = AutoModel.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    assert list(model.config.findings) == ["nodule", "effusion"]
    assert tuple(processor.image_processor.size) == (8, 8, 8)


@pytest.mark.parametrize("text_mode", ["frozen", pytest.param("full", marks=pytest.mark.slow)])
def test_a_resumed_run_equals_the_uninterrupted_one(run, make_arguments, text_mode):
    run = replace(run, text_mode=text_mode)
    settings = {"max_steps": 6, "save_strategy": "steps", "save_steps": 4, "lr_scheduler_type": "constant"}
    notes: list[str] = []
    whole = train_medclip(run, make_arguments("whole", **settings), on_note=notes.append)
    train_medclip(run, make_arguments("half", **settings | {"max_steps": 4}), on_note=notes.append)
    resumed = train_medclip(
        run, make_arguments("half", **settings, resume_from_checkpoint=True), on_note=notes.append
    )
    assert _differing(whole, resumed) == set()


def test_refuses_a_stream_without_an_end_and_loaders_that_are_kept(run, make_arguments):
    with pytest.raises(ValueError, match=r"max_steps must be set .* got -1: its length is not known"):
        train_medclip(run, make_arguments(max_steps=-1))
    with pytest.raises(ValueError, match=r"dataloader_persistent_workers must be false .* got True"):
        train_medclip(run, make_arguments(dataloader_num_workers=1, dataloader_persistent_workers=True))


def test_refuses_towers_of_other_dimensions(volume_run, run, make_arguments, tmp_path):
    with pytest.raises(
        TypeError, match=r"vision must be the folder of a 3D tower .* configuration of a 2D one"
    ):
        train_medclip(replace(volume_run, vision=FRESH_VIT), make_arguments())
    CT3DImageProcessor(size=(8, 8, 8), windows_hu=((-1000, 200), (-100, 300))).save_pretrained(
        tmp_path / "two"
    )
    with pytest.raises(ValueError, match="a window for each of the 1 channels of the tower, got 2"):
        train_medclip(replace(volume_run, processor=str(tmp_path / "two")), make_arguments())
    with pytest.raises(ValueError, match="processor must be left out for 2D images"):
        train_medclip(replace(run, processor="elsewhere"), make_arguments())


def test_refuses_to_train_without_a_row_that_can_be_read(run, make_arguments, tmp_path):
    bad = write_set(tmp_path / "bad", [b"damaged"] * 4, WORDS[:4], ["a", "b", "c", "d"])
    with pytest.raises(
        ValueError, match=r"at least one row must be readable, got 4 that are not\. The first"
    ):
        train_medclip(replace(run, dataset=str(bad)), make_arguments(), on_note=lambda _note: None)
