import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from radtower.evaluation.calibration import fit_temperature
from radtower.labeling.encoder import EncoderLabeler
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.runs import LabelerRun
from radtower.training.text.frozen_trunk import FrozenTrunk, freeze_lower_layers
from radtower.training.train_text import train_labeler


@pytest.fixture
def run(study_folder, tiny_llm_folder):
    return LabelerRun(
        manifest=str(study_folder / "manifest.csv"),
        gold=str(study_folder / "gold.csv"),
        llm=str(tiny_llm_folder),
        num_frozen_layers=1,
        max_length=48,
    )


def test_saves_a_labeler_whose_frozen_layers_are_those_of_the_llm(run, make_arguments):
    folder = train_labeler(run, make_arguments())
    model = AutoModelForSequenceClassification.from_pretrained(folder)
    assert isinstance(model, LLMBiEncoderForSequenceClassification)
    assert model.config.id2label == {0: "nodule", 1: "effusion"}
    assert model.config.max_length == 48
    assert model.config.bidirectional
    llm = AutoModelForCausalLM.from_pretrained(run.llm).model.state_dict()
    changed = {
        name for name, value in model.encoder.model.state_dict().items() if not torch.equal(value, llm[name])
    }
    frozen = {name for name in llm if name.startswith(("embed_tokens.", "layers.0."))}
    assert len(frozen) == 10
    assert changed == set(llm) - frozen
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert (
        tokenizer("no nodule")["input_ids"]
        == AutoTokenizer.from_pretrained(run.llm)("no nodule")["input_ids"]
    )
    assert dict(EncoderLabeler(folder).label(["no nodule"]))[0].error is None


def test_learns_the_gold_labels(run, make_arguments):
    arguments = make_arguments(max_steps=40, per_device_train_batch_size=6, logging_steps=40)
    labeler = EncoderLabeler(train_labeler(replace(run, num_frozen_layers=0), arguments))
    expected = {
        "There is no nodule. There is no effusion.": (0, 0),
        "There is a small nodule.": (1, 0),
        "Effusion is present.": (0, 1),
        "small effusion, no nodule": (0, 1),
    }
    results = dict(labeler.label(expected))
    for position, labels in enumerate(expected.values()):
        assert tuple(int(status == "present") for status in results[position].status.values()) == labels


def test_keeps_the_lowest_layers_only(run, make_arguments):
    folder = train_labeler(
        replace(run, num_hidden_layers=1, num_frozen_layers=1), make_arguments(max_steps=1, learning_rate=0.0)
    )
    encoder = LLMBiEncoder.from_pretrained(folder)
    assert len(encoder.model.layers) == encoder.config.text_config.num_hidden_layers == 1
    llm = AutoModelForCausalLM.from_pretrained(run.llm).model
    assert torch.equal(encoder.model.layers[0].mlp.up_proj.weight, llm.layers[0].mlp.up_proj.weight)


@pytest.mark.parametrize("num_layers", [3, -1])
def test_refuses_to_freeze_layers_that_are_not_there(run, make_arguments, num_layers):
    with pytest.raises(ValueError, match=f"num_frozen_layers must be between 0 and 2, got {num_layers}"):
        train_labeler(replace(run, num_frozen_layers=num_layers), make_arguments())


def test_freezing_none_trains_everything(tiny_llm_folder):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
    freeze_lower_layers(encoder, 0)
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    freeze_lower_layers(encoder, 2)
    assert [n for n, p in encoder.named_parameters() if p.requires_grad] == ["model.norm.weight"]


def test_refuses_gold_of_another_data_set_without_naming_a_study(run, make_arguments, tmp_path):
    gold = pd.read_csv(run.gold, dtype=str)
    gold.loc[1, "study_id"] = "doe-1958"
    gold.to_csv(tmp_path / "gold.csv", index=False)
    with pytest.raises(ValueError, match="got 1 of 6 that are not in it") as error:
        train_labeler(replace(run, gold=str(tmp_path / "gold.csv")), make_arguments())
    assert "doe" not in str(error.value)


