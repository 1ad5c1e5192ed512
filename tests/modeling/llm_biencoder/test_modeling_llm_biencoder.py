import copy
import json

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModel,
    AutoTokenizer,
    Gemma3TextConfig,
    GPT2Config,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.losses import masked_binary_cross_entropy
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

SEP = "!@#$%^&*()"
# Equal weights give outputs that differ in the last bits: a loaded file is aligned otherwise in memory.
LAST_BITS = {"atol": 1e-5, "rtol": 0}
POOLINGS = [
    {"pooling": "latent_attention", "latent_variant": "v0"},
    {"pooling": "latent_attention", "latent_variant": "prenorm"},
    {"pooling": "mean"},
    {"pooling": "last_token"},
    {"pooling": "first_token"},
]
TEXTS = ["There is no effusion.", "nodule", "There is a small nodule in the left upper lobe.", "no"]
SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}


@pytest.fixture
def build(tiny_text_config, tiny_tokenizer):
    """Encoder of the tiny text configuration, with fields replaced."""

    def build(**fields) -> LLMBiEncoder:
        fields = {"num_latents": 6, "num_latent_heads": 4, "max_length": 64} | fields
        fields = {"text_config": tiny_text_config.text_config} | fields
        encoder = LLMBiEncoder(LLMBiEncoderConfig(**fields))
        if encoder.latent_attn is not None:
            for parameter in encoder.latent_attn.output_parameters():  # zero in a fresh prenorm head
                torch.nn.init.normal_(parameter, std=0.2)
        encoder.tokenizer = tiny_tokenizer
        return encoder.eval()

    return build


@pytest.fixture
def encoder(build) -> LLMBiEncoder:
    return build()


@pytest.fixture
def classifier(tiny_text_config) -> LLMBiEncoderForSequenceClassification:
    config = LLMBiEncoderConfig(
        text_config=tiny_text_config.text_config, id2label={0: "nodule", 1: "effusion", 2: "edema"}
    )
    classifier = LLMBiEncoderForSequenceClassification(config).eval()
    torch.nn.init.normal_(classifier.finding_attention.query.weight)
    return classifier


@pytest.fixture
def batch(tiny_tokenizer):
    return tiny_tokenizer(TEXTS, padding=True, return_tensors="pt").data


SLIDING = Gemma3TextConfig(
    **SIZES | {"vocab_size": 309},
    head_dim=8,
    sliding_window=4,  # shorter than most of the texts
    layer_types=["sliding_attention", "full_attention"],
)


@torch.no_grad()
@pytest.mark.parametrize("mask_mode", ["exact", "legacy_suffix"])
@pytest.mark.parametrize("decoder", [None, SLIDING], ids=["full", "sliding"])
@pytest.mark.parametrize("is_bidirectional", [True, False], ids=["bidirectional", "causal"])
@pytest.mark.parametrize("fields", POOLINGS, ids=lambda fields: "-".join(fields.values()))
def test_an_embedding_does_not_depend_on_batch_batch_size_or_padding_side(
    build, fields, is_bidirectional, decoder, mask_mode
):
    decoder = {} if decoder is None else {"text_config": decoder}
    encoder = build(**fields, **decoder, bidirectional=is_bidirectional, mask_mode=mask_mode)
    for instruction in (None, "Describe no nodule. "):
        whole = TEXTS if instruction is None else [f"{instruction}{SEP}{text}" for text in TEXTS]
        encode = encoder.encode_text if instruction is None else encoder.encode_with_separator
        alone = torch.cat([encode(text) for text in whole])
        # A causal first token has seen nothing of the text.
        if is_bidirectional or fields["pooling"] != "first_token":
            distances = (alone[:, None] - alone[None]).abs().amax(-1)
            assert distances.fill_diagonal_(1).min() > 1e-2, "texts look alike"
        for side in ("left", "right"):
            encoder.tokenizer.padding_side = side
            torch.testing.assert_close(encode(whole), alone, atol=1e-5, rtol=0)
            torch.testing.assert_close(encode(whole[::-1]), alone.flip(0), atol=1e-5, rtol=0)
            for size in (1, 3, "auto"):
                encoded = encoder.encode(TEXTS, instruction, batch_size=size)
                torch.testing.assert_close(encoded, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_eager_and_sdpa_agree(tiny_text_config, batch):
    sdpa = LLMBiEncoder._from_config(tiny_text_config, attn_implementation="sdpa").eval()
    eager = LLMBiEncoder._from_config(tiny_text_config, attn_implementation="eager").eval()
    eager.load_state_dict(sdpa.state_dict())
    torch.testing.assert_close(sdpa(**batch).pooler_output, eager(**batch).pooler_output, atol=1e-5, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize(
    ("pooling", "expected"), [("last_token", [4, 2, 1, 3]), ("first_token", [2, 0, 0, 3])]
)
def test_one_token_pooling_takes_the_outermost_real_token(build, pooling, expected):
    encoder = build(pooling=pooling)
    ids = torch.randint(3, 300, (4, 5))
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 0, 0], [1, 1, 0, 0, 0], [0, 0, 0, 1, 0]])
    output = encoder(ids, mask)
    assert torch.equal(
        output.pooler_output, output.last_hidden_state[torch.arange(4), torch.tensor(expected)]
    )


