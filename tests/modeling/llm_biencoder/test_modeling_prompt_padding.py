"""Padding between prompt and text, as in the published code of QwenCLIP, and its cure."""

import logging

import pytest
import torch
from huggingface_hub.errors import StrictDataclassFieldValidationError
from transformers import Qwen3Config, Qwen3Model
from transformers.utils import logging as transformers_logging

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_soft_prompt import insert_prompt_legacy, take_tokens
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

TEXTS = ["no", "There is a small nodule in the left upper lobe. There is no effusion.", "no effusion"]


@pytest.fixture
def encoder(tiny_tokenizer) -> LLMBiEncoder:
    """A causal Qwen3 that pools its last token, with a prompt of fixed tokens and trained vectors."""
    decoder = Qwen3Config(
        vocab_size=len(tiny_tokenizer),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        max_position_embeddings=256,
        initializer_range=0.2,  # differences between texts must show
        pad_token_id=0,
    )
    torch.manual_seed(0)
    config = LLMBiEncoderConfig(
        text_config=decoder, bidirectional=False, pooling="last_token", prompt_padding="legacy_middle"
    )
    encoder = LLMBiEncoder(config).eval()
    encoder.tokenizer = tiny_tokenizer
    encoder.set_prompt("Describe", " There is a small nodule")
    torch.nn.init.normal_(encoder.soft_prompt.weight)
    return encoder


def _as_released(encoder: LLMBiEncoder, texts: list[str]) -> torch.Tensor:
    """The published computation, written out with a plain decoder: ``(B, E)``."""
    decoder = Qwen3Model(encoder.config.text_config).eval()
    decoder.load_state_dict(encoder.model.state_dict())
    inputs = encoder.tokenizer(texts, padding=True, padding_side="left", return_tensors="pt")
    embed = decoder.get_input_embeddings()
    hard = embed(torch.tensor([encoder.config.hard_prompt_ids]))
    prompt = torch.cat([hard, encoder.soft_prompt.weight[None]], dim=1).expand(len(texts), -1, -1)
    embeds = torch.cat([prompt, embed(inputs["input_ids"])], dim=1)
    mask = torch.cat([torch.ones(prompt.shape[:2], dtype=torch.long), inputs["attention_mask"]], dim=1)
    return decoder(inputs_embeds=embeds, attention_mask=mask, use_cache=False).last_hidden_state[:, -1]


def _alone(encoder: LLMBiEncoder) -> torch.Tensor:
    return torch.cat([_as_released(encoder, [text]) for text in TEXTS])


def test_legacy_padding_stands_between_prompt_and_text_from_whichever_side_it_came():
    prompt = torch.tensor([[-1.0], [-2.0]])
    embeds = torch.arange(12, dtype=torch.float32).reshape(3, 4, 1)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [1, 1, 0, 0]])
    both, both_mask, places = insert_prompt_legacy(prompt, embeds, mask)
    assert both[..., 0].tolist() == [[-1, -2, 0, 1, 2, 3], [-1, -2, 4, 5, 6, 7], [-1, -2, 10, 11, 8, 9]]
    assert both_mask.tolist() == [[1, 1, 1, 1, 1, 1], [1, 1, 0, 0, 1, 1], [1, 1, 0, 0, 1, 1]]
    assert torch.equal(take_tokens(both, places), embeds)