def test_a_study_with_two_volumes_is_one_report(run, make_arguments, tmp_path):
    frame = pd.read_csv(run.manifest)
    frame.insert(0, "volume_id", [f"{study}-1" for study in frame["study_id"]])
    again = frame.assign(volume_id=[f"{study}-2" for study in frame["study_id"]])
    pd.concat([frame, again]).to_csv(tmp_path / "volumes.csv", index=False)
    one, two = (
        AutoModelForSequenceClassification.from_pretrained(train_labeler(r, make_arguments(name)))
        for name, r in (("one", run), ("two", replace(run, manifest=str(tmp_path / "volumes.csv"))))
    )
    assert torch.equal(one.finding_attention.score.weight, two.finding_attention.score.weight)


def test_the_model_folder_does_not_say_where_the_llm_was(run, make_arguments):
    config = (train_labeler(run, make_arguments()) / "config.json").read_text()
    assert run.llm not in config


def _losses(folder):
    lines = (folder / "training_log.jsonl").read_text().splitlines()
    return [entry["loss"] for entry in map(json.loads, lines) if "loss" in entry]


@pytest.mark.parametrize(("num_frozen", "lora_rank"), [(1, 0), (2, 0), (1, 2)])
def test_stored_states_give_the_same_training(run, make_arguments, num_frozen, lora_rank):
    run = replace(run, num_frozen_layers=num_frozen, lora_rank=lora_rank, lora_dropout=0.0)
    settings = {"max_steps": 12, "lr_scheduler_type": "constant"}
    plain = train_labeler(run, make_arguments("plain", **settings))
    stored = train_labeler(replace(run, should_cache_frozen=True), make_arguments("stored", **settings))
    assert _losses(stored) == pytest.approx(_losses(plain), rel=1e-5, abs=1e-5)
    assert _losses(plain)[-1] < 0.9 * _losses(plain)[0]
    one, two = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in (plain, stored))
    assert one.state_dict().keys() == two.state_dict().keys()
    for name, value in one.state_dict().items():
        torch.testing.assert_close(two.state_dict()[name], value, rtol=1e-3, atol=1e-4, msg=name)


def test_reports_pass_the_frozen_layers_once(run, make_arguments, monkeypatch):
    rows = []
    compute = FrozenTrunk._compute
    monkeypatch.setattr(
        FrozenTrunk, "_compute", lambda self, ids, mask: rows.append(len(ids)) or compute(self, ids, mask)
    )
    train_labeler(replace(run, should_cache_frozen=True), make_arguments(max_steps=8))
    # One by one the three texts of the check, then five distinct reports of six.
    assert rows == [1, 1, 1, 5]


def test_resuming_from_stored_states_and_adapters_equals_the_uninterrupted_run(run, make_arguments):
    run = replace(run, should_cache_frozen=True, lora_rank=2)
    settings = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    whole = train_labeler(run, make_arguments("whole", max_steps=5, **settings))
    train_labeler(run, make_arguments("parts", max_steps=2, **settings))
    parts = train_labeler(run, make_arguments("parts", max_steps=5, resume_from_checkpoint=True, **settings))
    one, two = (AutoModelForSequenceClassification.from_pretrained(f).state_dict() for f in (whole, parts))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_low_rank_updates_are_merged_into_the_labeler(run, make_arguments):
    folder = train_labeler(replace(run, lora_rank=2), make_arguments(max_steps=4))
    state = LLMBiEncoder.from_pretrained(folder).model.state_dict()
    llm = AutoModelForCausalLM.from_pretrained(run.llm).model.state_dict()
    changed = {name for name, value in llm.items() if not torch.equal(value, state[name])}
    assert changed == {name for name in llm if name.startswith("layers.1.") and "proj" in name}


def test_refuses_to_store_the_states_of_no_layers(run):
    with pytest.raises(ValueError, match=r"num_frozen_layers must be at least 1 .* got 0"):
        replace(run, num_frozen_layers=0, should_cache_frozen=True)


@pytest.fixture
def reports(study_folder, tmp_path):
    """A report table with the labels of all eight studies; the last two are validation."""
    manifest = pd.read_csv(study_folder / "manifest.csv")
    columns = {"nodule": [0, 1, 0, 0, 1, 1, 0, 1], "effusion": [0, 0, 1, 1, 1, 0, 0, 1]}
    split = manifest["split"].replace("test", "validation")
    manifest.drop(columns="image_path").assign(split=split, **columns).to_csv(
        tmp_path / "reports.csv", index=False
    )
    return tmp_path / "reports.csv"


