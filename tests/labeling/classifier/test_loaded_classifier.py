import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)

from radtower.labeling.classifier.loaded_classifier import load_classifier, match_columns
from radtower.labeling.findings import load_findings
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

TINY = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
LABELS = {0: "Pleural effusion", 1: "lung-nodule"}


@pytest.fixture
def save_bert(tiny_tokenizer, tmp_path):
    """Save a tiny multi-label BERT; keyword arguments change its configuration."""

    def save(config_class=BertConfig, model_class=BertForSequenceClassification, **settings):
        given = {
            "problem_type": "multi_label_classification",
            "id2label": LABELS,
            "max_position_embeddings": 40,
        }
        config = config_class(vocab_size=len(tiny_tokenizer), **TINY, **given | settings)
        model_class(config).save_pretrained(tmp_path / "bert")
        tiny_tokenizer.save_pretrained(tmp_path / "bert")
        return tmp_path / "bert"

    return save


@pytest.fixture
def own_folder(tiny_llm_folder, tmp_path):
    encoder = LLMBiEncoder.from_llm(
        tiny_llm_folder, pooling="mean", max_length=64, id2label={0: "a", 1: "b"}, label_temperature=2.5
    )
    LLMBiEncoderForSequenceClassification(encoder.config).save_pretrained(tmp_path / "own")
    encoder.tokenizer.save_pretrained(tmp_path / "own")
    return tmp_path / "own"


def test_labels_are_matched_by_name_and_ordered_as_the_set(save_bert):
    loaded = load_classifier(save_bert(), load_findings("ct_rate_18"))
    assert loaded.columns == {"lung_nodule": 1, "pleural_effusion": 0}
    assert list(loaded.columns) == ["lung_nodule", "pleural_effusion"]
    assert (loaded.has_attention, loaded.temperature, loaded.max_length) == (False, 1.0, 40)
    assert not loaded.model.training


def test_without_a_set_the_labels_are_the_keys(save_bert):
    assert load_classifier(save_bert(), None).columns == {"Pleural effusion": 0, "lung-nodule": 1}


def test_our_labelers_bring_length_temperature_and_attention(own_folder):
    loaded = load_classifier(own_folder, None)
    assert (loaded.max_length, loaded.temperature, loaded.has_attention) == (64, 2.5, True)
    assert load_classifier(own_folder, None, max_length=9).max_length == 9


def test_a_synonym_counts_and_what_matches_nothing_is_refused_or_skipped():
    findings = load_findings("ct_rate_18")
    synonym = findings.by_key["cardiomegaly"].synonyms[0]
    assert match_columns({0: synonym.upper()}, findings) == {"cardiomegaly": 0}
    labels = {0: "No Finding", 1: "cardiomegaly"}
    with pytest.raises(ValueError, match=r"synonyms in 'ct_rate_18', got \['No Finding'\], each"):
        match_columns(labels, findings)
    assert match_columns(labels, findings, should_skip_unmatched=True) == {"cardiomegaly": 1}
    with pytest.raises(ValueError, match=r"got \['No Finding'\]"):
        match_columns({0: "No Finding"}, findings, should_skip_unmatched=True)


def test_refuses_two_labels_of_one_finding():
    labels = {0: "cardiomegaly", 1: "Cardiomegaly", 2: "Emphysema"}
    with pytest.raises(
        ValueError, match=r"different findings of 'ct_rate_18', got \['Cardiomegaly', 'cardiom"
    ):
        match_columns(labels, load_findings("ct_rate_18"))


@pytest.mark.parametrize("problem_type", [None, "single_label_classification"])
def test_refuses_a_model_with_one_label_per_text(save_bert, problem_type):
    with pytest.raises(ValueError, match=f"problem_type 'multi_label_classification', got {problem_type!r}"):
        load_classifier(save_bert(problem_type=problem_type), None)


def test_refuses_more_tokens_than_positions(save_bert):
    folder = save_bert()
    with pytest.raises(ValueError, match="between 1 and 40, the positions of the model, got 41"):
        load_classifier(folder, None, max_length=41)
    assert load_classifier(folder, None, max_length=40).max_length == 40


def test_positions_of_roberta_begin_behind_the_padding(save_bert):
    folder = save_bert(RobertaConfig, RobertaForSequenceClassification, pad_token_id=1)
    loaded = load_classifier(folder, None)
    assert loaded.max_length == 38
    ids = torch.full((1, 38), 5)
    assert loaded.model(input_ids=ids).logits.shape == (1, 2)
    with pytest.raises((IndexError, RuntimeError), match="index"):
        loaded.model(input_ids=torch.full((1, 39), 5))


def test_refuses_to_guess_a_length(save_bert):
    # BLOOM has no positions to run out of, and this tokenizer knows no length.
    folder = save_bert(BloomConfig, BloomForSequenceClassification, max_position_embeddings=None)
    with pytest.raises(ValueError, match="max_length must be given where neither model nor tokenizer know"):
        load_classifier(folder, None)
    assert load_classifier(folder, None, max_length=70).max_length == 70


def test_refuses_a_folder_without_the_trained_head(own_folder):
    path = own_folder / "model.safetensors"
    weights = load_file(path)
    del weights["finding_attention.score.bias"]
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got .*own without \['finding_attention.score.bias'\]"):
        load_classifier(own_folder, None)


def test_the_hash_is_that_of_what_answers_depend_on(own_folder):
    first = load_classifier(own_folder, None).sha256
    assert load_classifier(own_folder, None).sha256 == first
    config_path = own_folder / "config.json"
    config = json.loads(config_path.read_text())
    config_path.write_text(json.dumps(config | {"transformers_version": "0.0.0"}))
    assert load_classifier(own_folder, None).sha256 == first
    config_path.write_text(json.dumps(config | {"bidirectional": False}))
    assert load_classifier(own_folder, None).sha256 != first
    config_path.write_text(json.dumps(config))
    path = own_folder / "model.safetensors"
    weights = load_file(path)
    weights["finding_attention.score.bias"][0] += 1e-3
    save_file(weights, path, metadata={"format": "pt"})
    second = load_classifier(own_folder, None).sha256
    assert second != first
    tokenizer_path = own_folder / "tokenizer.json"
    tokenizer = json.loads(tokenizer_path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["small"], vocabulary["present"] = vocabulary["present"], vocabulary["small"]
    tokenizer_path.write_text(json.dumps(tokenizer))
    assert load_classifier(own_folder, None).sha256 not in (first, second)


def test_refuses_a_folder_without_its_tokenizer(save_bert):
    folder = save_bert()
    for path in folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match=r"bert must hold the tokenizer of the model, got 5 tokens of \d+"):
        load_classifier(folder, None)


@pytest.mark.parametrize(
    ("name", "missing"), [("config.json", "config.json"), ("model.safetensors", "safeten")]
)
def test_refuses_a_folder_that_lacks_files(save_bert, name, missing):
    folder = save_bert()
    (folder / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"bert must hold a whole model, got no {missing}"):
        load_classifier(folder, None)


def test_refuses_a_path_that_is_not_there():
    with pytest.raises(FileNotFoundError, match="existing folder or a Hub id, got 'nonexist'"):
        load_classifier("nonexist", None)


def test_refuses_damaged_weights(save_bert):
    folder = save_bert()
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"bert must hold whole weights .* got SafetensorError: .*Download"):
        load_classifier(folder, None)
