from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertModel,
    BertTokenizer,
    CLIPConfig,
    CLIPModel,
    DistilBertConfig,
    DistilBertModel,
    RobertaConfig,
    RobertaModel,
    T5Config,
    T5Model,
    ViTConfig,
    ViTModel,
)

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.clip.clip_run import ClipRun
from radtower.training.towers.load_text_tower import load_text_tower

TEXTS = ["There is no nodule", "small effusion"]


@pytest.fixture
def run(text_folder) -> ClipRun:
    return ClipRun(manifest="m.csv", vision="v", text=str(text_folder), max_length=40)


@pytest.fixture
def bert_folder(tmp_path, tiny_tokenizer):
    config = BertConfig(
        vocab_size=len(tiny_tokenizer),
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=48,
    )
    BertModel(config).save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


def test_our_own_tower_comes_with_its_tokenizer_and_the_length_of_the_run(run, text_folder):
    tower, tokenizer = load_text_tower(run)
    expected = LLMBiEncoder.from_pretrained(text_folder)
    assert (tower.config.max_length, tower.config.pooling) == (40, "mean")
    assert tokenizer("no nodule").input_ids == expected.tokenizer("no nodule").input_ids
    torch.testing.assert_close(tower.encode_text(TEXTS), expected.encode_text(TEXTS), rtol=1e-5, atol=1e-5)


def test_an_llm_becomes_an_encoder_as_the_run_says(run, tiny_llm_folder):
    llm = replace(
        run,
        text=str(tiny_llm_folder),
        llm_pooling="last_token",
        num_llm_layers=1,
        bidirectional=False,
        hard_prompt="Describe",
        soft_prompt="nodule effusion",
    )
    tower, tokenizer = load_text_tower(llm)
    expected = LLMBiEncoder.from_llm(
        tiny_llm_folder, pooling="last_token", num_hidden_layers=1, bidirectional=False, max_length=40
    )
    plain, _ = load_text_tower(replace(llm, hard_prompt="", soft_prompt=""))
    torch.testing.assert_close(plain.encode_text(TEXTS), expected.encode_text(TEXTS), rtol=1e-5, atol=1e-5)
    expected.set_prompt("Describe", "nodule effusion")
    torch.testing.assert_close(tower.encode_text(TEXTS), expected.encode_text(TEXTS), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(tower.encode_text(TEXTS), plain.encode_text(TEXTS), atol=1e-2)
    assert (len(tower.model.layers), tower.config.bidirectional, tower.config.max_length) == (1, False, 40)
    assert tokenizer is tower.tokenizer
    # It names itself a causal language model, so its pooling need not be said.
    assert load_text_tower(replace(run, text=str(tiny_llm_folder)))[0].config.pooling == "latent_attention"


def test_vectors_of_an_llm_have_length_1_where_the_run_says_so(run, tiny_llm_folder):
    llm = replace(run, text=str(tiny_llm_folder), llm_pooling="mean")
    plain, scaled = (
        load_text_tower(replace(llm, llm_normalize=n))[0].encode_text(TEXTS) for n in (None, True)
    )
    torch.testing.assert_close(scaled, torch.nn.functional.normalize(plain, dim=-1), atol=1e-6, rtol=0)
    assert (plain.norm(dim=1) > 1.1).all()


def test_padding_between_prompt_and_text_is_as_the_run_says_or_else_the_tower(run, tiny_llm_folder, tmp_path):
    prompt = {"text": str(tiny_llm_folder), "llm_pooling": "mean", "hard_prompt": "Describe"}
    legacy, _ = load_text_tower(replace(run, **prompt, prompt_padding="legacy_middle"))
    plain, _ = load_text_tower(replace(run, **prompt))
    assert (legacy.config.prompt_padding, plain.config.prompt_padding) == ("legacy_middle", "contiguous")
    assert not torch.allclose(legacy.encode_text(TEXTS)[1], plain.encode_text(TEXTS)[1], atol=1e-2)
    legacy.save_pretrained(tmp_path / "legacy")
    ours = replace(run, text=str(tmp_path / "legacy"))
    assert load_text_tower(ours)[0].config.prompt_padding == "legacy_middle"
    cured, _ = load_text_tower(replace(ours, prompt_padding="contiguous"))
    torch.testing.assert_close(cured.encode_text(TEXTS), plain.encode_text(TEXTS), atol=1e-5, rtol=1e-5)
    with pytest.raises(ValueError, match=r"feature_cache must be None where .* legacy_middle, got 'kept'"):
        load_text_tower(replace(ours, feature_cache="kept"))
    assert load_text_tower(replace(ours, prompt_padding="contiguous", feature_cache="kept"))


def test_padding_between_prompt_and_text_needs_a_prompt(run):
    with pytest.raises(ValueError, match=r"prompt_padding must be contiguous for a text tower without"):
        load_text_tower(replace(run, prompt_padding="legacy_middle"))
    assert load_text_tower(replace(run, prompt_padding="contiguous"))


def test_a_text_model_of_transformers_is_taken_as_it_is(run, bert_folder):
    tower, tokenizer = load_text_tower(replace(run, text=str(bert_folder)))
    assert type(tower) is BertModel
    ids = torch.tensor([tokenizer(TEXTS[0]).input_ids])
    with torch.no_grad():
        expected = BertModel.from_pretrained(bert_folder).eval()(ids).pooler_output
        torch.testing.assert_close(tower(ids).pooler_output, expected, rtol=1e-5, atol=1e-5)


def test_a_tokenizer_of_bert_gives_no_token_types_even_when_saved(run, bert_folder, tmp_path):
    (tmp_path / "vocab.txt").write_text("[PAD]\n[UNK]\n[CLS]\n[SEP]\n[MASK]\nno\nnodule\n")
    BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(bert_folder)
    _, tokenizer = load_text_tower(replace(run, text=str(bert_folder)))
    tokenizer.save_pretrained(tmp_path / "saved")
    expected = {"input_ids": [2, 5, 6, 3], "attention_mask": [1, 1, 1, 1]}
    assert dict(tokenizer("no nodule")) == expected
    assert dict(AutoTokenizer.from_pretrained(tmp_path / "saved")("no nodule")) == expected


def test_a_pooler_may_be_missing_where_it_is_not_read(run, bert_folder):
    path = bert_folder / "model.safetensors"
    weights = {name: value for name, value in load_file(path).items() if not name.startswith("pooler")}
    save_file(weights, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"BertModel must find .* without 2, such as pooler\.dense\.bias"):
        load_text_tower(replace(run, text=str(bert_folder)))
    tower, _ = load_text_tower(replace(run, text=str(bert_folder), text_pooling="mean"))
    assert type(tower) is BertModel


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"llm_pooling": "mean"}, "llm_pooling must be left out for .* got {'llm_pooling': 'mean'}"),
        ({"llm_normalize": False}, "llm_normalize must be left out for .* got {'llm_normalize': False}"),
        ({"num_llm_layers": 1, "bidirectional": True}, "num_llm_layers, bidirectional must be left out"),
    ],
)
def test_refuses_settings_of_an_llm_for_a_tower_that_is_none(run, settings, match):
    with pytest.raises(ValueError, match=match):
        load_text_tower(replace(run, **settings))


