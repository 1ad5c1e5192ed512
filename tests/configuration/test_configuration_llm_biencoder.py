import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import LlamaConfig, Qwen3Config

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig


def test_survives_a_round_trip_through_json(tmp_path):
    settings = {
        "bidirectional": False,
        "pooling": "last_token",
        "latent_variant": "prenorm",
        "num_latents": 6,
        "num_latent_heads": 3,
        "max_length": 77,
        "separator": "<sep>",
        "mask_mode": "legacy_suffix",
    }
    LLMBiEncoderConfig(text_config={"model_type": "qwen3", "hidden_size": 48}, **settings).save_pretrained(
        tmp_path
    )
    reloaded = LLMBiEncoderConfig.from_pretrained(tmp_path)
    assert {name: getattr(reloaded, name) for name in settings} == settings
    assert isinstance(reloaded.text_config, Qwen3Config)
    assert reloaded.text_config.hidden_size == 48
    assert reloaded.model_type == "llm_biencoder"


def test_no_decoder_means_the_default_llama():
    config = LLMBiEncoderConfig()
    assert isinstance(config.text_config, LlamaConfig)
    assert config.hidden_size == LlamaConfig().hidden_size


def test_the_embedding_is_as_wide_as_the_decoder():
    assert (
        LLMBiEncoderConfig(text_config=LlamaConfig(hidden_size=48, num_attention_heads=6)).hidden_size == 48
    )


@pytest.mark.parametrize("bidirectional", [True, False])
def test_the_direction_reaches_the_decoder_and_its_json(tmp_path, bidirectional):
    config = LLMBiEncoderConfig(text_config=LlamaConfig(is_causal=bidirectional), bidirectional=bidirectional)
    assert config.text_config.is_causal is not bidirectional
    config.save_pretrained(tmp_path)
    assert LLMBiEncoderConfig.from_pretrained(tmp_path).text_config.is_causal is not bidirectional


def test_two_encoders_of_one_decoder_configuration_keep_their_own_direction():
    decoder = LlamaConfig()
    both_ways = LLMBiEncoderConfig(text_config=decoder)
    forward_only = LLMBiEncoderConfig(text_config=decoder, bidirectional=False)
    assert both_ways.text_config.is_causal is False
    assert forward_only.text_config.is_causal is True


@pytest.mark.parametrize("name", ["num_latents", "num_latent_heads", "max_length"])
def test_refuses_a_size_that_is_not_positive(name):
    with pytest.raises(StrictDataclassClassValidationError, match=f"{name} must be positive, got 0"):
        LLMBiEncoderConfig(**{name: 0})


def test_refuses_heads_that_do_not_divide_the_width():
    with pytest.raises(StrictDataclassClassValidationError, match="divide the decoder width 48, got 5"):
        LLMBiEncoderConfig(text_config=LlamaConfig(hidden_size=48, num_attention_heads=6), num_latent_heads=5)


def test_asks_for_divisible_heads_only_where_there_are_heads():
    config = LLMBiEncoderConfig(
        text_config=LlamaConfig(hidden_size=48, num_attention_heads=6), num_latent_heads=5, pooling="mean"
    )
    assert config.num_latent_heads == 5


def test_refuses_an_empty_separator():
    with pytest.raises(StrictDataclassClassValidationError, match="separator must not be empty, got ''"):
        LLMBiEncoderConfig(separator="")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("text_config", "llama"),
        ("bidirectional", "yes"),
        ("pooling", "eos"),
        ("latent_variant", "v1"),
        ("num_latents", 6.5),
        ("num_latent_heads", "8"),
        ("max_length", None),
        ("separator", 7),
        ("mask_mode", "suffix"),
    ],
)
def test_refuses_a_field_of_the_wrong_type(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        LLMBiEncoderConfig(**{name: value})
