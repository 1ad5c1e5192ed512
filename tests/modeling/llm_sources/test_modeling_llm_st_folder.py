import json

import pytest
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Transformer
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import processors
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
)

from radtower.hub_cards.export import export_model
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

TEXTS = ["nodule", "There is no effusion.", "There is a small nodule in the left upper lobe. " * 4]
SIZES = {
    "vocab_size": 309,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.2,
}
QUERY = "Instruct: Given a report, find similar ones\nQuery:"


@pytest.fixture
def write_st_folder(tiny_tokenizer, tmp_path):
    """Let sentence-transformers save a tiny model; gives the folder and the model."""

    def write(pooling="lasttoken", normalize=True, model=None, name="st", max_length=60, **settings):
        tiny_tokenizer.save_pretrained(tmp_path / "plain")
        backbone = Qwen3Model(Qwen3Config(**SIZES, head_dim=8)) if model is None else model
        backbone.save_pretrained(tmp_path / "plain")
        transformer = Transformer(str(tmp_path / "plain"), max_seq_length=max_length)
        modules = [transformer, Pooling(32, pooling)] + [Normalize()] * normalize
        st = SentenceTransformer(modules=modules, device="cpu", **settings)
        st.save_pretrained(str(tmp_path / name))
        return tmp_path / name, st

    return write


def _assert_same(st, encoder, **prompt):
    expected = st.encode(TEXTS, convert_to_tensor=True, show_progress_bar=False, **prompt)
    instruction = {"instruction": "Given a report, find similar ones"} if prompt else {}
    size = expected.norm(dim=1, keepdim=True)
    torch.testing.assert_close(
        encoder.encode(TEXTS, **instruction) / size, expected / size, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(
    ("mode", "pooling"), [("lasttoken", "last_token"), ("mean", "mean"), ("cls", "first_token")]
)
def test_the_folder_decides_on_pooling_length_and_direction(write_st_folder, mode, pooling, normalize):
    folder, st = write_st_folder(mode, normalize)
    encoder = LLMBiEncoder.from_llm(folder)
    config = encoder.config
    assert (config.pooling, config.normalize, config.max_length) == (pooling, normalize, 60)
    assert config.bidirectional is False
    assert not encoder.model.config.name_or_path
    _assert_same(st, encoder)


def test_the_layout_of_qwen3_embedding(write_st_folder, tiny_tokenizer):
    # As published: the tokenizer appends the token that is pooled, and pads on the left.
    eos = tiny_tokenizer.eos_token_id
    tiny_tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="$A <eos>", pair="$A <eos> $B <eos>", special_tokens=[("<eos>", eos)]
    )
    folder, st = write_st_folder(prompts={"query": QUERY, "document": ""})
    encoder = LLMBiEncoder.from_llm(folder)
    assert encoder.config.instruction_template == "Instruct: {instruction}\nQuery:"
    assert encoder.tokenize(TEXTS[0])["input_ids"][0, -1] == eos
    _assert_same(st, encoder)
    _assert_same(st, encoder, prompt_name="query")
    plain, query = encoder.encode(TEXTS), encoder.encode(TEXTS, "Given a report, find similar ones")
    assert (plain - query).abs().max() > 0.01


def test_what_reads_both_ways_stays_bidirectional(write_st_folder):
    folder, st = write_st_folder("mean", model=LlamaModel(LlamaConfig(**SIZES, is_causal=False)))
    encoder = LLMBiEncoder.from_llm(folder)
    assert encoder.config.bidirectional is True
    _assert_same(st, encoder)


def test_the_caller_overrules_the_folder(write_st_folder):
    folder, _ = write_st_folder("lasttoken", True)
    config = LLMBiEncoder.from_llm(folder, pooling="mean", normalize=False, bidirectional=True).config
    assert (config.pooling, config.normalize, config.bidirectional) == ("mean", False, True)


def test_an_older_folder_has_switches_and_a_subfolder(write_st_folder):
    folder, st = write_st_folder("cls", False)
    switches = {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": True,
        "pooling_mode_mean_tokens": False,
    }
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(switches))
    backbone = folder / "0_Transformer"
    backbone.mkdir()
    for path in [path for path in folder.iterdir() if path.is_file() and path.name != "modules.json"]:
        if path.name != "config_sentence_transformers.json":
            path.rename(backbone / path.name)
    (backbone / "sentence_bert_config.json").write_text('{"max_seq_length": 50, "do_lower_case": false}')
    modules = json.loads((folder / "modules.json").read_text())
    modules[0]["path"] = "0_Transformer"
    modules[0]["type"] = "sentence_transformers.models.Transformer"
    (folder / "modules.json").write_text(json.dumps(modules))
    encoder = LLMBiEncoder.from_llm(folder)
    assert (encoder.config.pooling, encoder.config.max_length) == ("first_token", 50)
    st.max_seq_length = 50
    _assert_same(st, encoder)