def test_refuses_what_a_text_model_of_transformers_cannot_read(run, bert_folder):
    bert = replace(run, text=str(bert_folder))
    with pytest.raises(ValueError, match=r"soft_prompt must be left out .* got {'soft_prompt': 'nodule'}"):
        load_text_tower(replace(bert, soft_prompt="nodule"))
    with pytest.raises(ValueError, match=r"prompt_padding must be left out .* got {'prompt_padding': 'cont"):
        load_text_tower(replace(bert, prompt_padding="contiguous"))
    with pytest.raises(ValueError, match=r"max_length must be at most the 48 positions .* got 49"):
        load_text_tower(replace(bert, max_length=49))


TINY = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}


def test_the_text_half_of_a_dual_encoder_is_taken(run, bert_folder):
    text = {**TINY, "vocab_size": 309, "max_position_embeddings": 48, "eos_token_id": 2}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config={**TINY, "image_size": 8, "patch_size": 4}))
    clip.save_pretrained(bert_folder)
    tower, tokenizer = load_text_tower(replace(run, text=str(bert_folder)))
    ids = torch.tensor([[*tokenizer(TEXTS[0]).input_ids, 2]])
    with torch.no_grad():
        expected = clip.eval().text_model(ids).pooler_output
        torch.testing.assert_close(tower(ids).pooler_output, expected, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"max_length must be at most the 48 positions .* got 49"):
        load_text_tower(replace(run, text=str(bert_folder), max_length=49))


def test_positions_of_roberta_begin_behind_the_padding(run, bert_folder):
    config = RobertaConfig(**TINY, vocab_size=309, max_position_embeddings=48, pad_token_id=1)
    RobertaModel(config).save_pretrained(bert_folder)
    tower, _ = load_text_tower(replace(run, text=str(bert_folder), max_length=46))
    ids = torch.full((1, 47), 5)
    assert tower(ids[:, :46]).last_hidden_state.shape == (1, 46, 16)
    with pytest.raises(RuntimeError, match="out of bounds"):
        tower(ids)
    with pytest.raises(ValueError, match=r"max_length must be at most the 46 positions .* got 47"):
        load_text_tower(replace(run, text=str(bert_folder), max_length=47))


def test_refuses_a_model_that_reads_no_text_or_also_writes_it(run, bert_folder):
    bert = replace(run, text=str(bert_folder))
    ViTModel(ViTConfig(**TINY, image_size=8, patch_size=4)).save_pretrained(bert_folder)
    with pytest.raises(ValueError, match=r"text must be a text model .* got a vit in .* Take bert"):
        load_text_tower(bert)
    t5 = T5Config(vocab_size=309, d_model=16, d_kv=8, d_ff=24, num_layers=1, num_heads=2)
    T5Model(t5).save_pretrained(bert_folder)
    with pytest.raises(ValueError, match=r"text must be a text model .* got a t5 in .* Take bert"):
        load_text_tower(bert)


def test_refuses_a_pooling_that_the_tower_has_not(run, bert_folder):
    config = DistilBertConfig(vocab_size=309, dim=16, hidden_dim=24, n_layers=1, n_heads=2)
    DistilBertModel(config).save_pretrained(bert_folder)
    with pytest.raises(ValueError, match=r"must fit, got a distilbert and 'pooler': pooling must be cls"):
        load_text_tower(replace(run, text=str(bert_folder)))
    tower, _ = load_text_tower(replace(run, text=str(bert_folder), text_pooling="mean"))
    assert type(tower) is DistilBertModel