@torch.no_grad()
@pytest.mark.parametrize(("pooling", "expected"), [("last_token", [3, 0]), ("first_token", [1, 0])])
def test_one_token_pooling_stays_inside_the_embed_mask(build, pooling, expected):
    encoder = build(pooling=pooling)
    ids = torch.randint(3, 300, (2, 5))
    embed_mask = torch.tensor([[0, 1, 1, 1, 0], [1, 0, 0, 0, 0]])
    output = encoder(ids, torch.ones_like(ids), embed_mask)
    assert torch.equal(
        output.pooler_output, output.last_hidden_state[torch.arange(2), torch.tensor(expected)]
    )


@torch.no_grad()
def test_no_mask_means_no_padding(encoder):
    ids = torch.randint(0, 300, (2, 5))  # id 0 is the pad token: only a mask makes it padding
    expected = encoder(ids, torch.ones_like(ids)).pooler_output
    assert torch.equal(encoder(ids).pooler_output, expected)


@torch.no_grad()
def test_the_embed_mask_never_reaches_into_the_padding(build):
    encoder = build(pooling="mean")
    ids, mask = torch.randint(3, 300, (1, 5)), torch.tensor([[0, 0, 1, 1, 1]])
    pooled = encoder(ids, mask, embed_mask=torch.tensor([[1, 1, 1, 0, 1]]))
    expected = pooled.last_hidden_state[0, [2, 4]].mean(dim=0)
    torch.testing.assert_close(pooled.pooler_output[0], expected)


def test_refuses_a_row_without_a_token_to_pool(encoder):
    ids = torch.randint(3, 300, (3, 4))
    embed_mask = torch.tensor([[0, 0, 0, 1], [0, 0, 0, 0], [1, 0, 0, 0]])
    with pytest.raises(ValueError, match=r"must have a token to pool, got none in rows \[1\]"):
        encoder(ids, torch.ones_like(ids), embed_mask)


@pytest.mark.parametrize("fields", POOLINGS, ids=lambda fields: "-".join(fields.values()))
def test_a_token_is_pooled_or_not_with_and_without_gradients(build, fields):
    encoder = build(**fields)
    ids, mask = torch.randint(3, 300, (1, 4)), torch.tensor([[1.0, 0.25, 0, 1]])
    for has_gradients in (True, False):
        with torch.set_grad_enabled(has_gradients):
            with pytest.raises(ValueError, match=r"masks must be 0 or 1 everywhere, got 0\.25"):
                encoder(ids, embed_mask=mask)
            with pytest.raises(ValueError, match=r"masks must be 0 or 1 everywhere, got -2"):
                encoder(ids, embed_mask=torch.tensor([[1, 0, -2, 1]]))
            whole = encoder(ids, embed_mask=mask.ceil()).pooler_output
            torch.testing.assert_close(whole, encoder(ids, embed_mask=mask != 0).pooler_output)


@torch.no_grad()
def test_mean_pooling_can_be_exported_and_compiled_whole(build, batch):
    encoder = build(pooling="mean")
    expected = encoder(**batch).pooler_output
    exported = torch.export.export(encoder, (), dict(batch)).module()
    torch.testing.assert_close(exported(**batch).pooler_output, expected, **LAST_BITS)
    compiled = torch.compile(encoder, fullgraph=True, backend="eager")
    torch.testing.assert_close(compiled(**batch).pooler_output, expected, **LAST_BITS)


@torch.no_grad()
def test_encode_text_pools_the_special_token_too(build):
    encoder = build(pooling="mean")
    ids = encoder.tokenizer("There is no nodule").input_ids
    assert ids[0] == encoder.tokenizer.bos_token_id
    hidden = encoder(torch.tensor([ids])).last_hidden_state[0]
    torch.testing.assert_close(encoder.encode_text("There is no nodule")[0], hidden.mean(dim=0))


