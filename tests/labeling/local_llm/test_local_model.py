import hashlib
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from radtower.labeling.local_llm.local_model import load_local_model


def test_a_folder_gives_model_tokenizer_and_the_hash_of_its_weights(chat_llm_folder):
    local = load_local_model(chat_llm_folder, device="cpu")
    digest = hashlib.sha256((chat_llm_folder / "model.safetensors").read_bytes()).digest()
    assert local.weights == hashlib.sha256(digest).hexdigest()
    assert local.model_id == "tiny-chat-llm"
    assert local.max_length == 4096
    assert (local.model.training, local.model.dtype) == (False, torch.float32)
    assert local.tokenizer.chat_template is not None


def test_other_weights_have_another_hash(chat_llm_folder, tmp_path):
    changed = shutil.copytree(chat_llm_folder, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["model.norm.weight"] = weights["model.norm.weight"] + 1
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert load_local_model(changed).weights != load_local_model(chat_llm_folder).weights


def test_precision_is_that_of_the_source_or_as_asked(chat_llm_folder):
    assert load_local_model(chat_llm_folder, dtype="bfloat16").model.dtype is torch.bfloat16
    load_local_model(chat_llm_folder, dtype="float16").model.save_pretrained(chat_llm_folder)
    assert load_local_model(chat_llm_folder).model.dtype is torch.float16


@pytest.mark.parametrize("dtype", ["int8", "float31"])
def test_what_is_no_floating_point_type_is_refused(chat_llm_folder, dtype):
    with pytest.raises(ValueError, match=f"dtype must be a floating-point type .* got '{dtype}'"):
        load_local_model(chat_llm_folder, dtype=dtype)


@pytest.mark.parametrize("path", ["nowhere/at/all", "./nowhere", "nowhere", "a/b.gguf", Path("a/b")])
def test_a_path_that_is_not_there_is_refused_and_not_asked_from_the_hub(path):
    with pytest.raises(FileNotFoundError, match=f"existing folder, a .gguf file or a Hub id, got '{path}'"):
        load_local_model(path)


def test_a_model_without_its_language_model_head_is_refused(tmp_path, chat_llm_folder):
    weights = load_file(chat_llm_folder / "model.safetensors")
    del weights["lm_head.weight"]
    save_file(weights, chat_llm_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"got 1 missing, such as lm_head\.weight"):
        load_local_model(chat_llm_folder)


@pytest.mark.parametrize("device", ["nowhere", "cuda:99"])
def test_a_device_that_is_not_there_is_refused(chat_llm_folder, device):
    with pytest.raises(ValueError, match=f"device must be one that torch has here, got '{device}'"):
        load_local_model(chat_llm_folder, device=device)


def test_damaged_weights_are_refused(chat_llm_folder):
    path = chat_llm_folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"tiny-chat-llm must hold whole weights .* got SafetensorError: "):
        load_local_model(chat_llm_folder)


def test_a_text_classifier_is_refused_though_it_has_all_weights(tmp_path, tiny_llm):
    model = tiny_llm("llama", tie_word_embeddings=True)
    model.save_pretrained(tmp_path / "both")
    config = json.loads((tmp_path / "both" / "config.json").read_text())
    config["architectures"] = ["LlamaForSequenceClassification"]
    (tmp_path / "both" / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="causal language model, got LlamaForSequenceClassification of type"):
        load_local_model(tmp_path / "both")


def test_a_model_without_its_tokenizer_is_refused(chat_llm_folder):
    for path in chat_llm_folder.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ValueError, match="tiny-chat-llm must hold the tokenizer of the model"):
        load_local_model(chat_llm_folder)
