import copy

import pytest
import torch
from transformers import Trainer, TrainingArguments

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.arguments import DEFAULTS
from radtower.training.text.lora import add_lora, has_lora, merge_lora

TEXTS = ["There is no nodule.", "small effusion", "Describe the effusion. It is small."]
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@pytest.fixture
def encoder(tiny_llm_folder):
    torch.manual_seed(5)
    return LLMBiEncoder.from_llm(
        tiny_llm_folder, latent_variant="v0", num_latents=6, num_latent_heads=4, max_length=64
    )


def _drawn(encoder, scale=0.3):
    """Updates that are not zero, as after training."""
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=scale)
    return encoder.eval()


def test_adapts_every_projection_and_changes_nothing_yet(encoder):
    before = encoder.encode_text(TEXTS)
    add_lora(encoder, 4, 8)
    assert torch.equal(encoder.eval().encode_text(TEXTS), before)
    trained = {name for name, p in encoder.named_parameters() if p.requires_grad}
    adapters = {name for name in trained if name.startswith("model.")}
    assert adapters == {
        f"model.layers.{layer}.{'mlp' if name[0] in 'gud' else 'self_attn'}.{name}.lora_{side}.default.weight"
        for layer in (0, 1)
        for name in PROJECTIONS
        for side in "AB"
    }
    # The pooling head stays trainable, all of it.
    assert trained - adapters == {name for name, _ in encoder.named_parameters() if "latent_attn" in name}
    assert encoder.model.layers[0].mlp.up_proj.lora_A["default"].weight.shape == (4, 32)


def test_rank_alpha_dropout_and_targets_are_those_asked_for(encoder):
    add_lora(encoder, 3, 6, 0.25, ["q_proj", "down_proj"], num_frozen_layers=1)
    trained = {name for name, p in encoder.model.named_parameters() if p.requires_grad}
    assert len(trained) == 4
    assert all(name.startswith("layers.1.") for name in trained)
    layer = encoder.model.layers[1].self_attn.q_proj
    assert (layer.r["default"], layer.scaling["default"]) == (3, 2.0)
    assert layer.lora_dropout["default"].p == 0.25


def test_the_merged_encoder_is_plain_and_gives_the_same(encoder, tmp_path):
    shape = {name: tuple(p.shape) for name, p in encoder.state_dict().items()}
    plain = encoder.encode_text(TEXTS)
    add_lora(encoder, 4, 8, 0.1)
    before = _drawn(encoder).encode_text(TEXTS)
    assert (before - plain).abs().max() > 0.01  # the updates do something
    merge_lora(encoder)
    torch.testing.assert_close(encoder.encode_text(TEXTS), before, rtol=1e-6, atol=1e-6)
    assert not has_lora(encoder)
    assert {name: tuple(p.shape) for name, p in encoder.state_dict().items()} == shape
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    encoder.save_pretrained(tmp_path)
    again = LLMBiEncoder.from_pretrained(tmp_path)
    assert torch.equal(again.encode_text(TEXTS), encoder.encode_text(TEXTS))
    add_lora(encoder, 2, 4)  # nothing is left that would be in its way


def _trainer(encoder, folder, steps, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=0.01,
        per_device_train_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
        lr_scheduler_type="constant",
        **{**DEFAULTS, "save_strategy": "steps", "save_steps": 2, **settings},
    )
    inputs = encoder.tokenize(TEXTS + TEXTS[:1])
    samples = [{name: value[n] for name, value in inputs.items()} for n in range(4)]
    return _PullTogether(encoder.train(), arguments, train_dataset=samples)


class _PullTogether(Trainer):
    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return model(**inputs).pooler_output.var(dim=0).sum()


def test_a_checkpoint_holds_all_that_is_trained(encoder, tmp_path):
    add_lora(encoder, 4, 8, 0.1)
    start = copy.deepcopy(encoder)
    _trainer(encoder, tmp_path / "whole", 4).train()
    resumed = copy.deepcopy(start)
    _trainer(copy.deepcopy(start), tmp_path / "parts", 2).train()
    _trainer(resumed, tmp_path / "parts", 4).train(
        resume_from_checkpoint=str(tmp_path / "parts/checkpoint-2")
    )
    initial, whole = dict(start.named_parameters()), dict(encoder.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, whole[name]), name
        assert torch.equal(parameter, initial[name]) == (not parameter.requires_grad), name


def test_recomputed_activations_give_the_adapters_the_same_gradients(encoder, checkpointed_copy):
    add_lora(encoder, 4, 8)
    _drawn(encoder).train()
    thrifty = checkpointed_copy(encoder)
    for model in (encoder, thrifty):
        model(**encoder.tokenize(TEXTS)).pooler_output.square().sum().backward()
    trained = dict(thrifty.named_parameters())
    for name, parameter in encoder.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad.abs().max() > 0, name
            torch.testing.assert_close(trained[name].grad, parameter.grad, msg=name)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 0}, "rank must be at least 1, got 0"),
        ({"alpha": 0.0}, r"alpha must be positive, got 0\.0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
        ({"num_frozen_layers": 2}, "num_frozen_layers must be between 0 and 1, got 2"),
        ({"num_frozen_layers": -1}, "num_frozen_layers must be between 0 and 1, got -1"),
        ({"target_modules": ["q_proj", "c_attn"]}, r"linear layers of the decoder, got \['c_attn'\]"),
    ],
)
def test_refuses(encoder, settings, message):
    with pytest.raises(ValueError, match=message):
        add_lora(encoder, **{"rank": 4, "alpha": 8.0, **settings})
    assert not has_lora(encoder)


def test_refuses_a_second_set_and_merging_none(encoder):
    with pytest.raises(ValueError, match="encoder must have adapters to merge, got none"):
        merge_lora(encoder)
    add_lora(encoder, 4, 8)
    with pytest.raises(ValueError, match="encoder must have no adapters, got one with LoRA"):
        add_lora(encoder, 4, 8)
