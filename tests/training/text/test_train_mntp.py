import json
import math
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest
import torch
import yaml
from transformers import (
    AutoModelForCausalLM,
    AutoModelForMaskedLM,
    AutoTokenizer,
    EvalPrediction,
    TrainingArguments,
)

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.runs import TextMNTPRun
from radtower.training.text.train_mntp import pseudo_perplexity, train_mntp

# The second name is deprecated in favor of the first, which old releases lack.
NAMES = {field.name for field in fields(TrainingArguments)}
RECOMPUTE = next(name for name in ("activation_checkpointing", "gradient_checkpointing") if name in NAMES)
REPORTS = {
    "train": [
        "There is no nodule.",
        "There is a small nodule.",
        "Effusion is present.",
        "no effusion",
        "",
        "no effusion",
    ],
    "validation": ["There is no effusion.", "small nodule present"],
    "test": ["This must not be read."],
}


@pytest.fixture
def run(tiny_llm_folder, tmp_path):
    rows = [
        (f"study-{split}-{n}", f"patient-{split}-{n}", split, text, f"Impression of {text}")
        for split, texts in REPORTS.items()
        for n, text in enumerate(texts)
    ]
    columns = ["study_id", "patient_id", "split", "report", "impression"]
    pd.DataFrame(rows, columns=columns).to_csv(tmp_path / "reports.csv", index=False)
    return TextMNTPRun(reports=str(tmp_path / "reports.csv"), llm=str(tiny_llm_folder), max_length=24)


def _log(folder):
    return [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]


def _same(one, other):
    ours, theirs = one.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_saves_a_folder_for_either_class_and_learns(run, make_arguments):
    folder = train_mntp(run, make_arguments(max_steps=60, logging_steps=60, eval_on_start=True))
    model = AutoModelForMaskedLM.from_pretrained(folder)
    encoder = LLMBiEncoder.from_pretrained(folder)
    assert _same(model.encoder, encoder)
    assert (encoder.config.pooling, encoder.config.bidirectional, encoder.config.max_length) == (
        "mean",
        True,
        24,
    )
    assert encoder.config.mask_token_id == AutoTokenizer.from_pretrained(folder).get_vocab()["_"]
    assert encoder.encode_text("There is no nodule.").shape == (1, 32)
    record = yaml.safe_load((folder / "run.yaml").read_text())
    assert (record["kind"], record["run"]["mask_token"]) == ("TextMNTPRun", "blank")
    before, after = (entry for entry in _log(folder) if "eval_pseudo_perplexity" in entry)
    assert after["eval_pseudo_perplexity"] < 0.7 * before["eval_pseudo_perplexity"]
    assert before["eval_num_patients"] == 2
    assert before["eval_num_hidden_tokens"] == after["eval_num_hidden_tokens"]
    assert after["eval_pseudo_perplexity_low"] <= after["eval_pseudo_perplexity"]
    assert after["eval_pseudo_perplexity"] <= after["eval_pseudo_perplexity_high"]


def test_lower_layers_may_stay_causal(run, make_arguments):
    folder = train_mntp(replace(run, num_causal_layers=1), make_arguments(max_steps=1))
    assert LLMBiEncoder.from_pretrained(folder).config.num_causal_layers == 1


def test_reads_the_train_split_and_the_column_asked_for(run, make_arguments, monkeypatch):
    arguments = make_arguments(max_steps=1, learning_rate=0.0)
    folder = train_mntp(run, arguments)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert _same(
        AutoModelForMaskedLM.from_pretrained(folder).encoder.model,
        AutoModelForCausalLM.from_pretrained(run.llm).model,
    )
    hidden = [entry["eval_num_hidden_tokens"] for entry in _log(folder) if "eval_num_hidden_tokens" in entry]
    plain = sum(len(tokenizer(text)["input_ids"]) - 1 for text in REPORTS["validation"])
    assert 2 <= hidden[0] < plain
    longer = train_mntp(
        replace(run, text_column="impression", mask_probability=0.9),
        make_arguments("impression", max_steps=1),
    )
    more = [entry["eval_num_hidden_tokens"] for entry in _log(longer) if "eval_num_hidden_tokens" in entry]
    assert more[0] > plain


