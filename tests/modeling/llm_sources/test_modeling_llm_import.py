import json
import logging

import pytest
import torch
from gguf import GGUFWriter
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
)

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_sources.modeling_llm_import import check_public_layout, find_llm
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

TEXTS = ["There is no effusion.", "nodule", "There is a small nodule in the left upper lobe."]
CLOSE = {"atol": 1e-6, "rtol": 0}
# What differs in the config.json of the public 1.2 B model, as its base publishes it.
FULL_SIZE = {
    "head_dim": 64,
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
}


@torch.no_grad()
@pytest.mark.parametrize("num_shards", [1, 3])
def test_the_public_layout_loads_with_its_head_and_without_its_code(
    write_public_folder, public_encoder, num_shards
):
    encoder = LLMBiEncoder.from_llm(write_public_folder(num_shards=num_shards))
    before, after = public_encoder.state_dict(), encoder.state_dict()
    assert before.keys() == after.keys()
    assert len(after) == 2 * 9 + 2 + 9
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(encoder.encode_text(TEXTS), public_encoder.encode_text(TEXTS), **CLOSE)
    query = "Describe!@#$%^&*()There is no nodule"
    torch.testing.assert_close(
        encoder.compute_similarities(query, TEXTS), public_encoder.compute_similarities(query, TEXTS), **CLOSE
    )


def test_the_public_layout_is_read_with_its_legacy_configuration(write_public_folder, public_config):
    config = LLMBiEncoder.from_llm(write_public_folder()).config
    assert (config.pooling, config.latent_variant, config.num_latents) == ("latent_attention", "v0", 6)
    assert (config.num_latent_heads, config.bidirectional) == (8, True)
    assert config.text_config.is_causal is False
    assert config.text_config.rope_parameters == public_config["rope_scaling"] | {"rope_theta": 500000.0}
    assert "auto_map" not in config.text_config.to_dict(), "reloading would look for remote code"
    assert not config.text_config.name_or_path, "a local path"


def test_the_public_layout_loads_in_the_precision_asked_for(write_public_folder):
    folder = write_public_folder()
    for dtype in (torch.float32, torch.bfloat16):  # the folder says bfloat16, and holds float32
        encoder = LLMBiEncoder.from_llm(folder, dtype=dtype)
        assert {parameter.dtype for parameter in encoder.parameters()} == {dtype}


@torch.no_grad()
def test_the_head_is_recognized_by_its_tensors_too(write_public_folder, public_encoder, public_config):
    config = public_config | {"architectures": ["LlamaBiModel"]}
    encoder = LLMBiEncoder.from_llm(write_public_folder(config=config))
    torch.testing.assert_close(encoder.encode_text(TEXTS), public_encoder.encode_text(TEXTS), **CLOSE)


@torch.no_grad()
def test_the_first_releases_had_no_prefix(write_public_folder, public_encoder):
    def strip(tensors):
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    encoder = LLMBiEncoder.from_llm(write_public_folder(strip))
    torch.testing.assert_close(encoder.encode_text(TEXTS), public_encoder.encode_text(TEXTS), **CLOSE)


@torch.no_grad()
def test_the_stored_head_is_left_out_only_by_name(write_public_folder, public_encoder):
    encoder = LLMBiEncoder.from_llm(write_public_folder(), pooling="mean")
    assert encoder.latent_attn is None
    hidden = public_encoder(**public_encoder.tokenize(TEXTS[0])).last_hidden_state[0]
    torch.testing.assert_close(encoder.encode_text(TEXTS[0])[0], hidden.mean(dim=0), **CLOSE)


@torch.no_grad()
def test_lower_layers_of_the_public_layout(write_public_folder, public_encoder):
    encoder = LLMBiEncoder.from_llm(write_public_folder(), num_hidden_layers=1)
    assert len(encoder.model.layers) == encoder.config.text_config.num_hidden_layers == 1
    public_encoder.model.layers = public_encoder.model.layers[:1]
    torch.testing.assert_close(encoder.encode_text(TEXTS), public_encoder.encode_text(TEXTS), **CLOSE)


