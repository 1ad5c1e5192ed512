import copy
import os
import platform
import subprocess
import sys

import pytest
import torch
import torch.nn.functional as F
from peft import LoraConfig, get_peft_model
from torch import nn

from radtower.modeling.llm_biencoder.modeling_cpu_linear import (
    ONEDNN_LINEAR,
    Int8Linear,
    OneDNNLinears,
    check_int8_product,
    quantize_linears,
)
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

TEXTS = ["There is no nodule.", "There is a small effusion present in the left lung.", "no", "Describe"]


@pytest.fixture
def encoder(tiny_text_config, tiny_tokenizer) -> LLMBiEncoder:
    encoder = LLMBiEncoder(tiny_text_config).eval()
    encoder.tokenizer = tiny_tokenizer
    return encoder


def _operators(function) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        function()
    return {event.key for event in profile.key_averages()}


@torch.no_grad()
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("shape", [(40, 7), (2, 20, 7), (2, 3, 9, 7)])
def test_one_dnn_gives_the_same_product(shape, has_bias):
    layer, x = nn.Linear(7, 5, bias=has_bias), torch.randn(shape)
    expected = layer(x)
    with OneDNNLinears():
        torch.testing.assert_close(layer(x), expected, atol=1e-6, rtol=1e-5)
        assert "mkldnn::_linear_pointwise" in _operators(lambda: layer(x))
    assert "mkldnn::_linear_pointwise" not in _operators(lambda: layer(x))


@torch.no_grad()
def test_changed_weights_count_at_once():
    layer, x = nn.Linear(6, 6), torch.randn(32, 6)
    with OneDNNLinears():
        layer(x)
        layer.weight.mul_(2)
        layer.bias.zero_()
        torch.testing.assert_close(layer(x), x @ layer.weight.T, atol=1e-6, rtol=1e-5)


@pytest.mark.skipif(ONEDNN_LINEAR is None, reason="this torch has no oneDNN")
def test_what_one_dnn_should_not_touch_stays_as_it_is(monkeypatch):
    layer, x = nn.Linear(6, 6), torch.randn(32, 6)

    def is_used(layer, x) -> bool:
        return "mkldnn::_linear_pointwise" in _operators(lambda: layer(x))

    with OneDNNLinears():
        assert not is_used(layer, x), "gradients would be lost"
        with torch.no_grad():
            assert is_used(layer, x)
            assert not is_used(layer, x[:15]), "too few tokens to be worth it"
            assert not is_used(layer, x[0])
            assert not is_used(copy.deepcopy(layer).double(), x.double())
            with torch.autocast("cpu", dtype=torch.bfloat16):
                assert not is_used(layer, x)
            monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
            assert not is_used(layer, x)


def test_encode_uses_it_and_agrees_with_the_plain_forward(encoder):
    texts = TEXTS * 3
    torch.testing.assert_close(encoder.encode(texts), encoder.encode_text(texts), atol=1e-5, rtol=0)
    assert "mkldnn::_linear_pointwise" in _operators(lambda: encoder.encode(texts))


@torch.no_grad()
@pytest.mark.parametrize("has_bias", [True, False])
def test_eight_bit_weights_are_rounded_per_output_and_inputs_hardly(has_bias):
    layer = nn.Linear(3, 2, bias=has_bias)
    layer.weight.copy_(torch.tensor([[127.0, -64, 1.4], [0.5, 0.25, -0.1]]))
    x = torch.tensor([[[127.0, 0.6, -20], [0, 0, 0], [2.0, -1, 0.3]]])
    weight = torch.tensor([[127.0, -64, 1], [127 * 0.5 / 127, 64 * 0.5 / 127, -25 * 0.5 / 127]])
    expected = F.linear(x, weight, layer.bias)
    # Half a step of the second number: 127 / 127 / 254 / 2, times a weight of 64.
    torch.testing.assert_close(Int8Linear(layer)(x), expected, atol=0.13, rtol=0)
    assert (layer(x) - expected).abs().max() > 5, "the weights were exact"


@torch.no_grad()
def test_a_huge_activation_leaves_the_steps_of_the_others():
    layer, x = nn.Linear(64, 48), torch.randn(9, 64)
    x[:, 3] = 300
    quantized = Int8Linear(layer)
    weight = quantized.weight_int8 * quantized.scale[:, None]
    torch.testing.assert_close(quantized(x), F.linear(x, weight, layer.bias), atol=0.02, rtol=0)
    # One number of 8 bits alone would lose the small ones.
    step = 300 / 127
    assert (F.linear((x / step).round() * step, weight, layer.bias) - quantized(x)).abs().max() > 0.3


@torch.no_grad()
def test_a_row_of_zero_weights_gives_zero_and_not_nan():
    layer = nn.Linear(3, 2, bias=False)
    layer.weight[0] = 0
    assert torch.equal(Int8Linear(layer)(torch.ones(4, 3))[:, 0], torch.zeros(4))


@torch.no_grad()
def test_half_precision_stays_half():
    layer = nn.Linear(64, 8).bfloat16()
    x = torch.randn(5, 64, dtype=torch.bfloat16)
    output = Int8Linear(layer)(x)
    assert output.dtype == torch.bfloat16
    assert F.cosine_similarity(output.float().flatten(), layer(x).float().flatten(), dim=0) > 0.999