@pytest.mark.parametrize("settings", [{}, {RECOMPUTE: True}], ids=["plain", "recomputed"])
def test_low_rank_updates_are_merged_and_the_head_stays(run, make_arguments, settings):
    arguments = make_arguments(max_steps=8, **settings)
    folder = train_mntp(replace(run, lora_rank=2, lora_dropout=0.0, num_frozen_layers=1), arguments)
    model, llm = AutoModelForMaskedLM.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(run.llm)
    assert torch.equal(model.lm_head.weight, llm.lm_head.weight)
    state, before = model.encoder.model.state_dict(), llm.model.state_dict()
    assert state.keys() == before.keys()
    changed = {name for name in state if not torch.equal(state[name], before[name])}
    assert changed == {name for name in state if name.startswith("layers.1.") and "proj" in name}
    for name in changed:
        assert torch.linalg.matrix_rank((state[name] - before[name]).double(), tol=1e-5) <= 2


def test_recomputed_activations_change_nothing(run, make_arguments):
    folders = [
        train_mntp(run, make_arguments(str(thrifty), max_steps=3, **{RECOMPUTE: thrifty}))
        for thrifty in (False, True)
    ]
    losses = [[entry["loss"] for entry in _log(folder) if "loss" in entry] for folder in folders]
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)


def test_bf16_is_near(run, make_arguments):
    folders = [
        train_mntp(run, make_arguments(str(short), max_steps=2, bf16=short)) for short in (False, True)
    ]
    losses = [[entry["loss"] for entry in _log(folder) if "loss" in entry] for folder in folders]
    assert losses[1] == pytest.approx(losses[0], rel=0.02)
    assert losses[1] != losses[0]


@pytest.mark.parametrize("lora_rank", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_resuming_equals_the_uninterrupted_run(run, make_arguments, lora_rank):
    run = replace(run, lora_rank=lora_rank)
    settings = {"lr_scheduler_type": "constant", "save_strategy": "steps", "save_steps": 2}
    whole = train_mntp(run, make_arguments("whole", max_steps=5, **settings))
    train_mntp(run, make_arguments("parts", max_steps=2, **settings))
    again = make_arguments("parts", max_steps=5, resume_from_checkpoint=True, **settings)
    parts = train_mntp(run, again)
    assert _same(*(AutoModelForMaskedLM.from_pretrained(folder) for folder in (whole, parts)))
    assert _log(whole)[-1]["eval_loss"] == _log(parts)[-1]["eval_loss"]


def test_a_table_without_validation_is_not_measured(run, make_arguments, tmp_path):
    frame = pd.read_csv(run.reports)
    frame[frame["split"] == "train"].to_csv(tmp_path / "train.csv", index=False)
    folder = train_mntp(replace(run, reports=str(tmp_path / "train.csv")), make_arguments(max_steps=1))
    assert not any("eval_loss" in entry for entry in _log(folder))
    frame[frame["split"] == "test"].to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(ValueError, match="pieces must hold text, got none"):
        train_mntp(replace(run, reports=str(tmp_path / "test.csv")), make_arguments("none"))


def test_pseudo_perplexity_is_over_tokens_and_its_interval_over_patients():
    losses, counts = np.array([2.0, 9.0, 4.0]), np.array([1, 3, 4])
    prediction = EvalPrediction(predictions=(losses, counts), label_ids=None)
    found = pseudo_perplexity(prediction, ["a", "b", "b"])
    assert found["pseudo_perplexity"] == pytest.approx(math.exp(15 / 8))
    assert found["num_hidden_tokens"] == 8
    assert found["num_patients"] == 2
    # Two patients: a resample is one of them twice, or both.
    assert found["pseudo_perplexity_low"] == pytest.approx(math.exp(13 / 7))
    assert found["pseudo_perplexity_high"] == pytest.approx(math.exp(2 / 1))