@torch.no_grad()
@pytest.mark.parametrize("side", ["left", "right"])
def test_the_released_defect_is_reproduced_by_value(encoder, side):
    encoder.tokenizer.padding_side = side
    expected, alone = _as_released(encoder, TEXTS), _alone(encoder)
    inputs = encoder.tokenize(TEXTS)
    vectors = encoder(**inputs).pooler_output
    torch.testing.assert_close(vectors, expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode_text(TEXTS), expected, atol=1e-5, rtol=0)
    torch.testing.assert_close(encoder.encode(TEXTS, batch_size=3), expected, atol=1e-5, rtol=0)
    cosines = torch.cosine_similarity(vectors, alone)
    assert cosines[1].item() == pytest.approx(1, abs=1e-5), "the longest text has no padding"
    assert (cosines[[0, 2]] < 0.99).all(), f"no defect to reproduce: {cosines.tolist()}"
    # One text at a time there is no padding; nor is there a defect.
    torch.testing.assert_close(encoder.encode(TEXTS, batch_size=1), alone, atol=1e-5, rtol=0)

    encoder.config.prompt_padding = "contiguous"
    cured = encoder(**inputs).pooler_output
    torch.testing.assert_close(torch.cosine_similarity(cured, alone), torch.ones(3), atol=1e-5, rtol=0)
    torch.testing.assert_close(cured, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_states_are_those_of_the_given_tokens_on_either_side(encoder):
    states = {}
    for side in ("left", "right"):
        encoder.tokenizer.padding_side = side
        inputs = encoder.tokenize(TEXTS)
        states[side] = encoder(**inputs).last_hidden_state[inputs["attention_mask"] == 1]
    torch.testing.assert_close(states["left"], states["right"], atol=1e-5, rtol=0)
    last = encoder.tokenize(TEXTS)["attention_mask"].sum(dim=1).cumsum(dim=0) - 1
    torch.testing.assert_close(states["left"][last], _as_released(encoder, TEXTS), atol=1e-5, rtol=0)


def test_the_soft_prompt_receives_its_gradient_in_legacy_padding_too(encoder):
    expected = torch.autograd.grad(_as_released(encoder, TEXTS).square().sum(), encoder.soft_prompt.weight)[0]
    encoder(**encoder.tokenize(TEXTS)).pooler_output.square().sum().backward()
    torch.testing.assert_close(encoder.soft_prompt.weight.grad, expected, atol=1e-4, rtol=1e-4)


def test_dependence_on_the_batch_is_said_once_and_only_where_there_is_any(encoder, caplog):
    transformers_logging.warning_once.cache_clear()  # other tests were warned, too
    with caplog.at_level(logging.WARNING):
        encoder.encode_text("no")
        encoder.config.prompt_padding = "contiguous"
        encoder.encode_text(TEXTS)
        assert not caplog.text, "nothing depends on the batch yet"
        encoder.config.prompt_padding = "legacy_middle"
        encoder.encode_text(TEXTS)
        encoder.encode(TEXTS)
    assert caplog.text.count("depends on the longest text of its batch") == 1
    assert "prompt_padding = 'contiguous', or encode with batch_size=1" in caplog.text


def test_only_a_prompt_can_have_padding_behind_it(encoder):
    assert encoder.config.depends_on_batch
    encoder.set_prompt()
    assert not encoder.config.depends_on_batch
    legacy = encoder.encode_text(TEXTS)
    encoder.config.prompt_padding = "contiguous"
    assert not encoder.config.depends_on_batch
    assert torch.equal(encoder.encode_text(TEXTS), legacy)


def test_the_padding_survives_saving_and_can_be_chosen_while_loading(encoder, tmp_path):
    encoder.save_pretrained(tmp_path)
    reloaded = LLMBiEncoder.from_pretrained(tmp_path).eval()
    assert reloaded.config.prompt_padding == "legacy_middle"
    torch.testing.assert_close(reloaded.encode_text(TEXTS), encoder.encode_text(TEXTS), atol=1e-5, rtol=0)
    cured = LLMBiEncoder.from_pretrained(tmp_path, prompt_padding="contiguous").eval()
    torch.testing.assert_close(cured.encode_text(TEXTS), _alone(encoder), atol=1e-5, rtol=0)


def test_other_paddings_are_refused():
    with pytest.raises(StrictDataclassFieldValidationError, match="'prompt_padding' expected one of"):
        LLMBiEncoderConfig(prompt_padding="middle")