def test_a_full_size_checkpoint_has_exactly_155_tensors(public_config):
    fields = {k: v for k, v in public_config.items() if k not in ("torch_dtype", "auto_map")}
    config = LlamaConfig(**fields | FULL_SIZE)
    with torch.device("meta"):
        encoder = LLMBiEncoder(LLMBiEncoderConfig(text_config=config))
    shapes = {name: tensor.shape for name, tensor in encoder.state_dict().items()}
    assert len(shapes) == 155
    assert len([name for name in shapes if name.startswith("latent_attn.")]) == 9
    assert sum(shape.numel() for shape in shapes.values()) == 1_235_814_400 + 26_226_688
    assert shapes["model.layers.15.self_attn.k_proj.weight"] == (512, 2048)
    check_public_layout(shapes, config)
    del shapes["model.layers.15.mlp.up_proj.weight"]
    with pytest.raises(ValueError, match=r"hold the 155 tensors .* got 1 missing, such as model\.layers\.15"):
        check_public_layout(shapes, config)


def _drop(name):
    return lambda tensors: tensors.pop(name)


def _add(name):
    return lambda tensors: tensors.update({name: torch.zeros(3)})


def _reshape(name):
    return lambda tensors: tensors.update({name: torch.zeros(5, 7)})


def _rename(old, new):
    def rename(tensors):
        for name in [name for name in tensors if name.startswith(old)]:
            tensors[new + name.removeprefix(old)] = tensors.pop(name)

    return rename


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_drop("latent_attn.mlp.2.bias"), r"1 missing, such as latent_attn\.mlp\.2\.bias"),
        (_drop("latent_attn.latents"), r"1 missing, such as latent_attn\.latents"),
        (
            _rename("latent_attn.", "head."),
            r"9 missing, such as latent_attn\.latents; 9 unknown, such as head",
        ),
        (_drop("model.norm.weight"), r"1 missing, such as model\.norm\.weight"),
        (_add("lm_head.weight"), r"1 unknown, such as lm_head\.weight"),
        (_add("latent_attn.norm.weight"), r"1 unknown, such as latent_attn\.norm\.weight"),
        (
            _rename("model.", "model.model."),
            r"20 missing, such as .*; 20 unknown, such as model\.model\.embed",
        ),
        (_reshape("latent_attn.latents"), r"1 of another shape, such as latent_attn\.latents"),
        (_reshape("latent_attn.mlp.0.bias"), r"1 of another shape, such as latent_attn\.mlp\.0\.bias"),
        (_reshape("model.layers.1.mlp.up_proj.weight"), r"1 of another shape, such as model\.layers\.1\.mlp"),
    ],
)
def test_refuses_a_public_layout_that_is_not_complete_and_exact(write_public_folder, change, message):
    with pytest.raises(ValueError, match=f"hold the 29 tensors .* got {message}"):
        LLMBiEncoder.from_llm(write_public_folder(change), pooling="mean")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_latents": 7}, "num_latents must be that of the stored head, 6, got 7"),
        (
            {"latent_variant": "prenorm"},
            "latent_variant must be that of the stored head, 'v0', got 'prenorm'",
        ),
    ],
)
def test_refuses_another_latent_attention_than_the_stored_one(write_public_folder, fields, message):
    with pytest.raises(ValueError, match=message):
        LLMBiEncoder.from_llm(write_public_folder(), **fields)


def test_a_shard_that_is_not_there_is_named(write_public_folder):
    folder = write_public_folder(num_shards=3)
    (folder / "model-00002-of-00003.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"got .*public without model-00002-of-00003\.safetensors"):
        LLMBiEncoder.from_llm(folder)


@pytest.mark.parametrize("is_public", [True, False])
def test_a_pickle_is_never_loaded(write_public_folder, tiny_llm_folder, tmp_path, is_public):
    if is_public:
        folder = write_public_folder()
        (folder / "model.safetensors").unlink()
    else:
        folder = tmp_path / "plain"
        folder.mkdir()
        (folder / "config.json").write_text((tiny_llm_folder / "config.json").read_text())
    (folder / "pytorch_model.bin").write_bytes(b"not even a pickle")
    with pytest.raises(ValueError, match=r"got .*pytorch_model\.bin, a pickle, which is never loaded"):
        LLMBiEncoder.from_llm(folder, pooling="mean")


def test_the_line_that_converts_a_pickle_works(write_public_folder, public_encoder):
    folder = write_public_folder()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="Convert it once") as refused:
        LLMBiEncoder.from_llm(folder)
    line = str(refused.value)
    assert "weights = torch.load(path, weights_only=True)" in line
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True)
    assert "{name: w.clone().contiguous() for name, w in weights.items()}, 'model.safetensors'" in line
    save_file({name: w.clone().contiguous() for name, w in weights.items()}, folder / "model.safetensors")
    after = LLMBiEncoder.from_llm(folder).state_dict()
    assert all(torch.equal(tensor, after[name]) for name, tensor in public_encoder.state_dict().items())