@torch.no_grad()
def test_the_instruction_acts_on_the_text_but_is_not_pooled(build):
    encoder = build(pooling="mean")
    hidden = encoder(**encoder.tokenizer("Describe no nodule", return_tensors="pt")).last_hidden_state[0]
    # <bos> Describe | no nodule
    pooled = encoder.encode_with_separator(f"Describe{SEP} no nodule")[0]
    torch.testing.assert_close(pooled, hidden[2:].mean(dim=0))
    assert (pooled - encoder.encode_with_separator(f"present{SEP} no nodule")[0]).abs().max() > 1e-2


@torch.no_grad()
def test_a_causal_encoder_shows_that_only_the_text_is_pooled(build):
    encoder = build(pooling="mean", bidirectional=False)
    # A causal instruction token sees nothing of the text: pooling it would pull both results together.
    ids = encoder.tokenizer("Describe no nodule", return_tensors="pt")
    hidden = encoder(**ids).last_hidden_state[0]
    torch.testing.assert_close(
        encoder.encode_with_separator(f"Describe no{SEP} nodule")[0], hidden[3], atol=1e-6, rtol=1e-5
    )


@pytest.mark.parametrize(
    ("text", "pooled"),
    [
        (f"Describe{SEP}There is", ["There", "\u0120is"]),
        (f"Describe{SEP} There is", ["\u0120There", "\u0120is"]),
        (f"Describe. {SEP}There is", ["\u0120There", "\u0120is"]),
        (f"Describe.{SEP}There is", [".There", "\u0120is"]),
        (f"Describe{SEP}small{SEP}no", ["small", *SEP, "no"]),
        ("There is no", ["There", "\u0120is", "\u0120no"]),
        (f"Describe{SEP}There   is", ["There", "\u0120", "\u0120", "\u0120", "is"]),
        (f"{SEP}There is", ["There", "\u0120is"]),
        (f"Describe no{SEP}dule is", ["\u0120nodule", "\u0120is"]),
    ],
    ids=[
        "glued",
        "leading space",
        "trailing space",
        "dot",
        "two separators",
        "no separator",
        "run of spaces",
        "no instruction",
        "word",
    ],
)
@pytest.mark.parametrize("padding_side", ["left", "right"])
def test_exact_mask_pools_every_token_that_overlaps_the_text(encoder, text, pooled, padding_side):
    encoder.tokenizer.padding_side = padding_side
    inputs = encoder.tokenize([text, f"Describe{SEP}" + "There is no effusion. " * 3], separator=SEP)
    ids, mask = inputs["input_ids"][0], inputs["embed_mask"][0]
    assert encoder.tokenizer.convert_ids_to_tokens(ids[mask == 1]) == pooled
    assert set(mask.tolist()) <= {0, 1}


def test_the_separator_itself_is_not_read(encoder):
    ids = encoder.tokenize(f"Describe{SEP} nodule", separator=SEP)["input_ids"]
    assert ids.tolist() == [encoder.tokenizer("Describe nodule").input_ids]


def test_truncation_cuts_the_text_and_never_the_instruction(encoder):
    inputs = encoder.tokenize(f"Describe no{SEP} effusion is present", max_length=5, separator=SEP)
    tokens = encoder.tokenizer.convert_ids_to_tokens(inputs["input_ids"][0])
    assert tokens == ["<bos>", "Describe", "\u0120no", "\u0120effusion", "\u0120is"]
    assert inputs["embed_mask"].tolist() == [[0, 0, 0, 1, 1]]