def test_texts_are_cut_where_the_decoder_has_no_more_positions(write_st_folder):
    folder, _ = write_st_folder(max_length=5000)
    assert LLMBiEncoder.from_llm(folder).config.max_length == 128


def test_a_default_prompt_stands_in_front_of_every_text(write_st_folder):
    folder, st = write_st_folder(prompts={"text": "Describe "}, default_prompt_name="text")
    encoder = LLMBiEncoder.from_llm(folder)
    assert encoder.config.text_prefix == "Describe "
    _assert_same(st, encoder)
    folder, _ = write_st_folder("mean", name="m", prompts={"text": "Describe "}, default_prompt_name="text")
    with pytest.raises(ValueError, match="must not be pooled, got 'text' with pooling 'mean'"):
        LLMBiEncoder.from_llm(folder)


def test_an_export_of_an_imported_folder_gives_the_same_vectors_again(write_st_folder, tmp_path):
    folder, st = write_st_folder()
    LLMBiEncoder.from_llm(folder).save_pretrained(tmp_path / "ours")
    exported = export_model(tmp_path / "ours", tmp_path / "export")
    again = SentenceTransformer(str(exported), trust_remote_code=True, device="cpu")
    vectors, expected = again.encode(TEXTS), st.encode(TEXTS)
    assert abs(vectors - expected).max() < 1e-6
    with pytest.raises(ValueError, match="got one of ours, llm_biencoder"):
        LLMBiEncoder.from_llm(exported)


@pytest.mark.parametrize("mode", ["max", "weightedmean", ["mean", "cls"]])
def test_refuses_a_pooling_that_encoders_do_not_have(write_st_folder, mode):
    folder, _ = write_st_folder("mean")
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode": mode}))
    with pytest.raises(
        ValueError, match=r"must be one of \['cls', 'lasttoken', 'mean'\], got .*(max|mean|cls)"
    ):
        LLMBiEncoder.from_llm(folder)


@pytest.mark.parametrize("path", ["../other", "/other", "a\\\\b"])
@pytest.mark.parametrize("position", [0, 1])
def test_refuses_modules_outside_the_folder(write_st_folder, path, position):
    folder, _ = write_st_folder("mean", False)
    modules = json.loads((folder / "modules.json").read_text())
    modules[position]["path"] = path
    (folder / "modules.json").write_text(json.dumps(modules))
    with pytest.raises(ValueError, match=r"in a model folder must stay in it, got '(\.\./|/|a\\\\)"):
        LLMBiEncoder.from_llm(folder)


def test_refuses_modules_that_encoders_do_not_have(write_st_folder, tmp_path):
    folder, st = write_st_folder("mean", False)
    st.append(Dense(32, 16))
    st.save_pretrained(str(tmp_path / "dense"))
    with pytest.raises(ValueError, match="got Dense at position 2"):
        LLMBiEncoder.from_llm(tmp_path / "dense")
    modules = json.loads((folder / "modules.json").read_text())
    (folder / "modules.json").write_text(json.dumps(modules[:1]))
    with pytest.raises(ValueError, match=r"must end in a pooling, got \['Transformer'\]"):
        LLMBiEncoder.from_llm(folder)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"do_lower_case": True}, "do_lower_case of a .* must be False, got True"),
        ({"transformer_task": "fill-mask"}, "must be 'feature-extraction', got 'fill-mask'"),
        ({"module_output_name": "scores"}, "must be 'token_embeddings', got 'scores'"),
        ({"query_expansion": {"length": 32}}, r"query_expansion .* got \{'length': 32\}"),
        (
            {"modality_config": {"text": {"method": "forward", "method_output_name": "pooler_output"}}},
            r"modality_config\.text\.method_output_name .* be 'last_hidden_state', got 'pooler_output'",
        ),
        (
            {"modality_config": {"text": {"method": "get_text_features"}}},
            r"modality_config\.text\.method .* be 'forward', got 'get_text_features'",
        ),
        ({"modality_config": {"text": {}, "message": {}}}, "must be of text alone, got 'message'"),
        (
            {"processing_kwargs": {"text": {"add_special_tokens": False}}},
            r"processing_kwargs\.text\.add_special_tokens .* be True, got False",
        ),
        ({"processing_kwargs": {"common": {"truncation": False}}}, "truncation .* be True, got False"),
        ({"processing_kwargs": {"text": {"stride": 3}}}, r"got processing_kwargs\.text\.stride 3"),
        ({"processor_kwargs": {"add_eos_token": True}}, r"got processor_kwargs\.add_eos_token True"),
        ({"tokenizer_args": {"truncation_side": "left"}}, r"got tokenizer_args\.truncation_side 'left'"),
        ({"config_args": {"is_causal": False}}, r"got config_args\.is_causal False"),
        ({"model_args": {"num_labels": 3}}, r"got model_args\.num_labels 3"),
        ({"query_length": 32}, "query_length .* must be None, got 32"),
        ({"rotate": "left"}, "must be known, got rotate 'left'"),
    ],
)
def test_refuses_a_transformer_module_that_does_more(write_st_folder, settings, message):
    folder, _ = write_st_folder("mean")
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        LLMBiEncoder.from_llm(folder)