def test_refuses_weights_that_no_decoder_has(tiny_llm_folder, tmp_path):
    weights = load_file(tiny_llm_folder / "model.safetensors") | {"adapter.weight": torch.zeros(2)}
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny_llm_folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"got 1 unknown, such as adapter\.weight"):
        LLMBiEncoder.from_llm(tmp_path, pooling="mean")


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ("poolings", "got 'poolings'. Did you mean pooling?"),
        ("num_latent", "got 'num_latent'. Did you mean num_latents?"),
        ("brightness", "got 'brightness'. Use one of architectures, bidirectional"),
        ("text_config", "must not hold text_config"),
    ],
)
def test_refuses_an_unknown_field_before_anything_is_read(field, message):
    with pytest.raises(TypeError, match=message):
        LLMBiEncoder.from_llm("/no/such/folder", **{field: "mean"})


@pytest.mark.parametrize("fields", [{}, {"num_latents": 6}])
def test_where_nobody_names_a_pooling_the_head_starts_as_the_mean(tiny_llm_folder, fields, caplog):
    expected = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean").encode(TEXTS)
    for seed in (1, 2):
        torch.manual_seed(seed)
        encoder = LLMBiEncoder.from_llm(tiny_llm_folder, **fields)
        assert (encoder.config.pooling, encoder.config.latent_variant) == ("latent_attention", "prenorm")
        assert encoder.latent_attn is not None
        torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-5, rtol=0)
    assert "latent_variant" not in caplog.text


@pytest.mark.parametrize("fields", [{"latent_variant": "v0"}, {"pooling": "latent_attention"}])
def test_a_random_head_is_named_in_the_log(tiny_llm_folder, write_public_folder, fields, caplog):
    with caplog.at_level(logging.WARNING):
        LLMBiEncoder.from_llm(write_public_folder(), **fields)
        assert "latent_variant" not in caplog.text, "of the public layout the head is stored"
        encoder = LLMBiEncoder.from_llm(tiny_llm_folder, **fields)
    assert encoder.config.latent_variant == "v0"
    assert "latent_variant 'v0' starts as a random one" in caplog.text


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"torch_dtype": torch.bfloat16}, torch.bfloat16),
        ({"torch_dtype": "float16"}, torch.float16),
        ({"dtype": "auto"}, torch.bfloat16),
        ({}, torch.float32),
    ],
)
def test_the_precision_has_the_names_of_transformers(
    tiny_llm_folder, write_public_folder, tiny_tokenizer, tmp_path, options, expected
):
    AutoModel.from_pretrained(tiny_llm_folder).bfloat16().save_pretrained(tmp_path / "half")
    tiny_tokenizer.save_pretrained(tmp_path / "half")
    encoders = [
        LLMBiEncoder.from_llm(tmp_path / "half", pooling="mean", **options),
        LLMBiEncoder.from_llm(write_public_folder(), **options),  # its configuration says bfloat16
    ]
    for encoder in encoders:
        assert {parameter.dtype for parameter in encoder.parameters()} == {expected}


@pytest.mark.parametrize("dtype", ["half16", torch.int8, "int8", "nn"])
def test_refuses_a_precision_that_is_none(dtype):
    with pytest.raises(ValueError, match=f"its name or 'auto', got {dtype!r}"):
        LLMBiEncoder.from_llm("/no/such/folder", dtype=dtype)


def test_the_attention_backend_can_be_chosen(tiny_llm_folder, tmp_path):
    default = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
    eager = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", attn_implementation="eager")
    assert default.model.config._attn_implementation == "sdpa"
    assert eager.config._attn_implementation == eager.model.config._attn_implementation == "eager"
    torch.testing.assert_close(eager.encode(TEXTS), default.encode(TEXTS), atol=1e-5, rtol=0)
    eager.save_pretrained(tmp_path)
    assert "attn_implementation" not in (tmp_path / "config.json").read_text()


