"""Adapters in both towers: what is trained is saved, merged and resumed."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from transformers import TrainingArguments

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.arguments import DEFAULTS
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.clip.freezing import set_tower_mode
from radtower.training.clip.tower_lora import LoraSettings, merge_tower_adapters
from radtower.training.text.lora import has_adapters

LORA = LoraSettings(rank=4, alpha=6.0, dropout=0.1)
MODES = {
    "lora": {"mode": "lora", "lora": LORA},
    "soft_prompt": {"mode": "soft_prompt"},
    "last_n": {"mode": "last_n", "num_last_layers": 1},
    "frozen": {"mode": "frozen"},
    "full": {"mode": "full"},
}
IDS = torch.tensor([[1, 5, 6, 7], [1, 9, 10, 11], [1, 12, 13, 14], [1, 20, 21, 3]])


def _inputs(vision):
    shape = (4, 1, 16, 16, 16) if vision == "ct3d" else (4, 3, 8, 8)
    pixels = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return {"pixel_values": pixels, "input_ids": IDS, "attention_mask": torch.ones_like(IDS)}


def _set_modes(model, vision, text):
    config = model.config
    set_tower_mode(model.vision_model, pooling=config.vision_pooling, **MODES[vision])
    set_tower_mode(model.text_model, pooling=config.text_pooling, **MODES[text])
    return model


def _trainer(model, folder, kind, steps, ema_decay=None, **settings):
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        learning_rate=0.02,
        per_device_train_batch_size=2,
        use_cpu=True,
        disable_tqdm=True,
        dataloader_pin_memory=False,
        seed=3,
        lr_scheduler_type="constant",
        **{**DEFAULTS, "save_strategy": "steps", "save_steps": 2, **settings},
    )
    inputs = _inputs(kind) | {"labels": torch.tensor([[1.0], [0.0], [1.0], [0.0]])}
    samples = [{name: value[n] for name, value in inputs.items()} for n in range(4)]
    return ContrastiveTrainer(model, arguments, train_dataset=samples, ema_decay=ema_decay)


def _adapted(tower):
    return {name.partition(".lora_A")[0] for name, _ in tower.named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        ("vit", ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"]),
        ("clip", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]),
        ("siglip", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj"]),
        ("dinov2", ["attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"]),
        (
            "bert",
            ["attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"],
        ),
        ("qwen3", ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]),
    ],
)
def test_attention_is_adapted_unless_other_names_are_given(make_tower, kind, names):
    tower = make_tower(kind)
    prefix = {"vit": "layers", "qwen3": "layers", "dinov2": "encoder.layer", "bert": "encoder.layer"}.get(
        kind, "encoder.layers"
    )
    set_tower_mode(tower, **MODES["lora"])
    assert _adapted(tower) == {f"{prefix}.{layer}.{name}" for layer in range(3) for name in names}
    assert all(".lora_" in name for name, p in tower.named_parameters() if p.requires_grad)
    other = make_tower(kind)
    last = names[0].rpartition(".")[2]
    set_tower_mode(other, "lora", lora=LoraSettings(rank=2, target_modules=[last]))
    assert _adapted(other) == {f"{prefix}.{layer}.{names[0]}" for layer in range(3)}


@torch.no_grad()
@pytest.mark.parametrize(("vision", "text"), [("vit", "bert"), ("dinov2", "qwen3"), ("clip", "llm")])
def test_merged_is_a_plain_model_that_gives_the_same_after_reload(make_dual, vision, text, tmp_path):
    model = make_dual(vision, text)
    shapes = {name: tuple(p.shape) for name, p in model.state_dict().items()}
    plain = model(**_inputs(vision)).logits_per_image
    _set_modes(model, "lora", "lora").eval()
    torch.testing.assert_close(model(**_inputs(vision)).logits_per_image, plain)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.normal_(std=0.3)
    before = model(**_inputs(vision)).logits_per_image
    assert (before - plain).abs().max() > 0.01
    merge_tower_adapters(model)
    torch.testing.assert_close(model(**_inputs(vision)).logits_per_image, before, rtol=1e-5, atol=1e-5)
    assert {name: tuple(p.shape) for name, p in model.state_dict().items()} == shapes
    assert not has_adapters(model)
    model.save_pretrained(tmp_path)
    again, report = MedCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    weights = model.state_dict()
    assert all(torch.equal(value, weights[name]) for name, value in again.state_dict().items())
    # A loaded file is aligned otherwise in memory: equal weights give outputs that differ in the last bits.
    torch.testing.assert_close(
        again.eval()(**_inputs(vision)).logits_per_image,
        model(**_inputs(vision)).logits_per_image,
        rtol=1e-5,
        atol=1e-5,
    )
    merge_tower_adapters(model)  # nothing to merge is nothing to do


@pytest.mark.parametrize(
    ("vision", "text", "modes"),
    [
        ("vit", "bert", ("lora", "lora")),
        ("ct3d", "llm", ("last_n", "soft_prompt")),
        ("dinov2", "llm", ("lora", "lora")),
        ("clip", "qwen3", ("frozen", "last_n")),
    ],
)
def test_a_checkpoint_holds_all_that_is_trained_and_resumes(make_dual, vision, text, modes, tmp_path):
    model = _set_modes(make_dual(vision, text), *modes)
    start = copy.deepcopy(model)
    _trainer(model, tmp_path / "whole", vision, 4).train()
    _trainer(copy.deepcopy(start), tmp_path / "parts", vision, 2).train()
    checkpoint = tmp_path / "parts/checkpoint-2"
    resumed = copy.deepcopy(start)
    _trainer(resumed, tmp_path / "parts", vision, 4).train(resume_from_checkpoint=str(checkpoint))
    initial, whole = dict(start.named_parameters()), dict(model.named_parameters())
    for name, parameter in resumed.named_parameters():
        assert torch.equal(parameter, whole[name]), name
        assert torch.equal(parameter, initial[name]) == (not parameter.requires_grad), name
    assert set(load_file(checkpoint / "model.safetensors")) == set(start.state_dict())


def test_a_checkpoint_without_adapters_is_a_model_folder_for_every_family(make_dual, tmp_path):
    model = _set_modes(make_dual("vit", "bert"), "full", "frozen")
    trainer = _trainer(model, tmp_path, "vit", 2)
    trainer.train()
    again, report = MedCLIPModel.from_pretrained(tmp_path / "checkpoint-2", output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    for name, value in again.state_dict().items():
        assert torch.equal(value, model.state_dict()[name]), name


def test_the_saved_folder_has_the_average_of_the_adapters(make_dual, tmp_path):
    model = _set_modes(make_dual("vit", "llm"), "frozen", "lora")
    trainer = _trainer(model, tmp_path, "vit", 3, save_strategy="no", ema_decay=0.5)
    trainer.train()
    expected, last = copy.deepcopy(model), copy.deepcopy(model)
    expected.load_state_dict(trainer.average.values)
    for merged in (expected, last):
        merge_tower_adapters(merged)
    run = ClipRun(manifest="m", cache="c", vision="v", text="t", text_mode="lora")
    saved = MedCLIPModel.from_pretrained(trainer.save_model_folder(run)).state_dict()
    name = "text_model.model.layers.1.mlp.up_proj.weight"
    assert (expected.state_dict()[name] - last.state_dict()[name]).abs().max() > 1e-3
    for name, value in expected.state_dict().items():
        assert torch.equal(saved[name], value), name


def test_merging_leaves_what_another_pooling_would_read_out_of_training(make_dual):
    model = _set_modes(make_dual("clip", "bert", vision_pooling="mean"), "lora", "lora")
    merge_tower_adapters(model)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert frozen == {f"vision_model.post_layernorm.{name}" for name in ("weight", "bias")}


@pytest.mark.parametrize("is_alone", [False, True])
def test_head_and_prompt_train_beside_the_updates_unless_they_are_alone(make_tower, is_alone):
    tower = make_tower("llm")
    set_tower_mode(tower, "lora", lora=LoraSettings(rank=2, is_alone=is_alone))
    trained = {name for name, p in tower.named_parameters() if p.requires_grad}
    others = {name for name, _ in tower.named_parameters() if name.startswith(("latent_attn", "soft_prompt"))}
    assert {name for name in trained if ".lora_" not in name} == (set() if is_alone else others)
    assert any(".lora_" in name for name in trained)


def test_what_was_trained_is_in_the_saved_folder(make_dual, tmp_path):
    model = _set_modes(make_dual("vit", "llm"), "lora", "lora")
    start = copy.deepcopy(model)
    _trainer(model, tmp_path / "run", "vit", 2).train()
    merge_tower_adapters(model)
    model.eval().save_pretrained(tmp_path / "model")
    again = MedCLIPModel.from_pretrained(tmp_path / "model").eval()
    loaded, initial = dict(again.named_parameters()), dict(start.named_parameters())
    for name in (
        "text_model.soft_prompt.weight",
        "text_model.latent_attn.latents",
        "visual_projection.weight",
        "text_projection.weight",
        "logit_scale.log_value",
        "finding_head.weight",
        "finding_head.bias",
    ):
        assert torch.equal(loaded[name], dict(model.named_parameters())[name]), name
        assert not torch.equal(loaded[name], initial[name]), name
    with torch.no_grad():
        torch.testing.assert_close(
            again(**_inputs("vit")).logits_per_image,
            model(**_inputs("vit")).logits_per_image,
            rtol=1e-5,
            atol=1e-5,
        )


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        ("ct3d", {}, "must have linear layers for LoRA, got none in the layers of CT3DVisionModel"),
        (
            "convnext",
            {},
            r"must be named .* got None for ConvNextModel\. Choose from \['pwconv1', 'pwconv2'\]",
        ),
        ("vit", {"target_modules": ["c_attn"]}, r"linear layers of ViTModel, got \['c_attn'\]\. Choose from"),
        ("llm", {"target_modules": ["c_attn"]}, r"linear layers of the decoder, got \['c_attn'\]"),
        ("vit", {"rank": 0}, "rank must be at least 1, got 0"),
        ("bert", {"alpha": -1.0}, r"alpha must be positive, got -1\.0"),
        ("bert", {"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1\.0"),
    ],
)
def test_refuses(make_tower, kind, settings, message):
    tower = make_tower(kind)
    with pytest.raises(ValueError, match=message):
        set_tower_mode(tower, "lora", lora=LoraSettings(**{"rank": 4, **settings}))
    assert not has_adapters(tower)
