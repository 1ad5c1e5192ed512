import re

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, PreTrainedTokenizerFast

from radtower.labeling.pretrained.tokenizer import load_tokenizer


def test_the_tokenizer_of_a_model_is_loaded(tiny_tokenizer, tmp_path):
    tiny_tokenizer.save_pretrained(tmp_path)
    config = AutoConfig.for_model("llama", vocab_size=len(tiny_tokenizer) + 64)  # padded
    text = "There is no nodule"
    assert load_tokenizer(tmp_path, config)(text)["input_ids"] == tiny_tokenizer(text)["input_ids"]


@pytest.mark.parametrize("model_type", ["bert", "roberta", "xlm-roberta", "deberta-v2", "qwen2", "gemma2"])
def test_refuses_the_empty_one_that_is_made_without_files(model_type, tmp_path):
    config = AutoConfig.for_model(model_type)
    config.save_pretrained(tmp_path)
    found = rf"{re.escape(str(tmp_path))} must hold the tokenizer of the model, got \d tokens of \d+\."
    with pytest.raises(ValueError, match=found):
        load_tokenizer(tmp_path, config)


@pytest.mark.parametrize("model_type", ["llama", "modernbert", "mpnet"])
def test_names_folder_and_fix_where_none_is_made(model_type, tmp_path):
    config = AutoConfig.for_model(model_type)
    config.save_pretrained(tmp_path)
    found = rf"{re.escape(str(tmp_path))} must hold the tokenizer of the model, got none that.*Download"
    with pytest.raises(ValueError, match=found):
        load_tokenizer(tmp_path, config)


def test_refuses_one_that_knows_no_word(tmp_path):
    vocabulary = {"[UNK]": 0} | {f"word{number}": number for number in range(1, 40)}
    words = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, unk_token="[UNK]").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got one of 40 tokens to which every word is unknown"):
        load_tokenizer(tmp_path, AutoConfig.for_model("bert", vocab_size=40))