def _log(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def test_the_held_out_part_is_measured_per_epoch_and_gives_the_temperature(run, make_arguments, reports):
    run = replace(run, manifest=None, gold=None, reports=str(reports), should_cache_frozen=True)
    notes = []
    arguments = make_arguments(max_steps=-1, num_train_epochs=2, eval_strategy="epoch")
    folder = train_labeler(run, arguments, on_note=notes.append)
    assert notes[0] == "Training on 6 reports, measuring on 2: nodule, effusion."
    log = _log(folder)
    epochs = [entry for entry in log if "eval_macro_auroc" in entry]
    assert [entry["step"] for entry in epochs] == [2, 4]
    end = next(entry for entry in log if "label_temperature" in entry)
    assert end["validation_macro_auroc"] == epochs[-1]["eval_macro_auroc"]
    assert end["validation_num_findings"] == 2
    assert notes[-1].startswith(
        f"Validation macro AUROC {end['validation_macro_auroc']:.4f} over 2 findings."
    )
    labeler = EncoderLabeler(folder)
    assert labeler.classifier.temperature == end["label_temperature"]
    texts = ["no effusion", "nodule and effusion present"]
    with torch.no_grad():
        inputs = labeler.classifier.tokenizer(texts, padding=True, return_tensors="pt")
        logits = labeler.classifier.model(inputs["input_ids"], inputs["attention_mask"]).logits
    expected = fit_temperature(logits.numpy(), np.array([[0.0, 0.0], [1.0, 1.0]]))
    assert end["label_temperature"] == pytest.approx(expected.temperature, rel=1e-3)
    assert end["validation_nll"] == pytest.approx(expected.nll[1], rel=1e-4)
    assert end["validation_nll_raw"] == pytest.approx(expected.nll[0], rel=1e-4)
    assert end["validation_nll"] <= end["validation_nll_raw"]


def test_without_a_held_out_part_the_temperature_is_one_and_says_so(run, make_arguments):
    notes = []
    folder = train_labeler(run, make_arguments(), on_note=notes.append)
    assert notes[-1] == "Label temperature 1: no labeled report of validation to fit it on."
    assert EncoderLabeler(folder).classifier.temperature == 1.0
    with pytest.raises(ValueError, match=r"eval_strategy must be no where .* got 'epoch'"):
        train_labeler(run, make_arguments("other", eval_strategy="epoch"))


def test_another_labeler_can_be_learned_from(run, make_arguments, reports, study_folder):
    silver = study_folder / "labels.parquet"
    run = replace(run, manifest=None, gold=None, reports=str(reports), labels=str(silver), soft_targets=True)
    notes = []
    folder = train_labeler(run, make_arguments(), on_note=notes.append)
    assert notes[0] == "Training on 6 reports, measuring on 2: nodule, effusion."
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.id2label[0] == "nodule"


def test_says_how_many_reports_are_cut(run, make_arguments):
    notes = []
    train_labeler(replace(run, max_length=10), make_arguments(), on_note=notes.append)
    assert "3 training reports are cut at 10 tokens; the labeler reads all of a report." in notes


def test_lower_layers_may_stay_causal(run, make_arguments):
    folder = train_labeler(replace(run, num_causal_layers=1), make_arguments())
    assert AutoModelForSequenceClassification.from_pretrained(folder).config.num_causal_layers == 1


def test_the_average_of_the_weights_may_be_what_is_saved(run, make_arguments):
    raw, averaged = (
        train_labeler(replace(run, ema_decay=decay), make_arguments(str(decay), max_steps=4))
        for decay in (None, 0.9)
    )
    raw, averaged = (AutoModelForSequenceClassification.from_pretrained(folder) for folder in (raw, averaged))
    start = AutoModelForCausalLM.from_pretrained(run.llm).model.layers[1].mlp.up_proj.weight
    ends = [model.encoder.model.layers[1].mlp.up_proj.weight for model in (raw, averaged)]
    far, near = ((end - start).norm() for end in ends)
    assert 0 < near < far  # an average lags behind
    # What is measured once is no weight, and an average of it would begin at zero.
    assert torch.equal(raw.finding_attention.std, averaged.finding_attention.std)


@pytest.fixture
def encoder_folder(tiny_llm_folder, tmp_path):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", num_causal_layers=1)
    torch.nn.init.normal_(encoder.model.layers[0].mlp.up_proj.weight)
    encoder.save_pretrained(tmp_path / "encoder")
    encoder.tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


def test_goes_on_with_a_trained_encoder(run, make_arguments, encoder_folder):
    folder = train_labeler(replace(run, llm=str(encoder_folder), num_causal_layers=1), make_arguments())
    labeler = AutoModelForSequenceClassification.from_pretrained(folder)
    encoder = LLMBiEncoder.from_pretrained(encoder_folder)
    name = "model.layers.0.mlp.up_proj.weight"  # frozen
    assert torch.equal(labeler.encoder.state_dict()[name], encoder.state_dict()[name])
    assert labeler.config.max_length == 48


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, r"in the direction it was trained in, got num_causal_layers 1 there and 0 now\. Give"),
        ({"num_hidden_layers": 1}, r"num_hidden_layers must be left out where llm is an encoder, got 1\."),
    ],
)
def test_refuses_to_change_a_trained_encoder(run, make_arguments, encoder_folder, fields, message):
    with pytest.raises(ValueError, match=message):
        train_labeler(replace(run, llm=str(encoder_folder), **fields), make_arguments())