def test_the_configuration_says_how_long_a_text_may_be_and_what_separates(build):
    encoder = build(max_length=4, separator="<sep>", pooling="mean")
    assert encoder.tokenize("There is no effusion present")["input_ids"].shape == (1, 4)
    with torch.no_grad():
        pooled = encoder.encode_with_separator("Describe<sep> no effusion present")
        hidden = encoder(**encoder.tokenizer("Describe no effusion", return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(pooled[0], hidden[0, 2:].mean(dim=0))
        other = encoder.encode_with_separator(f"Describe{SEP} no", separator=SEP, max_length=64)
        hidden = encoder(**encoder.tokenizer("Describe no", return_tensors="pt")).last_hidden_state
        torch.testing.assert_close(other[0], hidden[0, 2])


@pytest.mark.parametrize(
    ("text", "max_length", "expected"),
    [
        # Read together " no" + "dule" is one token, alone "dule" is four: even <bos> is pooled.
        (f"Describe is no{SEP}dule", 64, [1, 1, 1, 1]),
        # Cut at 5, the text alone still counts 4 tokens, and the last 4 reach into the instruction.
        (f"Describe no{SEP} There is no effusion", 5, [0, 1, 1, 1, 1]),
        (f"Describe{SEP} There is", 64, [0, 0, 1, 1]),
        ("There is", 64, [0, 1, 1]),
    ],
    ids=["merged", "truncated", "plain", "no separator"],
)
def test_legacy_mask_is_the_last_n_tokens_mistakes_included(build, text, max_length, expected):
    encoder = build(mask_mode="legacy_suffix")
    inputs = encoder.tokenize([text], max_length, separator=SEP)
    assert inputs["embed_mask"].tolist() == [expected]


def test_refuses_an_instruction_that_leaves_no_room(encoder):
    texts = [f"Describe{SEP} no", f"Describe is no{SEP} effusion"]
    with pytest.raises(ValueError, match=r"leave room for its text, got none left at positions \[1\]"):
        encoder.tokenize(texts, max_length=4, separator=SEP)


@pytest.mark.parametrize(
    ("texts", "positions"), [(["no", " ", f"Describe{SEP}\n"], r"\[1, 2\]"), ([], r"\[\]")]
)
def test_refuses_empty_texts(encoder, texts, positions):
    with pytest.raises(ValueError, match=rf"nothing to encode at positions {positions}"):
        encoder.encode_with_separator(texts)
    with pytest.raises(ValueError, match="texts must not be empty, got nothing to encode at positions"):
        encoder.encode([" "] if texts else [])


@torch.no_grad()
def test_similarity_is_the_cosine_of_query_and_candidate(encoder):
    query, candidates = f"Describe{SEP} small effusion", ["no effusion", "small nodule", "There is effusion"]
    embeds = [encoder.encode_with_separator(text)[0] for text in [query, *candidates]]
    expected = [(embeds[0] @ e / (embeds[0].norm() * e.norm())).item() for e in embeds[1:]]
    assert encoder.compute_similarities(query, candidates).tolist() == pytest.approx(expected, abs=1e-5)


@torch.no_grad()
@pytest.mark.parametrize("instruction", [None, "Describe no"])
def test_encode_keeps_the_order_and_equals_one_by_one(encoder, instruction):
    texts = [" nodule", " There is a small effusion present", " no", " is", " There is no nodule.", " There"]
    if instruction is None:
        expected = [encoder.encode_text(text) for text in texts]
    else:
        expected = [encoder.encode_with_separator(f"{instruction}{SEP}{text}") for text in texts]
    pooled = encoder.encode(texts, instruction=instruction, batch_size=2)
    torch.testing.assert_close(pooled, torch.cat(expected), atol=1e-5, rtol=0)
    torch.testing.assert_close(
        encoder.encode(texts[1], instruction=instruction), expected[1], atol=1e-5, rtol=0
    )


def test_encoding_leaves_no_graph_behind(encoder):
    assert not encoder.encode(["no"]).requires_grad
    assert not encoder.encode_text("no").requires_grad
    assert not encoder.compute_similarities("no", ["is"]).requires_grad


@torch.no_grad()
def test_half_precision_pools_in_float32(build, batch):
    for fields in POOLINGS:
        output = build(**fields).bfloat16()(**batch)
        assert output.last_hidden_state.dtype == torch.bfloat16
        assert output.pooler_output.dtype == torch.float32


@torch.no_grad()
def test_a_fresh_prenorm_head_is_mean_pooling(tiny_text_config, batch):
    config = LLMBiEncoderConfig(
        text_config=tiny_text_config.text_config, latent_variant="prenorm", num_latent_heads=4
    )
    output = LLMBiEncoder(config).eval()(**batch)
    rows = zip(output.last_hidden_state, batch["attention_mask"], strict=True)
    expected = torch.stack([hidden[mask == 1].mean(dim=0) for hidden, mask in rows])
    torch.testing.assert_close(output.pooler_output, expected)


def test_fresh_latents_are_standard_normal(tiny_text_config):
    config = LLMBiEncoderConfig(text_config=tiny_text_config.text_config, num_latents=500)
    latents = LLMBiEncoder(config).latent_attn.latents
    assert latents.mean().item() == pytest.approx(0, abs=0.05)
    assert latents.std().item() == pytest.approx(1, abs=0.05)


def test_the_decoder_and_the_head_have_the_names_of_the_public_checkpoint(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    names = set(load_file(tmp_path / "model.safetensors"))
    assert {name for name in names if not name.startswith("model.")} == {
        "latent_attn.latents",
        "latent_attn.multihead_attn.in_proj_weight",
        "latent_attn.multihead_attn.in_proj_bias",
        "latent_attn.multihead_attn.out_proj.weight",
        "latent_attn.multihead_attn.out_proj.bias",
        "latent_attn.mlp.0.weight",
        "latent_attn.mlp.0.bias",
        "latent_attn.mlp.2.weight",
        "latent_attn.mlp.2.bias",
    }
    assert len(names) == 9 + 1 + 2 * 9 + 1  # head, embedding, nine tensors a layer, final norm
    assert {
        "model.embed_tokens.weight",
        "model.layers.1.self_attn.q_proj.weight",
        "model.norm.weight",
    } < names


def test_from_llm_keeps_the_hidden_states_of_the_decoder(tiny_llm_folder, batch):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, bidirectional=False, pooling="mean")
    decoder = AutoModel.from_pretrained(tiny_llm_folder).eval()
    assert not encoder.training
    assert encoder.config.pooling == "mean"
    with torch.no_grad():
        torch.testing.assert_close(encoder(**batch).last_hidden_state, decoder(**batch).last_hidden_state)
        both_ways = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
        assert (both_ways(**batch).last_hidden_state - decoder(**batch).last_hidden_state).abs().max() > 0.01
    assert (
        encoder.tokenizer("There is no").input_ids
        == AutoTokenizer.from_pretrained(tiny_llm_folder)("There is no").input_ids
    )


def test_from_llm_loads_in_the_precision_asked_for(tiny_llm_folder):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, dtype=torch.bfloat16, num_latent_heads=4)
    assert {parameter.dtype for parameter in encoder.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean").parameters()} == {
        torch.float32
    }


def test_from_llm_keeps_the_lowest_layers(tiny_llm_folder, batch, tmp_path):
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, num_hidden_layers=1, bidirectional=False, pooling="mean")
    decoder = AutoModel.from_pretrained(tiny_llm_folder).eval()
    decoder.layers = decoder.layers[:1]
    assert len(encoder.model.layers) == encoder.config.text_config.num_hidden_layers == 1
    with torch.no_grad():
        expected = decoder(**batch).last_hidden_state
        torch.testing.assert_close(encoder(**batch).last_hidden_state, expected)
        encoder.save_pretrained(tmp_path)
        reloaded = LLMBiEncoder.from_pretrained(tmp_path).eval()
        torch.testing.assert_close(
            reloaded(**batch).last_hidden_state, encoder(**batch).last_hidden_state, **LAST_BITS
        )


