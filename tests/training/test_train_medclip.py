import hashlib
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModel, AutoProcessor, TrainerCallback

from radtower.data.augmentation import VolumeAugmentation
from radtower.data.datasets import study_targets
from radtower.data.manifest import read_manifest
from radtower.data.pair_keys import pair_keys
from radtower.data.targets import TargetPolicy
from radtower.data.volume_cache import build_volume_cache, open_volume_cache
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.training.arguments import write_run_record
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.pair_batches import PairSampler
from radtower.training.clip.report_tokens import ReportPadding
from radtower.training.output_folder import require_same_run
from radtower.training.train_medclip import _sampler, train_medclip


@pytest.fixture
def run(study_folder, vision_folder, text_folder):
    return ClipRun(
        manifest=str(study_folder / "manifest.csv"),
        cache=str(study_folder / "cache"),
        vision=str(vision_folder),
        text=str(text_folder),
        labels=str(study_folder / "labels.parquet"),
        projection_dim=12,
        max_length=40,
    )


def _load(folder) -> MedCLIPModel:
    model, report = MedCLIPModel.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    return model.eval()


def _is_same(left, right):
    left, right = dict(left.named_parameters()), dict(right.named_parameters())
    assert left.keys() == right.keys()
    return {name for name in left if torch.equal(left[name], right[name])}


def test_saves_a_folder_that_the_auto_classes_load(run, make_arguments, study_folder):
    folder = train_medclip(run, make_arguments())
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    assert isinstance(model, MedCLIPModel)
    assert list(model.config.findings) == ["nodule", "effusion"]
    assert (model.config.projection_dim, processor.max_length) == (12, 40)
    assert tuple(processor.image_processor.size) == (8, 8, 8)
    inputs = processor(images=str(study_folder / "study-0.nii.gz"), text=["no nodule"])
    pixels = inputs["pixel_values"]
    cached = open_volume_cache(run.cache)["study-0"][None]
    torch.testing.assert_close(pixels, cached, atol=1e-3, rtol=0)
    with torch.no_grad():
        assert model(**inputs).finding_logits_image.shape == (1, 2)
    assert not [path for path in folder.rglob("*") if path.suffix in (".bin", ".pt", ".pth", ".pkl")]


def test_training_moves_everything_but_the_text_tower(run, make_arguments):
    model = _load(train_medclip(run, make_arguments()))
    text = LLMBiEncoder.from_pretrained(run.text)
    assert _is_same(model.text_model, text) == set(dict(text.named_parameters()))
    vision = CT3DVisionModel.from_pretrained(run.vision)
    assert not _is_same(model.vision_model, vision)
    still = _load(train_medclip(run, make_arguments("still", learning_rate=0.0)))
    for name in ("visual_projection", "text_projection", "logit_scale", "finding_head"):
        assert not _is_same(getattr(model, name), getattr(still, name)), name


def test_starts_from_the_supervised_tower_unless_told_to_reset_it(run, make_arguments):
    vision = CT3DVisionModel.from_pretrained(run.vision)
    names = set(dict(vision.named_parameters()))
    arguments = make_arguments("still", max_steps=1, learning_rate=0.0)
    assert _is_same(_load(train_medclip(run, arguments)).vision_model, vision) == names
    fresh = _load(
        train_medclip(
            replace(run, should_reset_vision=True), make_arguments("fresh", max_steps=1, learning_rate=0.0)
        )
    )
    kernels = {name for name in names if dict(vision.named_parameters())[name].ndim > 1}
    assert len(kernels) == 6
    assert not _is_same(fresh.vision_model, vision) & kernels
    assert fresh.vision_model.config.hidden_sizes == [8, 16]


def test_trains_without_labels_and_then_without_a_finding_head(run, make_arguments):
    model = _load(train_medclip(replace(run, labels=None), make_arguments()))
    assert model.finding_head is None
    assert list(model.config.findings) == []


@pytest.mark.parametrize("tower", ["vision", "text"])
def test_refuses_a_tower_that_lacks_weights(run, make_arguments, tmp_path, tower):
    folder = tmp_path / "broken"
    shutil.copytree(getattr(run, tower), folder)
    weights = load_file(folder / "model.safetensors")
    lost = {"vision": "vision_model.stem.0.weight", "text": "model.norm.weight"}[tower]
    del weights[lost]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    kind = {"vision": "CT3DVisionModel", "text": "LLMBiEncoder"}[tower]
    name = lost.removeprefix("vision_model.").replace(".", r"\.")
    with pytest.raises(ValueError, match=rf"{kind} must find .* got .*broken without 1, such as {name}"):
        train_medclip(replace(run, **{tower: str(folder)}), make_arguments())


