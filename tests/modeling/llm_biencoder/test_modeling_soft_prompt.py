import copy

import pytest
import torch
from peft import LoraConfig, get_peft_model

from radtower.modeling.llm_biencoder.modeling_soft_prompt import SoftPrompt, insert_prompt, take_tokens
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

PROMPT = {"hard_prompt": "Describe no", "soft_prompt": " There is a small nodule", "text_prefix": "Report:"}


@pytest.fixture
def encoder(tiny_text_config, tiny_tokenizer) -> LLMBiEncoder:
    """Latent attention with a prompt of all three parts."""
    encoder = LLMBiEncoder(copy.deepcopy(tiny_text_config)).eval()
    encoder.tokenizer = tiny_tokenizer
    encoder.set_prompt(**PROMPT)
    return encoder


def test_the_prompt_stands_right_before_the_first_real_token():
    prompt = torch.tensor([[-1.0], [-2.0]])
    embeds = torch.arange(12, dtype=torch.float32).reshape(3, 4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    both, both_mask, places = insert_prompt(prompt, embeds, mask)
    assert both[..., 0].tolist() == [[-1, -2, 0, 1, 2, 3], [4, 5, -1, -2, 6, 7], [-1, -2, 8, 9, 10, 11]]
    assert both_mask.tolist() == [[1, 1, 1, 1, 1, 1], [0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 0, 0]]
    assert torch.equal(take_tokens(both, places), embeds)


@torch.no_grad()
def test_prompt_and_text_are_read_as_one_sequence(encoder):
    tokenizer = encoder.tokenizer
    hard, soft = (
        tokenizer(PROMPT[k], add_special_tokens=False).input_ids for k in ("hard_prompt", "soft_prompt")
    )
    text = tokenizer("Report:no effusion").input_ids
    # Untrained, the soft tokens are the embeddings of their sentence: the decoder reads it all as one text.
    hidden = encoder.model(torch.tensor([hard + soft + text])).last_hidden_state
    inputs = encoder.tokenize("no effusion")
    output = encoder(**inputs)
    torch.testing.assert_close(output.last_hidden_state, hidden[:, len(hard + soft) :], atol=1e-5, rtol=0)
    assert inputs["embed_mask"].tolist() == [[0] * (len(text) - 2) + [1, 1]]
    pooled = encoder.latent_attn(hidden[:, -2:], torch.ones(1, 2))
    torch.testing.assert_close(output.pooler_output, pooled, atol=1e-5, rtol=0)


def test_a_soft_prompt_is_read_after_the_fixed_tokens_in_their_precision():
    prompt = SoftPrompt(2, 3)
    torch.nn.init.constant_(prompt.weight, 1.5)
    both = prompt(torch.zeros(1, 3, dtype=torch.bfloat16))
    assert both.dtype == torch.bfloat16
    assert both.tolist() == [[0.0] * 3, [1.5] * 3, [1.5] * 3]


def test_the_prompt_is_written_into_the_configuration_and_survives_saving(encoder, tmp_path):
    torch.nn.init.normal_(encoder.soft_prompt.weight)
    encoder.save_pretrained(tmp_path)
    reloaded, report = LLMBiEncoder.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    assert {name: getattr(reloaded.config, name) for name in PROMPT} == PROMPT
    assert torch.equal(reloaded.soft_prompt.weight, encoder.soft_prompt.weight)
    with torch.no_grad():
        torch.testing.assert_close(
            reloaded.eval().encode_text("no effusion"), encoder.encode_text("no effusion"), atol=1e-5, rtol=0
        )


def test_an_empty_prompt_takes_the_prompt_away(encoder, tiny_tokenizer, tiny_text_config):
    plain = LLMBiEncoder(tiny_text_config).eval()
    encoder.set_prompt()
    plain.load_state_dict(encoder.state_dict())
    plain.tokenizer = tiny_tokenizer
    assert encoder.config.to_dict() == plain.config.to_dict()
    assert torch.equal(encoder.encode_text("no effusion"), plain.encode_text("no effusion"))


def test_refuses_a_prompt_without_room_for_a_text(encoder):
    with pytest.raises(ValueError, match="room for a text, got 2 hard and 62 soft tokens with max_length 64"):
        encoder.set_prompt(hard_prompt="Describe no", soft_prompt=" no" * 62)
    assert encoder.config.hard_prompt == PROMPT["hard_prompt"]


def test_refuses_anything_but_one_kind_of_input(encoder):
    ids = encoder.tokenize("no effusion")["input_ids"]
    with pytest.raises(ValueError, match="one of input_ids and inputs_embeds, got neither"):
        encoder(attention_mask=torch.ones_like(ids))
    with pytest.raises(ValueError, match="one of input_ids and inputs_embeds, got both"):
        encoder(ids, inputs_embeds=torch.zeros(1, 2, 32))


@torch.no_grad()
@pytest.mark.parametrize("has_prompt", [True, False])
def test_embeddings_stand_for_the_ids_they_come_from(encoder, has_prompt):
    if not has_prompt:
        encoder.set_prompt()
    inputs = encoder.tokenize(["no effusion", "There is a nodule"])
    expected = encoder(**inputs)
    embeds = encoder.get_input_embeddings()(inputs.pop("input_ids"))
    output = encoder(inputs_embeds=embeds, **inputs)
    assert torch.equal(output.pooler_output, expected.pooler_output)
    alone = encoder(inputs_embeds=embeds[1:], embed_mask=inputs.get("embed_mask", torch.ones(2, 1))[1:])
    torch.testing.assert_close(alone.pooler_output[0], expected.pooler_output[1], atol=1e-5, rtol=0)


TEXTS = ["no effusion", "There is a small nodule in the left upper lobe.", "no"]
POOLINGS = [{"pooling": kind} for kind in ("latent_attention", "mean", "last_token", "first_token")]


@pytest.mark.parametrize("should_freeze", [False, True], ids=["trained", "frozen"])
@pytest.mark.parametrize("reentrant", [None, True, False], ids=["plain", "reentrant", "not reentrant"])
def test_the_soft_prompt_receives_its_gradient(encoder, reentrant, should_freeze):
    plain = copy.deepcopy(encoder).train()
    (plain(**plain.tokenize(TEXTS)).pooler_output ** 2).sum().backward()
    expected = plain.soft_prompt.weight.grad
    assert (expected.abs().amax(dim=1) > 0).all(), "a soft token without influence"
    encoder.train()
    if should_freeze:
        encoder.model.requires_grad_(False)
    if reentrant is not None:
        # The second name is deprecated in favor of the first, which old releases lack.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        enable = getattr(encoder, next(name for name in names if hasattr(encoder, name)))
        enable({"use_reentrant": reentrant})
    calls = []
    encoder.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append(1))
    (encoder(**encoder.tokenize(TEXTS)).pooler_output ** 2).sum().backward()
    assert len(calls) == (1 if reentrant is None else 2)
    torch.testing.assert_close(encoder.soft_prompt.weight.grad, expected)
    assert (encoder.get_input_embeddings().weight.grad is None) is should_freeze


