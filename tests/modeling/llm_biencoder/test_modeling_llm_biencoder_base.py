import copy

import pytest
import torch
from transformers import AutoModel

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_base import check_built
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

TEXTS = ["There is no nodule.", "small effusion"]
SAME = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def build(tiny_text_config, tiny_tokenizer):
    def build(**fields) -> LLMBiEncoder:
        config = copy.deepcopy(tiny_text_config)
        for name, value in fields.items():
            setattr(config, name, value)
        encoder = LLMBiEncoder(config).eval()
        encoder.tokenizer = tiny_tokenizer
        return encoder

    return build


@pytest.mark.parametrize(
    ("pooling", "name", "value", "advice"),
    [
        ("mean", "bidirectional", False, r"from_pretrained\(folder, bidirectional=False\)"),
        ("latent_attention", "pooling", "mean", r"from_pretrained\(folder, pooling='mean'\)"),
        ("mean", "pooling", "latent_attention", r"from_pretrained\(folder, pooling='latent_attention'\)"),
        ("latent_attention", "latent_variant", "prenorm", r"latent_variant='prenorm'\)"),
        ("latent_attention", "num_latent_heads", 2, r"from_pretrained\(folder, num_latent_heads=2\)"),
        ("latent_attention", "num_latents", 9, r"from_pretrained\(folder, num_latents=9\)"),
        ("mean", "hard_prompt", "There", "call set_prompt"),
        ("mean", "hard_prompt_ids", [5], "call set_prompt"),
        ("mean", "num_soft_tokens", 2, "call set_prompt"),
        ("mean", "soft_prompt", "There", "call set_prompt"),
    ],
)
def test_an_edit_that_the_model_cannot_follow_is_refused_and_nothing_is_saved(
    build, tmp_path, pooling, name, value, advice
):
    encoder = build(pooling=pooling)
    expected = encoder.encode(TEXTS)
    before = getattr(encoder.config, name)
    setattr(encoder.config, name, value)
    message = rf"config.{name} must stay .*, as the model was built, got .*{advice}"
    with pytest.raises(RuntimeError, match=message):
        encoder.encode(TEXTS)
    with pytest.raises(RuntimeError, match=message):
        encoder(torch.tensor([[3, 4]]))
    with pytest.raises(RuntimeError, match=message):
        encoder.save_pretrained(tmp_path / "out")
    assert not (tmp_path / "out").exists()
    setattr(encoder.config, name, before)
    torch.testing.assert_close(encoder.encode(TEXTS), expected, **SAME)


def test_the_message_names_both_values(build):
    encoder = build(pooling="mean")
    encoder.config.pooling = "latent_attention"
    with pytest.raises(RuntimeError, match=r"must stay 'mean', as the model was built, got 'latent_attent"):
        check_built(encoder.config, encoder._built)


def test_edits_that_are_read_at_every_call_keep_working(build, tmp_path):
    encoder = build(pooling="mean")
    states = [encoder(**encoder.tokenize(text)).last_hidden_state[0].detach() for text in TEXTS]
    torch.testing.assert_close(encoder.encode(TEXTS), torch.stack([h.mean(dim=0) for h in states]), **SAME)
    encoder.config.pooling = "last_token"
    torch.testing.assert_close(encoder.encode(TEXTS), torch.stack([h[-1] for h in states]), **SAME)
    encoder.config.embedding_dim, encoder.config.max_length, encoder.config.text_prefix = 5, 9, "no "
    assert encoder.encode(TEXTS).shape == (2, 5)
    # The head that is not there has no size.
    encoder.config.num_latents = 3
    encoder.save_pretrained(tmp_path)
    reloaded = LLMBiEncoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded.encode(TEXTS), encoder.encode(TEXTS), **SAME)


def test_set_prompt_may_change_what_an_edit_may_not(build, tmp_path):
    encoder = build(pooling="mean")
    encoder.set_prompt("Describe", soft_prompt="There is")
    encoder.save_pretrained(tmp_path)
    reloaded = LLMBiEncoder.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded.encode(TEXTS), encoder.encode(TEXTS), **SAME)
    reloaded.config.hard_prompt_ids.append(7)
    with pytest.raises(RuntimeError, match=r"config.hard_prompt_ids must stay \[\d+\], .*, got \[\d+, 7\]"):
        reloaded.encode(TEXTS)


