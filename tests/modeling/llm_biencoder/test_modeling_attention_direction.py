import pytest
import torch
from transformers import AutoModel, Gemma3TextConfig, LlamaConfig, MistralConfig, Qwen3Config
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_attention_direction import check_attention_direction
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

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
ONE_LAYER = SIZES | {"num_hidden_layers": 1}
SLIDING = {"head_dim": 8, "sliding_window": 16}
FAMILIES = {
    "llama": LlamaConfig(**SIZES),
    "qwen3": Qwen3Config(**SIZES, head_dim=8),
    "qwen3 sliding": Qwen3Config(**SIZES, **SLIDING, use_sliding_window=True, max_window_layers=1),
    "mistral": MistralConfig(**SIZES, head_dim=8, sliding_window=None),
    "mistral sliding": MistralConfig(**SIZES, **SLIDING),
    "gemma3": Gemma3TextConfig(**SIZES, **SLIDING, layer_types=["sliding_attention", "full_attention"]),
    "gemma3 sliding": Gemma3TextConfig(**SIZES, **SLIDING, layer_types=["sliding_attention"] * 2),
}
# It compiles or says that it does not, and deprecated parts of PyTorch take part in that.
FLEX_MARKS = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
BACKENDS = [(family, attention) for family in FAMILIES for attention in ("eager", "sdpa")] + [
    pytest.param(family, "flex_attention", marks=FLEX_MARKS) for family in ("llama", "gemma3")
]


def _encoder(family: str, attention: str = "sdpa", **fields) -> LLMBiEncoder:
    config = LLMBiEncoderConfig(
        text_config=FAMILIES[family].to_dict(), **{"pooling": "mean", "num_latent_heads": 4} | fields
    )
    return LLMBiEncoder._from_config(config, attn_implementation=attention).eval()


@torch.no_grad()
@pytest.mark.parametrize("is_bidirectional", [True, False])
@pytest.mark.parametrize(("family", "attention"), BACKENDS)
def test_a_later_token_changes_the_first_one_exactly_if_bidirectional(family, attention, is_bidirectional):
    encoder = _encoder(family, attention, bidirectional=is_bidirectional)
    assert encoder.model.config._attn_implementation == attention
    for num_texts in (1, 3):
        for padding in ("no", "left", "right"):
            ids = torch.randint(1, 50, (num_texts, 9))
            mask, first, last = torch.ones_like(ids), 0, 8
            if padding == "left":
                mask[-1, :2], first = 0, 2
            if padding == "right":
                mask[-1, 7:], last = 0, 6
            changed = ids.clone()
            changed[-1, last] = ids[-1, last] % 49 + 1
            before = encoder(ids, mask).last_hidden_state
            after = encoder(changed, mask).last_hidden_state
            shift = (after[-1, first] - before[-1, first]).abs().max()
            assert shift > 1e-3 if is_bidirectional else shift < 1e-6, (num_texts, padding)
            torch.testing.assert_close(before[:-1], after[:-1])
    encoder.check_direction()
    with pytest.raises(RuntimeError, match=rf"in layers \[0, 1\] of .* with no padding under '{attention}'"):
        check_attention_direction(encoder.model, 2 if is_bidirectional else 0)


def test_backends_that_read_the_flag_of_the_layer_agree_with_those_that_read_the_configuration():
    for is_bidirectional in (True, False):
        encoder = _encoder("gemma3", bidirectional=is_bidirectional)
        flags = {module.is_causal for module in encoder.model.modules() if hasattr(module, "is_causal")}
        assert flags == {not is_bidirectional}


@pytest.mark.parametrize("padding", ["no", "left", "right"])
def test_one_causal_layer_among_bidirectional_ones_is_found(padding):
    encoder = _encoder("llama")

    def read_forward_only(_layer, args, kwargs):
        mask = kwargs["attention_mask"]
        is_padded = mask is not None and not mask.all()
        side = "no" if not is_padded else ("left" if not mask[-1, 0, -1, 0] else "right")
        if side == padding:
            allowed = torch.ones(6, 6, dtype=torch.bool).tril()
            kwargs["attention_mask"] = allowed[None, None] if mask is None else mask & allowed
        return args, kwargs

    encoder.model.layers[1].register_forward_pre_hook(read_forward_only, with_kwargs=True)
    with pytest.raises(
        RuntimeError, match=rf"be bidirectional, got causal in layers \[1\] .* with {padding} padding"
    ):
        encoder.check_direction()


def test_the_check_leaves_the_model_as_it_was():
    encoder = _encoder("llama").train()
    encoder.model.layers[0].eval()
    modes = [module.training for module in encoder.modules()]
    encoder.check_direction()
    assert [module.training for module in encoder.modules()] == modes
    assert not any(module._forward_hooks for module in encoder.modules())


def test_the_check_is_not_deceived_by_dropout():
    decoder = AutoModel.from_config(LlamaConfig(**SIZES, attention_dropout=0.5))
    check_attention_direction(decoder.train(), len(decoder.layers))


def test_wrapping_a_language_model_refuses_a_backend_that_stays_causal(tiny_llm_folder, monkeypatch):
    sdpa = ALL_ATTENTION_FUNCTIONS["sdpa"]

    def causal(module, query, key, value, attention_mask, **kwargs):
        return sdpa(module, query, key, value, None, **kwargs | {"is_causal": True})

    LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS, "sdpa", causal)
    with pytest.raises(RuntimeError, match=r"be bidirectional, got causal in layers \[0, 1\] of LlamaModel"):
        LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean")


@torch.no_grad()
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**ONE_LAYER, head_dim=8, sliding_window=4),
        Gemma3TextConfig(**ONE_LAYER, head_dim=8, sliding_window=4, layer_types=["sliding_attention"]),
        Qwen3Config(**ONE_LAYER, head_dim=8, sliding_window=4, use_sliding_window=True, max_window_layers=0),
    ],
    ids=lambda config: config.model_type,
)
def test_a_sliding_window_reaches_equally_far_to_both_sides(config, attention):
    config = LLMBiEncoderConfig(text_config=config.to_dict(), pooling="mean")
    encoder = LLMBiEncoder._from_config(config, attn_implementation=attention).eval()
    ids = torch.randint(1, 50, (1, 21))
    changed = ids.clone()
    changed[0, 10] = ids[0, 10] % 49 + 1
    shift = (encoder(changed).last_hidden_state - encoder(ids).last_hidden_state).abs().amax(-1)[0]
    reached = (shift > 1e-4).nonzero().flatten() - 10
    assert reached.tolist() == list(range(-reached.max(), reached.max() + 1))
    assert 3 <= reached.max() <= 4
