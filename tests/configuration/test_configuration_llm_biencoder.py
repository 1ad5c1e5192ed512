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
        "instruction_template": "Instruct: {instruction}\nQuery:",
        "hard_prompt": "Read:",
        "hard_prompt_ids": [7, 8],
        "num_soft_tokens": 3,
        "soft_prompt": "Describe the scan",
        "text_prefix": " Report:",
        "embedding_dim": 24,
        "normalize": True,
        "mask_token_id": 62,
        "label_temperature": 1.7,
    }
    assert LLMBiEncoderConfig(num_causal_layers=7).to_dict()["num_causal_layers"] == 7
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


def test_matryoshka_narrows_the_embedding_and_not_the_decoder():
    decoder = LlamaConfig(hidden_size=48, num_attention_heads=6)
    config = LLMBiEncoderConfig(text_config=decoder, num_latent_heads=6, embedding_dim=20)
    assert (config.hidden_size, config.decoder_width) == (20, 48)


@pytest.mark.parametrize("size", [0, 49])
def test_refuses_an_embedding_wider_than_the_decoder_or_empty(size):
    decoder = LlamaConfig(hidden_size=48, num_attention_heads=6)
    with pytest.raises(
        StrictDataclassClassValidationError, match=f"between 1 and the decoder width 48, got {size}"
    ):
        LLMBiEncoderConfig(text_config=decoder, pooling="mean", embedding_dim=size)


def test_counts_the_tokens_of_the_prompt():
    config = LLMBiEncoderConfig(hard_prompt="Read:", hard_prompt_ids=[7, 8], num_soft_tokens=3)
    assert config.num_prompt_tokens == 5
    assert LLMBiEncoderConfig().num_prompt_tokens == 0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"hard_prompt": "Read:"}, "with its tokens, got 'Read:' and hard_prompt_ids None"),
        ({"hard_prompt_ids": [7]}, r"with its tokens, got '' and hard_prompt_ids \[7\]"),
        ({"soft_prompt": "Read"}, "with its number of tokens, got 'Read' and num_soft_tokens 0"),
        ({"num_soft_tokens": -1}, "num_soft_tokens must not be negative, got -1"),
        ({"num_soft_tokens": 9, "max_length": 9}, "room for a text, got 9 with 9 prompt tokens"),
        ({"instruction_template": "Query:"}, r"must contain \{instruction\}, got 'Query:'"),
    ],
)
def test_refuses_a_prompt_that_could_not_be_read(fields, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        LLMBiEncoderConfig(**fields)


@pytest.mark.parametrize(("num_layers", "limit"), [(-1, 2), (3, 2)])
def test_refuses_more_causal_layers_than_there_are(num_layers, limit):
    decoder = LlamaConfig(num_hidden_layers=2)
    with pytest.raises(
        StrictDataclassClassValidationError, match=f"between 0 and the {limit} layers .* got {num_layers}"
    ):
        LLMBiEncoderConfig(text_config=decoder, num_causal_layers=num_layers)
    assert LLMBiEncoderConfig(text_config=decoder, num_causal_layers=2).num_causal_layers == 2


def test_refuses_causal_layers_of_a_decoder_that_is_causal_throughout():
    with pytest.raises(StrictDataclassClassValidationError, match="must be 0 where bidirectional is false"):
        LLMBiEncoderConfig(bidirectional=False, num_causal_layers=1)


@pytest.mark.parametrize("value", [0.0, -2.0, float("inf"), float("nan")])
def test_refuses_a_temperature_that_cannot_divide(value):
    with pytest.raises(
        StrictDataclassClassValidationError,
        match=f"label_temperature must be above 0 and finite, got {value}",
    ):
        LLMBiEncoderConfig(label_temperature=value)


@pytest.mark.parametrize("layers", [[], [2, 1], [1, 1], [-1, 1], [1, 3]])
def test_refuses_finding_layers_that_are_not_there(layers):
    decoder = LlamaConfig(num_hidden_layers=2)
    with pytest.raises(StrictDataclassClassValidationError, match=r"finding_layers must rise from 0 to .* 2"):
        LLMBiEncoderConfig(text_config=decoder, finding_layers=layers)
    assert LLMBiEncoderConfig(text_config=decoder, finding_layers=[1, 2]).finding_layers == [1, 2]


def test_refuses_finding_layers_below_the_output_where_there_is_a_prompt():
    decoder = LlamaConfig(num_hidden_layers=2)
    with pytest.raises(StrictDataclassClassValidationError, match=r"got \[1, 2\] and 3 prompt tokens"):
        LLMBiEncoderConfig(text_config=decoder, finding_layers=[1, 2], num_soft_tokens=3)
    assert LLMBiEncoderConfig(text_config=decoder, finding_layers=[2], num_soft_tokens=3).finding_layers == [
        2
    ]


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
        ("instruction_template", None),
        ("hard_prompt", None),
        ("hard_prompt_ids", ["7"]),
        ("num_soft_tokens", 2.5),
        ("soft_prompt", 3),
        ("text_prefix", None),
        ("embedding_dim", "64"),
        ("normalize", "yes"),
        ("label_temperature", "1"),
    ],
)
def test_refuses_a_field_of_the_wrong_type(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        LLMBiEncoderConfig(**{name: value})


@pytest.mark.parametrize("found", ["llama", "bert"])
def test_refuses_the_configuration_of_another_model(found):
    with pytest.raises(ValueError, match=f"got a model of type '{found}'. Make an encoder .*from_llm"):
        LLMBiEncoderConfig.from_dict({"model_type": found, "hidden_size": 32})
    assert LLMBiEncoderConfig.from_dict({"num_latents": 7}).num_latents == 7