@pytest.mark.parametrize(
    ("settings", "length"),
    [
        ({"processing_kwargs": {"text": {"max_length": 9, "truncation": True}}}, 9),
        ({"processing_kwargs": {"text": {"max_length": 9}, "common": {"max_length": 12}}}, 12),
        ({"tokenizer_args": {"model_max_length": 11, "padding_side": "right"}, "max_seq_length": 20}, 11),
        ({"max_seq_length": 20}, 20),
        ({"model_args": {"dtype": "float32"}, "unpad_inputs": False}, 60),
    ],
)
def test_every_length_of_the_folder_is_honored(write_st_folder, settings, length):
    folder, _ = write_st_folder("mean", False)
    path = folder / "sentence_bert_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    encoder = LLMBiEncoder.from_llm(folder)
    assert encoder.config.max_length == length
    _assert_same(SentenceTransformer(str(folder), device="cpu"), encoder)


@pytest.mark.parametrize("normalize", [True, False])
def test_a_matryoshka_cut_of_the_folder_is_honored(write_st_folder, normalize):
    folder, st = write_st_folder("mean", normalize, truncate_dim=8)
    encoder = LLMBiEncoder.from_llm(folder)
    assert encoder.config.embedding_dim == 8
    expected = st.encode(TEXTS, convert_to_tensor=True)
    assert expected.shape == (3, 8)
    cosine = torch.nn.functional.cosine_similarity(encoder.encode(TEXTS), expected)
    torch.testing.assert_close(cosine, torch.ones(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model_type": "SparseEncoder"}, "must be 'SentenceTransformer', got 'SparseEncoder'"),
        ({"quantize": "int8"}, "must be known, got quantize 'int8'"),
    ],
)
def test_refuses_a_folder_of_another_kind(write_st_folder, settings, message):
    folder, _ = write_st_folder("mean")
    path = folder / "config_sentence_transformers.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(ValueError, match=message):
        LLMBiEncoder.from_llm(folder)


def test_refuses_what_sentence_transformers_saved_of_a_chat_model(write_st_folder, tiny_tokenizer):
    tiny_tokenizer.chat_template = "{% for message in messages %}Describe {{ message.content }}{% endfor %}"
    folder, _ = write_st_folder("mean")
    with pytest.raises(ValueError, match="must be of text alone, got 'message': it reads texts as parts"):
        LLMBiEncoder.from_llm(folder)


def test_refuses_what_is_no_decoder(write_st_folder, tiny_tokenizer, tmp_path):
    sizes = {name: value for name, value in SIZES.items() if name != "num_key_value_heads"}
    folder, _ = write_st_folder("mean", model=BertModel(BertConfig(**sizes)))
    with pytest.raises(ValueError, match="decoder with its blocks in layers, got bert"):
        LLMBiEncoder.from_llm(folder)
    GPT2Model(GPT2Config(vocab_size=309, n_embd=32, n_layer=1, n_head=4)).save_pretrained(tmp_path / "gpt2")
    with pytest.raises(ValueError, match="decoder with its blocks in layers, got gpt2"):
        LLMBiEncoder.from_llm(tmp_path / "gpt2", pooling="mean")