def test_from_llm_cuts_a_decoder_that_lists_the_type_of_every_layer(tiny_tokenizer, tmp_path):
    Qwen3ForCausalLM(Qwen3Config(**SIZES | {"vocab_size": 309}, head_dim=8)).save_pretrained(tmp_path)
    tiny_tokenizer.save_pretrained(tmp_path)
    encoder = LLMBiEncoder.from_llm(tmp_path, num_hidden_layers=1, pooling="last_token")
    assert len(encoder.model.layers) == len(encoder.config.text_config.layer_types) == 1
    assert encoder.encode_text("There is no").shape == (1, 32)


@pytest.mark.parametrize("depth", [0, 3])
def test_from_llm_refuses_a_depth_the_decoder_does_not_have(tiny_llm_folder, depth):
    with pytest.raises(ValueError, match=f"between 1 and 2, got {depth}"):
        LLMBiEncoder.from_llm(tiny_llm_folder, num_hidden_layers=depth)


def test_from_llm_refuses_a_checkpoint_with_holes(tiny_llm_folder, tmp_path):
    weights = load_file(tiny_llm_folder / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_text((tiny_llm_folder / "config.json").read_text())
    with pytest.raises(ValueError, match=r"got 1 missing, such as layers\.1\.mlp\.up_proj\.weight"):
        LLMBiEncoder.from_llm(tmp_path, pooling="mean")


@torch.no_grad()
@pytest.mark.parametrize("fields", POOLINGS, ids=lambda fields: "-".join(fields.values()))
def test_reload_gives_identical_weights_buffers_and_outputs(build, batch, tmp_path, fields):
    encoder = build(**fields)
    encoder.save_pretrained(tmp_path)
    reloaded, report = LLMBiEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    # The state dict leaves out the rotary tables, which loading must compute again.
    before = encoder.state_dict() | dict(encoder.named_buffers())
    after = reloaded.state_dict() | dict(reloaded.named_buffers())
    assert before.keys() == after.keys()
    assert "model.rotary_emb.inv_freq" in before
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(
        encoder(**batch).pooler_output, reloaded.eval()(**batch).pooler_output, **LAST_BITS
    )
    assert reloaded.model.config.is_causal is False


def test_a_reloaded_encoder_finds_the_tokenizer_saved_beside_its_weights(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    reloaded = LLMBiEncoder.from_pretrained(tmp_path).eval()
    assert reloaded._tokenizer is None, "loaded before anybody asked"
    torch.testing.assert_close(reloaded.encode_text(TEXTS), encoder.encode_text(TEXTS), **LAST_BITS)
    assert reloaded.tokenizer is reloaded.tokenizer


def test_an_encoder_without_tokenizer_saves_none_and_says_so_when_asked(tiny_text_config, tmp_path):
    fresh = LLMBiEncoder(tiny_text_config)
    with pytest.raises(OSError, match="tokenizer must lie beside the weights, got none that loads in ''"):
        _ = fresh.tokenizer
    fresh.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "model.safetensors"}
    with pytest.raises(OSError, match=f"got none that loads in '{tmp_path}'"):
        _ = LLMBiEncoder.from_pretrained(tmp_path).tokenizer


def test_pads_with_the_end_token_where_the_tokenizer_has_no_pad_token(tiny_text_config, tiny_tokenizer):
    tiny_tokenizer.pad_token = None
    encoder = LLMBiEncoder(tiny_text_config)
    encoder.tokenizer = tiny_tokenizer
    assert encoder.tokenize(["no", "There is no"])["input_ids"][0, 0] == tiny_tokenizer.eos_token_id


def test_the_token_embedding_can_be_replaced(encoder, classifier):
    table = torch.nn.Embedding(7, 32)
    encoder.set_input_embeddings(table)
    assert encoder.get_input_embeddings() is encoder.model.embed_tokens is table
    assert classifier.get_input_embeddings() is classifier.encoder.model.embed_tokens


@pytest.mark.parametrize("fields", POOLINGS, ids=lambda fields: "-".join(fields.values()))
def test_every_parameter_of_the_encoder_receives_a_gradient(build, batch, fields):
    encoder = build(**fields).train()
    weight = torch.randn(len(TEXTS), 32)
    (encoder(**batch).pooler_output * weight).sum().backward()
    assert [name for name, p in encoder.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_gives_the_same_gradients(classifier, batch, checkpointed_copy):
    thrifty = checkpointed_copy(classifier)
    calls = []
    thrifty.encoder.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    labels = torch.tensor([[1.0, 0.0, -100.0]] * len(TEXTS))
    classifier.train()(**batch, labels=labels).loss.backward()
    thrifty(**batch, labels=labels).loss.backward()
    assert len(calls) == 2, "the layer was not recomputed"
    for (name, plain), (_, saved) in zip(
        classifier.named_parameters(), thrifty.named_parameters(), strict=True
    ):
        torch.testing.assert_close(plain.grad, saved.grad, msg=name)


@torch.no_grad()
def test_token_weights_are_a_distribution_over_the_real_tokens(classifier, batch):
    weights = classifier(**batch).token_weights
    assert weights.shape == (len(TEXTS), 3, batch["input_ids"].shape[1])
    torch.testing.assert_close(weights.sum(dim=-1), torch.ones(len(TEXTS), 3))
    padding = batch["attention_mask"][:, None].expand_as(weights) == 0
    assert padding.any()
    assert weights[padding].eq(0).all()
    assert weights[~padding].gt(0).all()


@torch.no_grad()
def test_a_logit_scores_the_mean_of_the_tokens_that_its_query_attends_to(classifier, batch):
    output = classifier(**batch)
    attention = classifier.finding_attention
    hidden = classifier.encoder(**batch).last_hidden_state
    for row, mask in enumerate(batch["attention_mask"]):
        tokens = hidden[row][mask == 1]
        for finding, query in enumerate(attention.query.weight):
            weights = (tokens @ query / 32**0.5).softmax(dim=0)
            torch.testing.assert_close(output.token_weights[row, finding][mask == 1], weights)
            expected = attention.score.weight[finding] @ (weights @ tokens) + attention.score.bias[finding]
            torch.testing.assert_close(output.logits[row, finding], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_a_classification_does_not_depend_on_the_batch(classifier, tiny_tokenizer):
    alone = torch.cat([classifier(**tiny_tokenizer(t, return_tensors="pt")).logits for t in TEXTS])
    for side in ("left", "right"):
        batch = tiny_tokenizer(TEXTS, padding=True, padding_side=side, return_tensors="pt")
        torch.testing.assert_close(classifier(**batch).logits, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_classifier_returns_a_loss_only_when_labels_are_given(classifier, batch):
    labels = torch.tensor([[1.0, 0.0, -100.0], [0.0, 0.3, 1.0], [0.0, 0.0, 0.0], [1.0, 1.0, -100.0]])
    output = classifier(**batch, labels=labels)
    assert torch.equal(output.loss, masked_binary_cross_entropy(output.logits, labels))
    assert classifier(**batch).loss is None
    with pytest.raises(ValueError, match=r"in \[0, 1\] or -100, got \[-1.0\]"):
        classifier(**batch, labels=torch.full((4, 3), -1.0))


def test_every_parameter_of_the_classifier_receives_a_gradient(classifier, batch):
    labels = torch.tensor([[1.0, 0.0, 1.0]] * len(TEXTS))
    classifier.train()(**batch, labels=labels).loss.backward()
    assert [name for name, p in classifier.named_parameters() if p.grad is None or not p.grad.any()] == []


@torch.no_grad()
def test_the_classifier_reloads_identical_without_a_mask(classifier, tmp_path):
    ids = torch.randint(3, 300, (2, 5))
    classifier.save_pretrained(tmp_path)
    reloaded = LLMBiEncoderForSequenceClassification.from_pretrained(tmp_path).eval()
    before, after = classifier.state_dict(), reloaded.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    torch.testing.assert_close(
        classifier(ids).logits, reloaded(ids, torch.ones_like(ids)).logits, **LAST_BITS
    )
    assert reloaded.config.id2label == {0: "nodule", 1: "effusion", 2: "edema"}


@torch.no_grad()
def test_encoder_and_classifier_start_from_each_other(build, batch, tmp_path):
    encoder = build(pooling="mean")
    encoder.save_pretrained(tmp_path / "encoder")
    classifier, report = LLMBiEncoderForSequenceClassification.from_pretrained(
        tmp_path / "encoder", output_loading_info=True
    )
    assert {name.split(".")[0] for name in report["missing_keys"]} == {"finding_attention"}
    assert not report["unexpected_keys"]
    expected = encoder(**batch).pooler_output
    classifier.save_pretrained(tmp_path / "classifier")
    back, report = LLMBiEncoder.from_pretrained(tmp_path / "classifier", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"], "the head of the classifier is nothing to warn of"
    torch.testing.assert_close(back.eval()(**batch).pooler_output, expected, **LAST_BITS)


def test_the_classifier_fits_four_reports_with_the_stock_trainer(classifier, batch, fit_with_stock_trainer):
    labels = torch.tensor([[0.0, 1.0, -100.0], [1.0, 0.0, 0.0], [1.0, -100.0, 1.0], [0.0, 0.0, 1.0]])
    rows = zip(batch["input_ids"], batch["attention_mask"], labels, strict=True)
    reports = [{"input_ids": ids, "attention_mask": mask, "labels": row} for ids, mask, row in rows]
    losses, eval_loss = fit_with_stock_trainer(classifier, reports, steps=40, learning_rate=0.01)
    assert losses[-1] < 0.1 * losses[0]
    assert eval_loss < 0.1 * losses[0]
    with torch.no_grad():
        logits = classifier.eval()(**batch).logits
    known = labels != -100
    assert torch.equal((logits > 0)[known], labels[known] == 1)


def test_the_direction_is_written_where_every_reader_of_the_json_finds_it(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["text_config"]["is_causal"] is False


def test_embeddings_are_not_normalized(encoder):
    assert not torch.allclose(F.normalize(encoder.encode_text(TEXTS), dim=-1), encoder.encode_text(TEXTS))


@torch.no_grad()
@pytest.mark.parametrize("is_bidirectional", [True, False])
def test_the_direction_can_be_changed_while_loading(build, batch, tmp_path, is_bidirectional):
    encoder = build(bidirectional=not is_bidirectional, pooling="mean")
    encoder.save_pretrained(tmp_path)
    turned = LLMBiEncoder.from_pretrained(tmp_path, bidirectional=is_bidirectional).eval()
    same = build(bidirectional=is_bidirectional, pooling="mean")
    same.load_state_dict(encoder.state_dict())
    torch.testing.assert_close(turned(**batch).pooler_output, same(**batch).pooler_output, **LAST_BITS)
    assert (turned(**batch).pooler_output - encoder(**batch).pooler_output).abs().max() > 1e-2


def test_one_candidate_may_be_a_bare_string(tiny_text_config, tiny_tokenizer):
    model = LLMBiEncoder(tiny_text_config).eval()
    model.tokenizer = tiny_tokenizer
    one = model.compute_similarities("no effusion", "small nodule")
    assert one.shape == (1,)
    assert torch.equal(one, model.compute_similarities("no effusion", ["small nodule"]))


def test_refuses_what_is_no_text_and_settings_that_mean_nothing(tiny_text_config, tiny_tokenizer):
    model = LLMBiEncoder(tiny_text_config).eval()
    model.tokenizer = tiny_tokenizer
    with pytest.raises(TypeError, match="strings, got NoneType at position 1"):
        model.encode_text(["no effusion", None])
    with pytest.raises(
        ValueError, match="max_length must be at least 2, prompt and special tokens included, got 0"
    ):
        model.encode_text("no effusion", max_length=0)
    with pytest.raises(ValueError, match="separator must not be empty, got ''"):
        model.encode_with_separator("no effusion", separator="")
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        model.encode(["no effusion"], batch_size=0)


def test_does_not_wrap_an_encoder_in_an_encoder(tiny_llm_folder, tmp_path):
    LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="got one of ours, llm_biencoder"):
        LLMBiEncoder.from_llm(tmp_path)


def test_a_comparison_with_nothing_is_refused(encoder):
    with pytest.raises(ValueError, match=r"candidate_texts must not be empty, got \[\]"):
        encoder.compute_similarities("no effusion", [])


@torch.no_grad()
def test_returns_a_tuple_when_asked(encoder, classifier, batch):
    output = encoder(**batch)
    for result in (encoder(**batch, return_dict=False), _with_tuples(encoder)(**batch)):
        assert isinstance(result, tuple)
        assert len(result) == 2
        assert torch.equal(result[0], output.last_hidden_state)
        assert torch.equal(result[1], output.pooler_output)
    assert torch.equal(_with_tuples(encoder).encode_text(TEXTS), encoder.encode_text(TEXTS))
    labels = torch.zeros(len(TEXTS), 3)
    scored = classifier(**batch, labels=labels)
    for result in (
        classifier(**batch, labels=labels, return_dict=False),
        _with_tuples(classifier)(**batch, labels=labels),
    ):
        assert isinstance(result, tuple)
        assert [value.shape for value in result] == [value.shape for value in scored.to_tuple()]
        assert torch.equal(result[1], scored.logits)


def _with_tuples(model):
    """A copy whose configuration asks for tuples."""
    model = copy.deepcopy(model)
    model.config.return_dict = False
    return model


def test_the_classifier_says_how_many_findings_it_has(classifier):
    assert classifier.num_labels == 3


def test_padding_may_be_told_by_booleans(build, batch):
    for fields in POOLINGS:
        encoder = build(**fields)
        with torch.no_grad():
            expected = encoder(**batch).pooler_output
            mask = batch["attention_mask"].bool()
            output = encoder(batch["input_ids"], mask, mask)
        torch.testing.assert_close(output.pooler_output, expected, atol=1e-6, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("prompt", ["", " There is a nodule"])
def test_positions_are_counted_over_real_tokens(build, prompt):
    # GPT-2 adds a vector per position: counted over the padding, the side of the padding would show.
    decoder = GPT2Config(vocab_size=309, n_embd=32, n_layer=2, n_head=4, initializer_range=0.2)
    encoder = build(text_config=decoder, pooling="mean", bidirectional=False)
    encoder.set_prompt(soft_prompt=prompt)
    alone = torch.cat([encoder.encode_text(text) for text in TEXTS])
    for side in ("left", "right"):
        encoder.tokenizer.padding_side = side
        torch.testing.assert_close(encoder.encode_text(TEXTS), alone, atol=1e-5, rtol=0)


def test_the_pooling_head_is_kept_on_one_device(encoder):
    # Its parts are read and not called: a device map must not spread them.
    assert "LatentAttentionPooling" in encoder._no_split_modules