@pytest.mark.parametrize("load", [LLMBiEncoder.from_pretrained, AutoModel.from_pretrained])
@pytest.mark.parametrize("field", ["hard_prompt", "soft_prompt"])
def test_the_words_of_a_prompt_are_not_changed_while_loading(build, tmp_path, load, field):
    encoder = build(pooling="mean")
    encoder.set_prompt(**{field: "Describe no"})
    encoder.save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=f"{field} must not change while loading, got 'There is'.*set_prompt"
    ):
        load(tmp_path, **{field: "There is"})
    same = load(tmp_path, **{field: "Describe no"}, max_length=32).eval()
    assert same.config.max_length == 32
    torch.testing.assert_close(same.encode(TEXTS), encoder.encode(TEXTS), **SAME)


def test_two_models_of_one_configuration_keep_their_own_direction(tiny_text_config, tiny_tokenizer):
    config = LLMBiEncoderConfig(text_config=tiny_text_config.text_config, pooling="mean")
    first = LLMBiEncoder(config).eval()
    first.tokenizer = tiny_tokenizer
    expected = first.encode(TEXTS)
    config.bidirectional = False
    second = LLMBiEncoder(config).eval()
    assert (first.model.config.is_causal, second.model.config.is_causal) == (False, True)
    with pytest.raises(
        RuntimeError, match=r"config\.bidirectional must stay True, as the model was built, got F"
    ):
        first.encode(TEXTS)
    config.bidirectional = True
    torch.testing.assert_close(first.encode(TEXTS), expected, **SAME)
    second.tokenizer = tiny_tokenizer
    with pytest.raises(
        RuntimeError, match=r"config\.bidirectional must stay False, as the model was built, got T"
    ):
        second.encode(TEXTS)


def test_a_classifier_is_not_saved_with_another_direction_than_it_has(tiny_text_config, tmp_path):
    classifier = LLMBiEncoderForSequenceClassification(tiny_text_config)
    classifier.config.pooling = "mean"  # it does not pool
    classifier.save_pretrained(tmp_path / "pooling")
    classifier.config.bidirectional = False
    with pytest.raises(RuntimeError, match=r"config\.bidirectional must stay True"):
        classifier.save_pretrained(tmp_path / "direction")
    assert not (tmp_path / "direction").exists()


def test_the_decoder_still_shares_its_configuration_with_the_whole(build, tmp_path):
    encoder = build(pooling="mean")
    encoder.model.resize_token_embeddings(320)
    encoder.save_pretrained(tmp_path)
    assert LLMBiEncoder.from_pretrained(tmp_path).get_input_embeddings().weight.shape == (320, 32)
    encoder.set_attn_implementation("eager")
    assert encoder.model.config._attn_implementation == "eager"


def test_two_models_of_one_configuration_follow_an_edit_of_their_decoder_in_between(tiny_text_config):
    config = LLMBiEncoderConfig(text_config=tiny_text_config.text_config, pooling="mean")
    decoder = config.text_config
    first = LLMBiEncoder(config)
    decoder.num_hidden_layers = 1
    second = LLMBiEncoder(config)
    assert (len(first.model.layers), len(second.model.layers)) == (2, 1)
    assert config.text_config is decoder


def test_names_as_float32_what_its_configuration_has(tiny_text_config, tiny_tokenizer):
    assert LLMBiEncoder(tiny_text_config)._keep_in_fp32_modules_strict == set()
    classifier = LLMBiEncoderForSequenceClassification(tiny_text_config)
    assert classifier._keep_in_fp32_modules_strict == {"finding_attention"}
    tiny_text_config.num_soft_tokens = 2
    assert LLMBiEncoder(tiny_text_config)._keep_in_fp32_modules_strict == {"soft_prompt"}
    both = LLMBiEncoderForSequenceClassification(tiny_text_config)
    assert both._keep_in_fp32_modules_strict == {"finding_attention", "soft_prompt"}
