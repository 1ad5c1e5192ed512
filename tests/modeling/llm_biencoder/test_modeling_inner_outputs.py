"""States and attention maps of the decoder, as the encoder and its heads return them."""

import copy

import pytest
import torch

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_inner_outputs import inner_outputs, without_prompt
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

IDS = torch.tensor([[5, 9, 3, 7, 30], [0, 0, 8, 40, 41], [6, 2, 11, 0, 0]])
BOTH = {"output_hidden_states": True, "output_attentions": True}
# A text on its own is computed by other kernels than a text in a batch.
LAST_BITS = {"atol": 1e-5, "rtol": 0}


@pytest.fixture(params=[True, False], ids=["bidirectional", "causal"])
def encoder(request, tiny_text_config) -> LLMBiEncoder:
    tiny_text_config.bidirectional = request.param
    return LLMBiEncoder._from_config(copy.deepcopy(tiny_text_config), attn_implementation="eager").eval()


@torch.no_grad()
def test_states_and_maps_are_those_of_the_decoder(encoder):
    mask = (IDS != 0).long()
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    expected = encoder.model(IDS, attention_mask=mask, position_ids=positions, use_cache=False, **BOTH)
    plain, output = encoder(IDS, mask), encoder(IDS, mask, **BOTH)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(output.pooler_output, plain.pooler_output)
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
    assert torch.equal(output.hidden_states[0], encoder.get_input_embeddings()(IDS))
    assert output.hidden_states[-1] is output.last_hidden_state
    for name in ("hidden_states", "attentions"):
        assert all(torch.equal(*pair) for pair in zip(output[name], expected[name], strict=True))


@torch.no_grad()
@pytest.mark.parametrize("padding", ["contiguous", "legacy_middle"])
def test_the_prompt_is_in_neither_and_what_it_got_is_missing_in_the_maps(encoder, tiny_tokenizer, padding):
    encoder.tokenizer = tiny_tokenizer
    encoder.config.prompt_padding = padding
    encoder.set_prompt(hard_prompt="Describe no", soft_prompt=" There is a small nodule")
    size = encoder.config.num_prompt_tokens
    assert size > 2
    output = encoder(IDS, (IDS != 0).long(), **BOTH)
    assert output.hidden_states[0].shape == (3, 5, 32)
    assert torch.equal(output.hidden_states[-1], output.last_hidden_state)
    assert [tuple(one.shape) for one in output.attentions] == [(3, 4, 5, 5)] * 2
    assert torch.equal(output.hidden_states[0], encoder.get_input_embeddings()(IDS))
    prompt = encoder.soft_prompt(encoder.get_input_embeddings()(torch.tensor(encoder.config.hard_prompt_ids)))
    text = encoder.get_input_embeddings()(IDS[:1])  # without padding
    whole = encoder.model(inputs_embeds=torch.cat([prompt[None], text], dim=1), use_cache=False, **BOTH)
    for got, expected in zip(output.hidden_states, whole.hidden_states, strict=True):
        torch.testing.assert_close(got[:1], expected[:, size:], **LAST_BITS)
    for got, expected in zip(output.attentions, whole.attentions, strict=True):
        torch.testing.assert_close(got[:1], expected[:, :, size:, size:], **LAST_BITS)
        missing = expected[:, :, size:, :size].sum(dim=-1)
        torch.testing.assert_close(1 - got[:1].sum(dim=-1), missing, **LAST_BITS)


def test_states_that_were_left_out_stay_left_out():
    # What newer releases give for output_hidden_states=[1]; and for maps that an implementation has not.
    states = (None, torch.arange(6.0).reshape(1, 3, 2))
    output = without_prompt(
        type("Output", (), {"last_hidden_state": states[1], "hidden_states": states, "attentions": ()}),
        torch.tensor([[1, 2]]),
    )
    assert output.hidden_states[0] is None
    assert output.hidden_states[1].tolist() == output.last_hidden_state.tolist() == [[[2, 3], [4, 5]]]
    assert output.attentions == ()


@pytest.mark.parametrize("head", [LLMBiEncoderForSequenceClassification, LLMBiEncoderForMaskedNTP])
@torch.no_grad()
def test_heads_hand_them_on_and_score_the_same(tiny_text_config, head):
    tiny_text_config.finding_layers = [1, 2]
    model = head._from_config(tiny_text_config, attn_implementation="eager").eval()
    mask = (IDS != 0).long()
    expected = model.encoder(IDS, mask, **BOTH)
    plain, output = model(IDS, mask), model(IDS, mask, **BOTH)
    assert plain.hidden_states is None
    assert plain.attentions is None
    assert torch.equal(output.logits, plain.logits)
    for name in ("hidden_states", "attentions"):
        assert all(torch.equal(*pair) for pair in zip(output[name], expected[name], strict=True))
    as_tuple = model(IDS, mask, **BOTH, return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert [len(value) for value in as_tuple[-2:]] == [3, 2]


@torch.no_grad()
def test_masked_prediction_hands_them_on_with_its_loss(tiny_text_config):
    model = LLMBiEncoderForMaskedNTP(tiny_text_config).eval()
    labels = torch.full_like(IDS, -100)
    labels[0, 2] = 17
    plain, output = model(IDS, labels=labels), model(IDS, labels=labels, output_hidden_states=True)
    assert torch.equal(output.loss, plain.loss)
    assert len(output.hidden_states) == 3


@torch.no_grad()
def test_the_configuration_asks_where_the_call_does_not_say(encoder):
    encoder.config.output_hidden_states = True
    assert len(encoder(IDS).hidden_states) == 3
    assert encoder(IDS, output_hidden_states=False).hidden_states is None


def test_what_nobody_decides_is_left_to_the_part():
    config = LLMBiEncoderConfig()
    assert inner_outputs(config, None, None) == {}
    assert inner_outputs(config, False, True) == {"output_hidden_states": False, "output_attentions": True}
    config.output_hidden_states = True
    assert inner_outputs(config, None, None) == {"output_hidden_states": True}
    assert inner_outputs(config, False, None) == {"output_hidden_states": False}


def test_the_first_state_has_the_gradient_of_the_output(tiny_text_config):
    output = LLMBiEncoder(tiny_text_config)(IDS, output_hidden_states=True)
    output.hidden_states[0].retain_grad()
    output.pooler_output.sum().backward()
    assert output.hidden_states[0].grad.abs().sum() > 0
