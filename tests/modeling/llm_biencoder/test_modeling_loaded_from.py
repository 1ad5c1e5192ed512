import copy
import pickle
import shutil

import pytest
import torch
from transformers import AutoModel, AutoTokenizer

import radtower  # noqa: F401 -- registers the families
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.llm_biencoder.modeling_loaded_from import LoadedFrom
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel

TEXTS = ["There is no nodulation.", "small effusion"]


@pytest.fixture
def parent(tiny_text_config, tiny_tokenizer, tmp_path):
    """A folder with a tokenizer and, in ``sub``, an encoder with another one."""
    tiny_tokenizer.save_pretrained(tmp_path / "parent")
    encoder = LLMBiEncoder(tiny_text_config).eval()
    tiny_tokenizer.add_tokens(["nodulation"])
    encoder.tokenizer = tiny_tokenizer
    encoder.resize_token_embeddings(len(tiny_tokenizer))
    encoder.save_pretrained(tmp_path / "parent" / "sub")
    return tmp_path / "parent"


@pytest.mark.parametrize("load", [LLMBiEncoder.from_pretrained, AutoModel.from_pretrained])
def test_the_tokenizer_of_a_subfolder_is_taken_and_not_that_of_its_parent(parent, load):
    encoder = load(parent, subfolder="sub").eval()
    expected = LLMBiEncoder.from_pretrained(parent / "sub").eval()
    assert len(encoder.tokenizer) == len(AutoTokenizer.from_pretrained(parent)) + 1
    torch.testing.assert_close(encoder.encode(TEXTS), expected.encode(TEXTS), atol=1e-5, rtol=0)


def test_a_subfolder_without_a_tokenizer_does_not_borrow_one(parent):
    for path in (parent / "sub").glob("token*"):
        path.unlink()
    encoder = LLMBiEncoder.from_pretrained(parent, subfolder="sub")
    with pytest.raises(OSError, match=f"tokenizer must lie beside .* loads in '{parent / 'sub'}'"):
        _ = encoder.tokenizer


def test_a_relative_folder_is_found_from_another_working_directory(parent, monkeypatch, tmp_path):
    monkeypatch.chdir(parent)
    encoder = LLMBiEncoder.from_pretrained("sub")
    loaded, _ = LLMBiEncoder.from_pretrained("sub", output_loading_info=True)
    # Where the relative path leads afterwards: to another tokenizer.
    shutil.copytree(parent, tmp_path / "elsewhere" / "sub", ignore=shutil.ignore_patterns("sub"))
    monkeypatch.chdir(tmp_path / "elsewhere")
    expected = len(AutoTokenizer.from_pretrained(parent / "sub"))
    assert len(encoder.tokenizer) == len(loaded.tokenizer) == expected


def test_a_classifier_knows_where_the_tokenizer_of_its_encoder_lies(parent, monkeypatch, tmp_path):
    monkeypatch.chdir(parent)
    classifier = LLMBiEncoderForSequenceClassification.from_pretrained("sub", num_labels=2)
    monkeypatch.chdir(tmp_path)
    assert len(classifier.encoder.tokenizer) == len(AutoTokenizer.from_pretrained(parent / "sub"))


def test_the_processor_of_a_dual_tower_is_found_in_the_same_way(tiny_medclip, tmp_path, monkeypatch):
    tiny_medclip.save_pretrained(tmp_path / "sub")
    monkeypatch.chdir(tmp_path)
    model = MedCLIPModel.from_pretrained(".", subfolder="sub").eval()
    monkeypatch.chdir("/")
    assert model.processor.max_length == 64
    torch.testing.assert_close(model.encode_text(TEXTS), tiny_medclip.encode_text(TEXTS), atol=1e-5, rtol=0)


def test_arguments_of_loading_are_kept_for_the_tokenizer(tmp_path, monkeypatch, tiny_text_config):
    monkeypatch.chdir(tmp_path)
    settings = {
        "cache_dir": "cache",
        "revision": "v2",
        "subfolder": "sub",
        "token": "secret",
        "dtype": "auto",
    }
    source = LoadedFrom.of("owner/name", settings)
    encoder = LLMBiEncoder(tiny_text_config)
    calls = []

    class AutoThing:
        @staticmethod
        def from_pretrained(path, **kwargs):
            calls.append((path, kwargs))
            return "thing"

    assert source.load(AutoThing, encoder) == "thing"
    expected = {
        "cache_dir": str(tmp_path / "cache"),
        "revision": "v2",
        "subfolder": "sub",
        "token": "secret",
        "trust_remote_code": False,
    }
    assert calls == [("owner/name", expected)]
    encoder.config._commit_hash = "abc"  # of the weights: a branch may have moved since
    source.load(AutoThing, encoder)
    assert calls[1][1]["revision"] == "abc"


def test_an_access_token_is_in_no_copy_pickle_file_or_text(parent, tmp_path):
    encoder = LLMBiEncoder.from_pretrained(parent / "sub", token="hf_secret")
    assert encoder._loaded_from.settings["token"] == "hf_secret"
    for twin in (copy.deepcopy(encoder), pickle.loads(pickle.dumps(encoder))):
        assert dict(twin._loaded_from.settings) == {}
        assert twin._loaded_from.path == str(parent / "sub")
    assert b"hf_secret" not in pickle.dumps(encoder)
    assert "hf_secret" not in repr(encoder._loaded_from) + str(encoder.config)
    encoder.save_pretrained(tmp_path / "out")
    assert not [path for path in (tmp_path / "out").iterdir() if b"hf_secret" in path.read_bytes()]


def test_a_model_that_was_not_loaded_has_no_tokenizer_in_the_working_directory(
    parent, tiny_text_config, monkeypatch
):
    monkeypatch.chdir(parent)
    with pytest.raises(OSError, match="got none that loads in ''"):
        _ = LLMBiEncoder(tiny_text_config).tokenizer
