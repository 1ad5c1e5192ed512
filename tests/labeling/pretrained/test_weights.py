import json

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    LlamaForSequenceClassification,
)

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.labeling.pretrained.weights import load_weights


@pytest.fixture
def llm(tiny_llm_folder, tmp_path):
    model = AutoModelForCausalLM.from_pretrained(tiny_llm_folder)
    model.save_pretrained(tmp_path / "llm")
    return tmp_path / "llm"


def test_a_model_comes_with_the_names_of_what_it_lacks(llm):
    assert load_weights(AutoModelForCausalLM, llm)[1] == []
    model, missing = load_weights(AutoModelForSequenceClassification, llm)
    assert isinstance(model, LlamaForSequenceClassification)
    assert missing == ["score.weight"]


def test_refuses_our_labeler_as_a_language_model(tiny_text_config, llm):
    config = LLMBiEncoderConfig(
        **tiny_text_config.to_dict() | {"architectures": ["LLMBiEncoderForSequenceClassification"]}
    )
    config.save_pretrained(llm)
    found = (
        "must be a causal language model, got LLMBiEncoderForSequenceClassification of type 'llm_biencoder'. "
        "Use the backend 'encoder'"
    )
    with pytest.raises(ValueError, match=found):
        load_weights(AutoModelForCausalLM, llm)


def test_refuses_what_is_no_text_classifier(llm):
    (llm / "config.json").write_text(json.dumps({"model_type": "vit"}))
    with pytest.raises(ValueError, match=r"must be a text classifier, got a model of type 'vit'. Use the"):
        load_weights(AutoModelForSequenceClassification, llm)


@pytest.mark.parametrize("size", [4, 2000, -1])
def test_refuses_weights_that_were_cut_off(llm, size):
    path = llm / "model.safetensors"
    path.write_bytes(path.read_bytes()[:size])
    with pytest.raises(ValueError, match=r"llm must hold whole weights that fit .* got SafetensorError: "):
        load_weights(AutoModelForCausalLM, llm)


def test_refuses_weights_of_another_shape(llm):
    config = json.loads((llm / "config.json").read_text())
    (llm / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(ValueError, match=r"llm must hold whole weights that fit .* got RuntimeError: "):
        load_weights(AutoModelForCausalLM, llm)


def test_refuses_a_part_that_is_not_there(llm):
    (llm / "model.safetensors").rename(llm / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (llm / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"must hold whole weights .* got FileNotFoundError: .*00002"):
        load_weights(AutoModelForCausalLM, llm)