def test_refuses_an_encoder_that_lacks_weights(run, make_arguments, encoder_folder):
    weights = load_file(encoder_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, encoder_folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"every weight of the encoder, got 1 missing, such as model\."):
        train_labeler(replace(run, llm=str(encoder_folder), num_causal_layers=1), make_arguments())


def test_reports_can_be_grouped_by_length(run, make_arguments):
    arguments = make_arguments(train_sampling_strategy="group_by_length")
    assert train_labeler(run, arguments).is_dir()


@pytest.mark.parametrize(
    ("fields", "given"),
    [
        ({"gold": None}, "manifest"),
        ({"manifest": None, "gold": None}, ""),
        ({"reports": "r.csv"}, "'gold', 'manifest', 'reports'"),
        ({"manifest": None, "gold": None, "labels": "l.parquet"}, "labels"),
    ],
)
def test_refuses_labels_from_several_places_or_none(run, fields, given):
    with pytest.raises(ValueError, match=rf"manifest and gold, or reports, .* got \[.*{given}.*\]"):
        replace(run, **fields)


def test_refuses_soft_targets_without_scores(run):
    with pytest.raises(ValueError, match=r"soft_targets must come with labels, .* got True without"):
        replace(run, soft_targets=True)


@pytest.mark.parametrize("seed", [0, 1])
def test_the_evidence_of_a_trained_labeler_is_the_sentence_that_says_it(run, make_arguments, tmp_path, seed):
    says = {"nodule": "There is a small nodule.", "effusion": "There is small effusion present."}
    silent = ["Describe it.", "There is no small thing.", "It is small."]
    rows = []
    for number in range(48):
        chosen = [says[key] for key, bit in (("nodule", 1), ("effusion", 2)) if number & bit]
        order = [*chosen, silent[number % 3], silent[(number // 4) % 3]]
        order = order[number % len(order) :] + order[: number % len(order)]
        rows.append((f"s{number}", f"p{number}", "train", " ".join(order), number & 1, number >> 1 & 1))
    columns = ["study_id", "patient_id", "split", "report", "nodule", "effusion"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "r.csv", index=False)
    run = replace(
        run,
        manifest=None,
        gold=None,
        reports=str(tmp_path / "r.csv"),
        num_hidden_layers=1,
        finding_layers=(0,),  # further up, every token of random weights knows of every sentence
        num_frozen_layers=0,
        head_learning_rate=0.03,
        max_length=64,
    )
    arguments = make_arguments(max_steps=150, seed=seed, per_device_train_batch_size=16, learning_rate=3e-3)
    labeler = EncoderLabeler(train_labeler(run, arguments))
    report = "There is small effusion present. It is small. There is a small nodule. Describe it."
    got = dict(labeler.label([report, "Describe it. There is a small nodule."]))
    assert got[0].status == {"nodule": "present", "effusion": "present"}
    assert got[0].evidence == says
    assert got[1].status == {"nodule": "present", "effusion": "absent"}
    assert got[1].evidence["nodule"] == says["nodule"]
