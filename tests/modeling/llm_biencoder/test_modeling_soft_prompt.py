import copy

import pytest
import torch

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