@pytest.fixture
def prompted(run, text_folder, tmp_path):
    """The run with a text tower that has a soft prompt of two vectors."""
    text = LLMBiEncoder.from_pretrained(text_folder)
    text.set_prompt(hard_prompt="Describe", soft_prompt="no nodule")
    text.save_pretrained(tmp_path / "prompted")
    return replace(run, text=str(tmp_path / "prompted"))


@pytest.fixture
def read_by_text_tower(monkeypatch):
    """How many texts text towers have read, in a list that grows by call."""
    read, forward = [], LLMBiEncoder.forward

    def counted(self, input_ids=None, *args, **kwargs):
        read.append(len(input_ids))
        return forward(self, input_ids, *args, **kwargs)

    monkeypatch.setattr(LLMBiEncoder, "forward", counted)
    return read


def test_a_frozen_text_tower_reads_each_report_once_and_with_a_cache_once_for_all_runs(
    run, make_arguments, read_by_text_tower, tmp_path
):
    plain = _load(train_medclip(run, make_arguments()))
    assert sum(read_by_text_tower) == 4  # 5 readable studies of the split, two of them with one report
    cached = replace(run, feature_cache=str(tmp_path / "features"))
    for name in ("first", "second"):
        model = _load(train_medclip(cached, make_arguments(name)))
        assert sum(read_by_text_tower) == 8
        assert _is_same(model, plain) == set(dict(plain.named_parameters()))


def test_only_the_prompt_of_the_text_tower_trains(prompted, make_arguments):
    run = replace(prompted, text_mode="soft_prompt", vision_mode="frozen")
    model = _load(train_medclip(run, make_arguments()))
    text = LLMBiEncoder.from_pretrained(run.text)
    names = set(dict(text.named_parameters()))
    assert _is_same(model.text_model, text) == names - {"soft_prompt.weight"}
    vision = CT3DVisionModel.from_pretrained(run.vision)
    assert _is_same(model.vision_model, vision) == set(dict(vision.named_parameters()))
    for name, buffer in vision.named_buffers():
        assert torch.equal(dict(model.vision_model.named_buffers())[name], buffer), name


def test_the_last_stage_and_the_last_layer_train_alone(run, make_arguments):
    run = replace(
        run, vision_mode="last_n", num_last_vision_layers=1, text_mode="last_n", num_last_text_layers=1
    )
    model = _load(train_medclip(run, make_arguments()))
    text, vision = LLMBiEncoder.from_pretrained(run.text), CT3DVisionModel.from_pretrained(run.vision)
    moved = set(dict(text.named_parameters())) - _is_same(model.text_model, text)
    assert moved == {
        n for n in dict(text.named_parameters()) if n.startswith(("model.layers.1", "model.norm"))
    }
    moved = set(dict(vision.named_parameters())) - _is_same(model.vision_model, vision)
    assert moved == {name for name in dict(vision.named_parameters()) if name.startswith("stages.1.")}
    buffers = dict(model.vision_model.named_buffers())
    same = {name for name, buffer in vision.named_buffers() if torch.equal(buffer, buffers[name])}
    assert same == {name for name in buffers if not name.startswith("stages.1.")}


def test_a_resumed_run_may_keep_its_features_elsewhere_and_must_train_the_same_weights(
    run, make_arguments, tmp_path
):
    arguments = make_arguments()
    write_run_record(tmp_path, run, arguments)
    require_same_run(tmp_path, replace(run, feature_cache="elsewhere"), arguments)
    with pytest.raises(ValueError, match=r"text_mode 'frozen' there and 'full' now"):
        require_same_run(tmp_path, replace(run, text_mode="full"), arguments)