def test_training_the_soft_prompt_alone_lowers_a_loss(encoder):
    encoder.requires_grad_(False)
    encoder.soft_prompt.requires_grad_(True)
    before = {name: value.clone() for name, value in encoder.state_dict().items()}
    inputs, target = encoder.tokenize(TEXTS), torch.randn(3, 32)
    optimizer = torch.optim.Adam([p for p in encoder.parameters() if p.requires_grad], lr=0.05)
    losses = []
    for _ in range(60):
        loss = 1 - torch.cosine_similarity(encoder(**inputs).pooler_output, target).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1
    changed = {name for name, value in encoder.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {"soft_prompt.weight"}


@torch.no_grad()
@pytest.mark.parametrize("fields", POOLINGS, ids=lambda fields: fields["pooling"])
@pytest.mark.parametrize("mask_mode", ["exact", "legacy_suffix"])
def test_a_prompted_embedding_depends_on_nothing_but_its_text(
    tiny_text_config, tiny_tokenizer, fields, mask_mode
):
    config = copy.deepcopy(tiny_text_config)
    config.pooling, config.mask_mode = fields["pooling"], mask_mode
    encoder = LLMBiEncoder(config).eval()
    encoder.tokenizer = tiny_tokenizer
    encoder.set_prompt(**PROMPT)
    torch.nn.init.normal_(encoder.soft_prompt.weight)
    for instruction in (None, "Describe"):
        alone = torch.cat([encoder.encode(text, instruction) for text in TEXTS])
        assert (alone[:, None] - alone[None]).abs().amax(-1).fill_diagonal_(1).min() > 1e-3
        for side in ("left", "right"):
            encoder.tokenizer.padding_side = side
            for size in (1, 2, 3):
                together = encoder.encode(TEXTS, instruction, batch_size=size)
                torch.testing.assert_close(together, alone, atol=1e-5, rtol=0)
            inputs = encoder.tokenize(TEXTS[::-1], instruction=instruction)
            torch.testing.assert_close(encoder(**inputs).pooler_output.flip(0), alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_every_part_of_the_prompt_has_influence(encoder):
    vectors = [encoder.encode_text("no effusion")]
    for part in PROMPT:
        encoder.set_prompt(**PROMPT | {part: ""})
        vectors.append(encoder.encode_text("no effusion"))
    encoder.set_prompt(**PROMPT)
    torch.nn.init.normal_(encoder.soft_prompt.weight)
    vectors.append(encoder.encode_text("no effusion"))
    stacked = torch.cat(vectors)
    assert (stacked[:, None] - stacked[None]).abs().amax(-1).fill_diagonal_(1).min() > 1e-3


def test_max_length_counts_the_prompt(encoder):
    num_prompt = encoder.config.num_prompt_tokens
    assert num_prompt == 2 + len(encoder.tokenizer(PROMPT["soft_prompt"], add_special_tokens=False).input_ids)
    num_prefix = len(encoder.tokenizer("Report:").input_ids)
    least = num_prompt + num_prefix + 1
    inputs = encoder.tokenize(" no effusion is present", max_length=least + 1)
    assert inputs["input_ids"].shape[1] == num_prefix + 2
    assert inputs["embed_mask"].sum() == 2
    with pytest.raises(
        ValueError, match=f"max_length must be at least {num_prompt + 2}, .* got {num_prompt + 1}"
    ):
        encoder.tokenize("no", max_length=num_prompt + 1)
    with pytest.raises(ValueError, match=r"leave room for its text, got none left at positions \[0\]"):
        encoder.tokenize("no", max_length=least - 1)


def test_a_fresh_soft_prompt_is_small_noise_and_stays_float32(tiny_text_config, tmp_path):
    LLMBiEncoder(tiny_text_config).save_pretrained(tmp_path)
    for dtype in (torch.float32, torch.bfloat16):
        encoder, report = LLMBiEncoder.from_pretrained(
            tmp_path, num_soft_tokens=50, dtype=dtype, output_loading_info=True
        )
        assert report["missing_keys"] == {"soft_prompt.weight"}
        weight = encoder.soft_prompt.weight
        assert weight.dtype == torch.float32
        assert encoder.get_input_embeddings().weight.dtype == dtype
        assert weight.std().item() == pytest.approx(0.2, abs=0.02)  # initializer_range of the decoder
        assert weight.mean().item() == pytest.approx(0, abs=0.02)
    with torch.no_grad():
        assert encoder.eval()(torch.tensor([[3, 4]])).last_hidden_state.dtype == torch.bfloat16
    fresh = LLMBiEncoder._from_config(encoder.config, dtype=torch.bfloat16)
    assert fresh.soft_prompt.weight.dtype == torch.float32
    assert fresh.get_input_embeddings().weight.dtype == torch.bfloat16


def test_a_trained_soft_prompt_is_not_rounded_when_everything_else_is(encoder, tmp_path):
    torch.nn.init.normal_(encoder.soft_prompt.weight)
    encoder.save_pretrained(tmp_path)
    reloaded = LLMBiEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(reloaded.soft_prompt.weight, encoder.soft_prompt.weight)
    assert reloaded.get_input_embeddings().weight.dtype == torch.bfloat16


def test_the_prompt_takes_positions_of_the_decoder(encoder):
    encoder.set_prompt(soft_prompt="no" * 6)
    assert encoder.tokenize("no" * 249, max_length=300)["input_ids"].shape == (1, 250)
    with pytest.raises(ValueError, match=r"at most 256, .* got a text of 257 tokens"):
        encoder.tokenize("no" * 250, max_length=300)


@pytest.mark.filterwarnings(
    "ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"
)  # peft asks for it
def test_an_adapter_trains_and_saves_the_soft_prompt(encoder):
    base = copy.deepcopy(encoder)
    lora = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["soft_prompt"])
    adapted = get_peft_model(encoder, lora)
    (adapted(**base.tokenize(TEXTS)).pooler_output ** 2).sum().backward()
    trained = {name for name, p in adapted.named_parameters() if p.grad is not None}
    assert {name for name in trained if "lora" not in name} == {
        "base_model.model.soft_prompt.modules_to_save.default.weight"
    }
    torch.nn.init.constant_(encoder.soft_prompt.modules_to_save.default.weight, 0.25)
    merged = adapted.merge_and_unload()
    assert merged.soft_prompt.weight.eq(0.25).all()
    assert not base.soft_prompt.weight.eq(0.25).any()
