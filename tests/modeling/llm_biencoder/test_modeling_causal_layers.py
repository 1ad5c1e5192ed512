import pytest
import torch
from transformers import Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_attention_direction import check_attention_direction
from radtower.modeling.llm_biencoder.modeling_causal_layers import causal_part
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

SIZES = {
    "vocab_size": 50,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
    "pad_token_id": 0,
}
SLIDING = {"head_dim": 8, "sliding_window": 4}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "mistral sliding": MistralConfig(**SIZES, **SLIDING),
    "gemma3": Gemma3TextConfig(
        **SIZES, **SLIDING, layer_types=["sliding_attention", "full_attention", "sliding_attention"]
    ),
}
TEXT = [3, 14, 15, 9, 26, 5]


def _encoder(family: str, num_causal_layers: int, attention: str = "sdpa", **fields) -> LLMBiEncoder:
    config = LLMBiEncoderConfig(
        text_config=FAMILIES[family].to_dict(),
        pooling="mean",
        num_causal_layers=num_causal_layers,
        **fields,
    )
    torch.manual_seed(0)
    return LLMBiEncoder._from_config(config, attn_implementation=attention).eval()


def _states(encoder: LLMBiEncoder, ids: torch.Tensor, mask: torch.Tensor) -> list[torch.Tensor]:
    """Output of every layer."""
    found: list[torch.Tensor] = []
    handles = [
        layer.register_forward_hook(lambda _layer, _args, output: found.append(output))
        for layer in encoder.model.layers
    ]
    encoder(ids, mask)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("family", FAMILIES)
def test_lower_layers_equal_those_of_a_causal_encoder_and_upper_ones_see_the_end(family, attention):
    mixed = _encoder(family, 2, attention)
    causal = _encoder(family, 0, attention, bidirectional=False)
    causal.load_state_dict(mixed.state_dict())
    row = torch.tensor([TEXT])
    padded = torch.tensor([[*TEXT, 0, 0], [7, *TEXT[::-1], 8]])
    left = padded.roll(2, dims=1)
    left_mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1, 1], [1] * 8])
    right_mask = torch.tensor([[1, 1, 1, 1, 1, 1, 0, 0], [1] * 8])
    for ids, mask in ((row, torch.ones_like(row)), (padded, right_mask), (left, left_mask)):
        ours, theirs = _states(mixed, ids, mask), _states(causal, ids, mask)
        real = mask.bool()
        torch.testing.assert_close(ours[1][real], theirs[1][real], atol=1e-5, rtol=0)
        assert (ours[2][real] - theirs[2][real]).abs().max() > 1e-2
        changed = ids.clone()
        changed[real.nonzero()[-1][0], real.nonzero()[-1][1]] = 40
        after = _states(mixed, changed, mask)
        before_last = real[-1].nonzero()[-2]
        torch.testing.assert_close(after[1][-1, before_last], ours[1][-1, before_last])
        assert (after[2][-1, before_last] - ours[2][-1, before_last]).abs().max() > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_check_by_behavior_knows_how_many_layers_are_causal(family):
    encoder = _encoder(family, 2)
    encoder.check_direction()
    with pytest.raises(RuntimeError, match=r"must be bidirectional, got causal in layers \[1\]"):
        check_attention_direction(encoder.model, 1)
    with pytest.raises(RuntimeError, match=r"must be causal, got bidirectional in layers \[2\]"):
        check_attention_direction(encoder.model, 3)


@torch.no_grad()
def test_saved_and_loaded_it_is_the_same(tmp_path):
    encoder = _encoder("llama", 2)
    encoder.save_pretrained(tmp_path)
    loaded = LLMBiEncoder.from_pretrained(tmp_path)
    assert loaded.config.num_causal_layers == 2
    row = torch.tensor([TEXT])
    torch.testing.assert_close(loaded(row).last_hidden_state, encoder(row).last_hidden_state)
    other = LLMBiEncoder.from_pretrained(tmp_path, num_causal_layers=0)
    assert (other(row).last_hidden_state - encoder(row).last_hidden_state).abs().max() > 1e-2


def test_gradients_and_checkpointing_keep_the_direction():
    encoder = _encoder("llama", 2).train()
    row = torch.tensor([TEXT])
    encoder(row).pooler_output.sum().backward()
    plain = encoder.model.layers[0].self_attn.q_proj.weight.grad.clone()
    encoder.zero_grad()
    encoder.activation_checkpointing_enable()
    encoder(row).pooler_output.sum().backward()
    torch.testing.assert_close(encoder.model.layers[0].self_attn.q_proj.weight.grad, plain)


def test_masks_lose_their_future():
    seen = torch.ones(1, 1, 2, 2, dtype=torch.bool)
    assert causal_part(seen).tolist() == [[[[True, False], [True, True]]]]
    added = causal_part(torch.zeros(1, 1, 2, 2))
    assert added.tolist() == [[[[0.0, torch.finfo(torch.float32).min], [0.0, 0.0]]]]
    every = torch.ones(1, 1, 3, 3, dtype=torch.bool)
    assert causal_part(every, window=2).int().tolist() == [[[[1, 0, 0], [1, 1, 0], [0, 1, 1]]]]
    assert causal_part(None) is None
    assert causal_part(torch.ones(1, 2)).tolist() == [[1.0, 1.0]]
    with pytest.raises(ValueError, match="must have 2 or 4 dimensions where layers stay causal, got str"):
        causal_part("block mask")
    with pytest.raises(ValueError, match="got 3 dimensions"):
        causal_part(torch.ones(1, 2, 2))


def test_an_encoder_that_is_built_refuses_another_number():
    encoder = _encoder("llama", 2)
    encoder.config.num_causal_layers = 1
    with pytest.raises(RuntimeError, match=r"config\.num_causal_layers must stay 2"):
        encoder(torch.tensor([TEXT]))