def test_a_quantized_encoder_gives_nearly_the_same_vectors_from_less_memory(encoder):
    expected, size = encoder.encode(TEXTS), encoder.get_memory_footprint()
    assert encoder.quantize_weights() is encoder
    vectors = encoder.encode(TEXTS)
    assert F.cosine_similarity(vectors, expected).min() > 0.99
    assert (vectors - expected).abs().max() > 1e-4, "nothing was quantized"
    assert sum(isinstance(module, Int8Linear) for module in encoder.modules()) == 14
    assert encoder.get_memory_footprint() < size
    alone = torch.cat([encoder.encode(text) for text in TEXTS])
    torch.testing.assert_close(vectors, alone, atol=1e-3, rtol=0)


def test_eight_bit_weights_are_neither_saved_nor_trained(encoder, tmp_path):
    encoder.quantize_weights("int8")
    with pytest.raises(RuntimeError, match="weights must be floating point to be saved, got int8"):
        encoder.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError, match="weights must be floating point to be saved, got int8"):
        encoder.state_dict()
    embeds = encoder.get_input_embeddings()(torch.tensor([[3, 4]])).requires_grad_()
    with pytest.raises(RuntimeError, match="weights must be floating point to be trained, got int8"):
        encoder(inputs_embeds=embeds)
    assert list(tmp_path.iterdir()) == []
    assert not encoder.encode_text("no").requires_grad
    encoder(**encoder.tokenize(TEXTS)).pooler_output.sum().backward()
    assert encoder.latent_attn.latents.grad.any(), "the head behind the decoder can be trained"
    assert not any(parameter.requires_grad for parameter in encoder.model.parameters())


def test_the_lowest_two_fifths_of_the_layers_stay_floating_point(tiny_text_config):
    tiny_text_config.text_config.num_hidden_layers = 7
    encoder = LLMBiEncoder(tiny_text_config)
    before = {name: value.clone() for name, value in encoder.named_parameters() if "layers.1." in name}
    encoder.quantize_weights()
    quantized = [
        sum(isinstance(module, Int8Linear) for module in layer.modules()) for layer in encoder.model.layers
    ]
    assert quantized == [0, 0, 7, 7, 7, 7, 7]
    after = dict(encoder.named_parameters())
    assert len(before) == 9
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_failed_save_leaves_no_folder(encoder, tiny_medclip, tmp_path):
    tiny_medclip.text_model.quantize_weights()
    for model in (encoder.quantize_weights(), tiny_medclip):
        with pytest.raises(RuntimeError, match="weights must be floating point to be saved, got int8"):
            model.save_pretrained(tmp_path / "out")
        assert not (tmp_path / "out").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
@pytest.mark.parametrize("is_wrapped", [True, False])
def test_an_adapter_is_refused_before_anything_is_replaced(encoder, is_wrapped):
    lora = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    if is_wrapped:
        get_peft_model(encoder, lora)
    else:
        encoder.add_adapter(lora)
    expected = encoder.encode(TEXTS)
    with pytest.raises(
        ValueError, match="an adapter must be merged before quantizing, got Linear in the model"
    ):
        encoder.quantize_weights()
    assert not any(isinstance(module, Int8Linear) for module in encoder.modules())
    torch.testing.assert_close(encoder.encode(TEXTS), expected, atol=1e-5, rtol=0)


def test_products_of_this_machine_are_exact_or_refused():
    x = torch.full((32, 200), 127, dtype=torch.int8)
    if torch._int_mm(x, x.t())[0, 0] == 200 * 127 * 127:
        check_int8_product()
    else:
        with pytest.raises(RuntimeError, match="products of 8 bits must be exact, got"):
            check_int8_product()


SATURATES = """
import torch
from radtower.modeling.llm_biencoder.modeling_cpu_linear import Int8Linear, quantize_linears
model = torch.nn.Sequential(torch.nn.Linear(4, 4))
try:
    quantize_linears(model)
except RuntimeError as refusal:
    print(refusal, type(model[0]).__name__)
"""


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the setting is of x86")
def test_a_cpu_that_cuts_sums_at_16_bits_is_refused_before_anything_is_replaced():
    environment = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    run = subprocess.run(
        [sys.executable, "-c", SATURATES], env=environment, capture_output=True, text=True, check=True
    )
    # Pairs of 127 * 127 (one of them shifted to be positive) end at 32767.
    assert "products of 8 bits must be exact, got" in run.stdout
    assert "for 1032256: this CPU lacks VNNI" in run.stdout
    assert run.stdout.endswith(" Linear\n")


def test_refuses_another_precision_and_a_second_time(encoder):
    with pytest.raises(ValueError, match="precision must be 'int8', got 'int4'"):
        encoder.quantize_weights("int4")
    encoder.quantize_weights()
    with pytest.raises(ValueError, match=r"must have linear layers on the CPU, got 0 on \[\]"):
        encoder.quantize_weights()
    with pytest.raises(ValueError, match=r"must have linear layers on the CPU, got 1 on \['meta'\]"):
        quantize_linears(nn.Sequential(nn.Linear(2, 2, device="meta")))