@pytest.mark.parametrize("ema_decay", [None, 0.5])
def test_low_rank_updates_resume_and_end_in_a_plain_folder(prompted, make_arguments, ema_decay):
    run = replace(prompted, text_mode="lora", lora_rank=2, lora_alpha=8.0, ema_decay=ema_decay)
    settings = {"save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = _load(train_medclip(run, make_arguments("whole", max_steps=4, **settings)))
    train_medclip(run, make_arguments("parts", **settings))
    arguments = make_arguments("parts", max_steps=4, resume_from_checkpoint=True, **settings)
    resumed = _load(train_medclip(run, arguments))
    assert _is_same(resumed, whole) == set(dict(whole.named_parameters()))
    text = LLMBiEncoder.from_pretrained(run.text)
    moved = set(dict(text.named_parameters())) - _is_same(whole.text_model, text)
    linears = {n for n in dict(text.named_parameters()) if "_proj.weight" in n}
    assert len(linears) == 14
    assert moved == linears | {"soft_prompt.weight"}


def test_the_model_folder_does_not_say_where_the_towers_were(run, make_arguments):
    config = (train_medclip(run, make_arguments()) / "config.json").read_text()
    assert run.vision not in config
    assert run.text not in config


def test_batches_of_like_length_are_those_of_the_tokens_that_are_read(run, make_arguments, monkeypatch):
    batches, pad = [], ReportPadding.__call__

    def recorded(self, samples):
        batches.append([len(sample["input_ids"]) for sample in samples])
        return pad(self, samples)

    monkeypatch.setattr(ReportPadding, "__call__", recorded)
    run = replace(run, text_mode="full")
    for name, is_sorted in (("sorted", True), ("mixed", False)):
        arguments = make_arguments(name, per_device_train_batch_size=2, max_steps=2)
        train_medclip(replace(run, has_length_batches=is_sorted), arguments)
    studies = read_manifest(run.manifest).split("train").frame
    studies = studies[studies["study_id"] != "study-2"]  # whose scan is damaged
    tokenizer = LLMBiEncoder.from_pretrained(run.text).tokenizer
    lengths = [len(tokenizer(report).input_ids) for report in studies["report"]]
    sampler = PairSampler(SimpleNamespace(epoch=0), pair_keys(studies), 2, 42, lengths=lengths)
    rows = list(sampler)
    assert batches[:2] == [[lengths[row] for row in rows[at : at + 2]] for at in (0, 2)]
    assert sum(max(batch) - min(batch) for batch in batches[:2]) < sum(
        max(batch) - min(batch) for batch in batches[2:]
    )


def test_vectors_of_a_frozen_tower_have_no_length(run):
    with pytest.raises(ValueError, match="has_length_batches must be false where text_mode is frozen, got T"):
        replace(run, has_length_batches=True)


def _with_validation(run, folder):
    """The run with its last three studies held out."""
    frame = pd.read_csv(run.manifest)
    frame.loc[frame["study_id"].isin(["study-5", "study-6", "study-7"]), "split"] = "validation"
    frame["image_path"] = [str(Path(run.manifest).parent / name) for name in frame["image_path"]]
    frame.to_csv(folder / "held_out.csv", index=False)
    return replace(run, manifest=str(folder / "held_out.csv"))


class Losses(TrainerCallback):
    """The losses of evaluation, and what is evaluated."""

    def __init__(self):
        self.values, self.volume_ids = [], None

    def on_evaluate(self, args, state, control, **kwargs):
        self.values.append(kwargs["metrics"]["eval_loss"])
        dataset = kwargs["eval_dataloader"].dataset
        self.volume_ids, self.augmentation = dataset.volume_ids, dataset.augmentation


def test_the_validation_split_chooses_the_best_average(run, make_arguments, tmp_path):
    settings = {
        "max_steps": 2,
        "learning_rate": 0.05,
        "eval_strategy": "steps",
        "eval_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "load_best_model_at_end": True,
        "metric_for_best_model": "eval_loss",
        "greater_is_better": True,  # so that the best is not the last one
    }
    run, losses = replace(_with_validation(run, tmp_path), should_augment=True, ema_decay=0.5), Losses()
    folder = train_medclip(run, make_arguments(**settings), [losses])
    assert losses.volume_ids == ["study-5", "study-6", "study-7"]
    assert losses.augmentation is None
    assert losses.values[0] > losses.values[1]
    model = _load(folder)
    cache = open_volume_cache(run.cache)
    studies = read_manifest(run.manifest).split("validation").frame
    tokens = model.processor(text=list(studies["report"]), return_tensors="pt")
    pixels = torch.stack([cache[volume_id] for volume_id in studies["volume_id"]])
    labels = study_targets(studies, run.labels, TargetPolicy()).values
    with torch.no_grad():
        loss = model(
            pixel_values=pixels,
            input_ids=tokens["input_ids"],
            attention_mask=tokens["attention_mask"],
            labels=torch.from_numpy(labels),
            pair_keys=pair_keys(studies),
        ).loss
    assert loss.item() == pytest.approx(max(losses.values), rel=1e-4)


def test_refuses_to_evaluate_without_a_validation_split(run, make_arguments):
    run = replace(run, vision="nowhere")  # towers are not looked for
    with pytest.raises(ValueError, match=r"no split validation, got steps with test, train\. Leave it out"):
        train_medclip(run, make_arguments(eval_strategy="steps"))
    stream = ClipRun(dataset="d", image_column="i", report_column="r", vision="nowhere", text="nowhere")
    with pytest.raises(ValueError, match=r"must be no where a dataset is streamed, got epoch: only a man"):
        train_medclip(stream, make_arguments(eval_strategy="epoch"))


def _with_empty_reports(run, folder, ids):
    frame = pd.read_csv(run.manifest)
    frame.loc[frame["study_id"].isin(ids), "report"] = "Not given."
    frame["image_path"] = [str(Path(run.manifest).parent / name) for name in frame["image_path"]]
    frame.to_csv(folder / "emptied.csv", index=False)
    return replace(run, manifest=str(folder / "emptied.csv"), labels=None)


def test_studies_without_a_report_are_left_out_and_counted(run, make_arguments, tmp_path):
    emptied, notes = (
        _with_empty_reports(run, tmp_path, ["study-1", "study-2"]),
        [],
    )
    rows = Rows()
    train_medclip(emptied, make_arguments(max_steps=1), [rows], notes.append)
    assert rows.volume_ids == ["study-0", "study-3", "study-4", "study-5"]
    digest = hashlib.sha256(b"study-1").hexdigest()[:12]  # the scan of study 2 is damaged, too
    assert notes == [
        "1 of 5 studies are left out: their report is empty.",
        f"  volume (sha256 {digest})",
    ]


def test_refuses_to_train_without_any_report(run, make_arguments, tmp_path):
    emptied = _with_empty_reports(run, tmp_path, [f"study-{number}" for number in range(6)])
    with pytest.raises(ValueError, match=r"one study must have a report, got 5 readable ones without\. Fill"):
        train_medclip(emptied, make_arguments())


class Rows(TrainerCallback):
    """Which studies are trained on."""

    def on_train_begin(self, args, state, control, **kwargs):
        self.volume_ids = kwargs["train_dataloader"].dataset.volume_ids


@pytest.mark.parametrize(("seed", "expected"), [(None, 42), (0, 0)])
def test_the_order_of_the_data_has_a_seed_of_its_own(run, make_arguments, seed, expected):
    dataset = SimpleNamespace(epoch=0, pair_keys=torch.arange(1, 9)[:, None])
    assert _sampler(run, make_arguments(data_seed=seed), dataset, 2).seed == expected


class FirstScan(TrainerCallback):
    """The first scan as it is read in each epoch."""

    def __init__(self):
        self.pixel_values = []

    def on_step_begin(self, args, state, control, **kwargs):
        dataset = kwargs["train_dataloader"].dataset
        assert (dataset.volume_ids[0], dataset.epoch) == ("study-0", len(self.pixel_values))
        self.pixel_values.append(dataset[0]["pixel_values"])


def test_each_epoch_reads_another_crop_of_the_margin_that_the_cache_keeps(
    run, make_arguments, study_folder, tmp_path
):
    processor = CT3DImageProcessor(spacing_mm=(3.0, 2.0, 2.0), size=(8, 8, 8), cache_size=(8, 12, 12))
    scans = {f"study-{number}": study_folder / f"study-{number}.nii.gz" for number in range(6)}
    cache = build_volume_cache(scans, processor, tmp_path / "cache")
    run = replace(run, cache=str(tmp_path / "cache"))
    arguments = {"per_device_train_batch_size": 3, "dataloader_drop_last": True, "max_steps": 2}
    crops, middle = FirstScan(), FirstScan()
    train_medclip(replace(run, should_augment=True), make_arguments("crops", **arguments), [crops])
    train_medclip(run, make_arguments("middle", **arguments), [middle])
    draw = VolumeAugmentation(image_processor=processor, seed=42)
    for epoch, pixel_values in enumerate(crops.pixel_values):
        torch.testing.assert_close(pixel_values, draw(cache.volume_hu("study-0"), epoch, 0))
    assert not torch.equal(*crops.pixel_values)
    for pixel_values in middle.pixel_values:
        torch.testing.assert_close(pixel_values, cache["study-0"])


def test_crops_need_a_cache(run):
    with pytest.raises(ValueError, match="should_augment must be false where there is no cache, got True"):
        replace(run, cache=None, should_augment=True)