def test_refuses_to_place_the_weights(tiny_llm_folder):
    with pytest.raises(TypeError, match=r"device_map must be left out, got 'auto'\. .* with \.to\(device\)"):
        LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", device_map="auto")


def _write_gguf(path):
    """Metadata of a tiny Llama; no tensors."""
    writer = GGUFWriter(path, "llama")
    writer.add_context_length(128)
    writer.add_embedding_length(48)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_vocab_size(309)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


def test_a_folder_with_one_gguf_file_stands_for_it(tmp_path):
    _write_gguf(tmp_path / "tiny.gguf")
    source = find_llm(tmp_path)
    assert (source.folder, source.gguf_file, source.config.hidden_size) == (tmp_path, "tiny.gguf", 48)
    _write_gguf(tmp_path / "smaller.gguf")
    with pytest.raises(ValueError, match=r"has several, got 2 in .*, such as smaller\.gguf\. Point"):
        find_llm(tmp_path)


NEOX = {
    "vocab_size": 309,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@pytest.mark.parametrize(
    ("llm", "head"),
    [
        (GPTNeoXForCausalLM(GPTNeoXConfig(**NEOX)), "embed_out.weight"),
        (
            ModernBertDecoderForCausalLM(ModernBertDecoderConfig(**NEOX, cls_token_id=1, sep_token_id=2)),
            "decoder.bias",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_the_head_of_a_language_model_may_have_another_name(llm, head, tiny_tokenizer, tmp_path):
    llm.save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    assert head in load_file(tmp_path / "model.safetensors")
    encoder = LLMBiEncoder.from_llm(tmp_path, pooling="mean")
    expected = llm.base_model.state_dict()
    assert encoder.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in encoder.model.state_dict().items())


@pytest.mark.parametrize("kind", ["plain", "public"])
def test_from_pretrained_says_how_to_wrap_a_language_model(tiny_llm_folder, write_public_folder, kind):
    folder = tiny_llm_folder if kind == "plain" else write_public_folder()
    with pytest.raises(ValueError, match=r"a report encoder, got a model of type 'llama'\. Make .*from_llm"):
        LLMBiEncoder.from_pretrained(folder)


def test_a_field_of_every_model_is_known(tiny_llm_folder):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", num_labels=3)
    assert encoder.config.num_labels == 3


def test_a_wrong_setting_is_refused_before_the_weights_are_read(tiny_llm_folder, tmp_path):
    (tmp_path / "config.json").write_text((tiny_llm_folder / "config.json").read_text())
    with pytest.raises(Exception, match="medium"):  # of huggingface_hub's validation
        LLMBiEncoder.from_llm(tmp_path, pooling="medium")


@pytest.mark.parametrize(
    "path", ["./models/lama", "/data/lama", "~/no_such_lama", "a/b/lama", "tests/lama", "c:\\lama", "../lama"]
)
def test_a_mistyped_folder_is_refused_without_asking_the_hub(path):
    with pytest.raises(FileNotFoundError, match=r"got '.*lama'\. Correct the path"):
        LLMBiEncoder.from_llm(path)


def test_a_mistyped_path_object_is_refused_without_asking_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "llama").mkdir()
    with pytest.raises(FileNotFoundError, match="got 'lama'"):
        LLMBiEncoder.from_llm((tmp_path / "lama").relative_to(tmp_path))


def test_a_hub_id_is_asked_for_on_the_hub():
    with pytest.raises(OSError, match=r"nobody/no-such-model|offline|outgoing traffic"):
        LLMBiEncoder.from_llm("nobody/no-such-model")


@torch.no_grad()
def test_the_public_layout_survives_saving(write_public_folder, public_encoder, tmp_path):
    LLMBiEncoder.from_llm(write_public_folder()).save_pretrained(tmp_path / "ours")
    saved = json.loads((tmp_path / "ours" / "config.json").read_text())
    assert saved["model_type"] == "llm_biencoder"
    reloaded, report = AutoModel.from_pretrained(tmp_path / "ours", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(
        reloaded.eval().encode_text(TEXTS), public_encoder.encode_text(TEXTS), atol=1e-5, rtol=0
    )
