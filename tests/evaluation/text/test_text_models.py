"""Folders -> scorers: ours, those of sentence-transformers, and an LLM as it is."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertConfig, BertModel

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.evaluation.text.text_models import load_scorer, untrained_scorer
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

TEXTS = ["There is no nodule", "small effusion"]


def cosine(left: np.ndarray, right: np.ndarray) -> float:
    return float(left @ right / np.linalg.norm(left) / np.linalg.norm(right))


@pytest.fixture
def minilm(tiny_tokenizer, tmp_path) -> Path:
    """A tiny BERT in the layout of sentence-transformers."""
    folder = tmp_path / "mini" / "model"
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        initializer_range=1.0,
        pad_token_id=tiny_tokenizer.pad_token_id,
    )
    BertModel(config).save_pretrained(folder)
    tiny_tokenizer.save_pretrained(folder)
    (folder / "1_Pooling").mkdir()
    modules = [
        {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
        {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
        {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    write_pooling(folder, "pooling_mode_mean_tokens")
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 3}))
    return folder


def write_pooling(folder: Path, *modes: str) -> None:
    content = {"word_embedding_dimension": 8, "pooling_mode_max_tokens": False, **dict.fromkeys(modes, True)}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(content))


@pytest.mark.parametrize("mode", ["pooling_mode_mean_tokens", "pooling_mode_cls_token"])
def test_a_sentence_transformers_folder_is_read_without_the_package(minilm, tiny_tokenizer, mode):
    write_pooling(minilm, mode)
    scorer = load_scorer(minilm)
    assert scorer.name == "mini"
    vectors = scorer.vectors(TEXTS)
    model = BertModel.from_pretrained(minilm).eval()
    with torch.no_grad():
        inputs = tiny_tokenizer(TEXTS[0], truncation=True, max_length=3, return_tensors="pt")
        hidden = model(**inputs).last_hidden_state[0]
    expected = hidden.mean(dim=0) if "mean" in mode else hidden[0]
    assert cosine(vectors[0], expected.numpy()) == pytest.approx(1.0, abs=1e-6)
    assert cosine(vectors[0], vectors[1]) < 0.999


@pytest.mark.parametrize("position", [0, 1])
def test_modules_stay_in_their_folder(minilm, position):
    modules = json.loads((minilm / "modules.json").read_text())
    modules[position]["path"] = "../other"
    (minilm / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"every path in a model folder must stay in it, got '\.\./other'"):
        load_scorer(minilm)


def test_a_folder_that_would_be_misread_is_refused(minilm):
    with pytest.raises(TypeError, match="instruction must be None for model, got a text"):
        load_scorer(minilm, "Find")
    write_pooling(minilm, "pooling_mode_mean_tokens", "pooling_mode_cls_token")
    with pytest.raises(ValueError, match=r"got \['pooling_mode_mean_tokens', 'pooling_mode_cls_token'\]"):
        load_scorer(minilm)
    modules = json.loads((minilm / "modules.json").read_text())
    modules[2]["type"] = "sentence_transformers.models.Dense"
    (minilm / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"got \['Transformer', 'Pooling', 'Dense'\]"):
        load_scorer(minilm)


def test_our_encoder_is_read_with_and_without_instruction(tiny_llm_folder, tmp_path):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
    encoder.save_pretrained(tmp_path / "encoder")
    plain = load_scorer(tmp_path / "encoder")
    assert plain.name == "encoder"
    expected = encoder.encode(TEXTS).numpy()
    assert plain.score(TEXTS, TEXTS)[0, 1] == pytest.approx(cosine(expected[0], expected[1]), abs=1e-5)
    told = load_scorer(tmp_path / "encoder", "Describe")
    asked = encoder.encode(TEXTS, instruction="Describe").numpy()
    assert told.score(TEXTS, TEXTS)[0, 1] == pytest.approx(cosine(asked[0], expected[1]), abs=1e-5)
    assert told.score(TEXTS, TEXTS)[0, 0] < 0.9999


def test_a_dual_tower_is_read_by_its_text_side(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path / "dual")
    tiny_medclip.processor.save_pretrained(tmp_path / "dual")
    scorer = load_scorer(tmp_path / "dual")
    expected = tiny_medclip.encode_text(TEXTS).numpy()
    assert scorer.score(TEXTS, TEXTS)[0, 1] == pytest.approx(cosine(*expected), abs=1e-5)
    with pytest.raises(TypeError, match="got MedCLIPModel and instruction 'Find'"):
        load_scorer(tmp_path / "dual", "Find")


def test_a_model_without_text_is_refused(tmp_path):
    CT3DVisionModel(CT3DVisionConfig(hidden_sizes=[4], layers=[1])).save_pretrained(tmp_path / "tower")
    with pytest.raises(TypeError, match="got CT3DVisionModel and instruction None"):
        load_scorer(tmp_path / "tower")


def test_the_untrained_llm_is_causal_and_mean_pooled(tiny_llm_folder):
    scorer = untrained_scorer(tiny_llm_folder)
    assert scorer.name == f"untrained-{tiny_llm_folder.name}"
    expected = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", bidirectional=False).encode(TEXTS)
    assert scorer.score(TEXTS, TEXTS)[0, 1] == pytest.approx(cosine(*expected.numpy()), abs=1e-5)
