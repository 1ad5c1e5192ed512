import copy
from dataclasses import dataclass

import pytest
import torch

from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.freezing import set_tower_mode, set_tower_modes
from radtower.training.clip.tower_lora import LoraSettings

PLACES = {"manifest": "m", "cache": "c", "vision": "v", "text": "t"}


def _trained(tower):
    return {name for name, parameter in tower.named_parameters() if parameter.requires_grad}


def _named(tower, *prefixes):
    return {name for name, _ in tower.named_parameters() if name.startswith(prefixes)}


@pytest.mark.parametrize(
    ("kind", "number", "prefixes"),
    [
        ("vit", 1, ("layers.2.", "layernorm.", "pooler.")),
        ("clip", 2, ("encoder.layers.1.", "encoder.layers.2.", "post_layernorm.")),
        ("siglip", 1, ("encoder.layers.2.", "post_layernorm.", "head.")),
        ("dinov2", 3, ("encoder.layer.", "layernorm.")),
        ("bert", 1, ("encoder.layer.2.", "pooler.")),
        ("qwen3", 2, ("layers.1.", "layers.2.", "norm.")),
        ("convnext", 1, ("encoder.stages.1.", "layernorm.")),
        ("ct3d", 1, ("stages.2.", "pooler.")),
        ("ct3d", 2, ("stages.1.", "stages.2.", "pooler.")),
        ("llm", 1, ("model.layers.1.", "model.norm.", "latent_attn.")),
    ],
)
def test_last_n_trains_the_uppermost_layers_and_what_follows(make_tower, kind, number, prefixes):
    tower = make_tower(kind)
    text = set_tower_mode(tower, "last_n", num_last_layers=number)
    assert _trained(tower) == _named(tower, *prefixes)
    total = sum(p.numel() for p in tower.parameters())
    trained = sum(dict(tower.named_parameters())[name].numel() for name in _trained(tower))
    assert 0 < trained < total
    assert text == (
        f"{type(tower).__name__}, last_n with n = {number}: {trained:,} weights trained, "
        f"{total - trained:,} frozen"
    )


@pytest.mark.parametrize("kind", ["vit", "bert", "ct3d", "llm"])
def test_frozen_and_full_are_nothing_and_all(make_tower, kind):
    tower = make_tower(kind)
    total = sum(p.numel() for p in tower.parameters())
    assert set_tower_mode(tower, "frozen").endswith(f"frozen: 0 weights trained, {total:,} frozen")
    assert _trained(tower) == set()
    assert set_tower_mode(tower, "full").endswith(f"full: {total:,} weights trained, 0 frozen")
    assert _trained(tower) == _named(tower, "")


def test_the_token_of_masked_pretraining_stays_out(make_tower):
    tower = make_tower("dinov2")
    set_tower_mode(tower, "full")
    assert _named(tower, "") - _trained(tower) == {"embeddings.mask_token"}


def test_soft_prompt_trains_the_prompt_alone_and_changes_the_vectors(make_tower):
    tower = make_tower("llm")
    assert set_tower_mode(tower, "soft_prompt").startswith("LLMBiEncoder, soft_prompt: ")
    assert _trained(tower) == {"soft_prompt.weight"}
    tower(**tower.tokenize(["no nodule", "small effusion"])).pooler_output.square().sum().backward()
    assert tower.soft_prompt.weight.grad.abs().min() > 0
    assert all(p.grad is None for name, p in tower.named_parameters() if name != "soft_prompt.weight")


@pytest.mark.parametrize(("kind", "part"), [("siglip", "head"), ("clip", "post_layernorm")])
def test_what_another_pooling_would_read_stays_out(make_tower, kind, part):
    for mode, settings in (("full", {}), ("last_n", {"num_last_layers": 1})):
        tower = make_tower(kind)
        set_tower_mode(tower, mode, pooling="mean", **settings)
        assert _trained(tower)
        assert not _trained(tower) & _named(tower, part)


@pytest.mark.parametrize("copied", [False, True])
def test_batch_norms_of_frozen_stages_keep_their_statistics(make_tower, copied):
    tower = make_tower("ct3d")
    set_tower_mode(tower, "last_n", num_last_layers=1)
    tower = copy.deepcopy(tower) if copied else tower
    before = copy.deepcopy(dict(tower.named_buffers()))
    tower.train()
    tower(torch.randn(2, 1, 8, 8, 8))
    moved = {name for name, b in tower.named_buffers() if not torch.equal(b, before[name])}
    assert moved
    assert moved == {name for name in before if name.startswith("stages.2.")}
    set_tower_mode(tower, "full")
    tower.train()
    tower(torch.randn(2, 1, 8, 8, 8))
    moved = {name for name, b in tower.named_buffers() if not torch.equal(b, before[name])}
    assert moved == set(before)


def test_a_frozen_tower_runs_without_dropout(make_tower):
    tower = make_tower("bert")
    inputs = {"input_ids": torch.tensor([[5, 6, 7]])}
    expected = tower.eval()(**inputs).pooler_output
    tower.train()
    assert not torch.allclose(tower(**inputs).pooler_output, expected, atol=1e-3)
    set_tower_mode(tower, "frozen")
    tower.train()
    assert torch.equal(tower(**inputs).pooler_output, expected)


@pytest.mark.parametrize(
    ("kind", "mode", "settings", "message"),
    [
        ("vit", "half", {}, r"mode must be one of \['frozen', .*\], got 'half'"),
        ("vit", "last_n", {}, "num_last_layers must be given for mode 'last_n' .* got None for 'last_n'"),
        ("vit", "full", {"num_last_layers": 2}, "num_last_layers must be .* got 2 for 'full'"),
        ("vit", "lora", {}, "lora must be given for mode 'lora' .* got None for 'lora'"),
        (
            "vit",
            "frozen",
            {"lora": LoraSettings(rank=3)},
            r"lora must be .* got LoraSettings\(rank=3.*'frozen'",
        ),
        ("vit", "last_n", {"num_last_layers": 4}, "between 1 and 3, the layers of ViTModel, got 4"),
        ("vit", "last_n", {"num_last_layers": 0}, "between 1 and 3, the layers of ViTModel, got 0"),
        ("ct3d", "last_n", {"num_last_layers": 4}, "between 1 and 3, the layers of CT3DVisionModel, got 4"),
        ("bert", "soft_prompt", {}, "must have a soft prompt to train, got a BertModel without"),
    ],
)
def test_refuses(make_tower, kind, mode, settings, message):
    with pytest.raises(ValueError, match=message):
        set_tower_mode(make_tower(kind), mode, **settings)


def test_refuses_an_encoder_without_soft_prompt_and_a_second_mode_over_adapters(make_tower):
    tower = make_tower("llm")
    tower.set_prompt("Describe")
    with pytest.raises(ValueError, match="must have a soft prompt to train, got a LLMBiEncoder without"):
        set_tower_mode(tower, "soft_prompt")
    set_tower_mode(tower, "lora", lora=LoraSettings(rank=2))
    with pytest.raises(ValueError, match=r"must have no adapters .* got a LLMBiEncoder with LoRA"):
        set_tower_mode(tower, "full")


def test_a_run_sets_both_towers_and_leaves_the_rest_training(make_dual):
    model = make_dual("vit", "llm")
    run = ClipRun(
        **PLACES,
        vision_mode="last_n",
        num_last_vision_layers=2,
        text_mode="lora",
        lora_rank=3,
        lora_alpha=6.0,
        lora_dropout=0.25,
        text_lora_targets=("q_proj",),
    )
    lines = set_tower_modes(model, run)
    assert lines[0].startswith("vision tower: ViTModel, last_n with n = 2: ")
    assert lines[1].startswith("text tower: LLMBiEncoder, lora: ")
    trained = _trained(model)
    assert _named(model, "visual_projection", "text_projection", "logit_scale", "finding_head") <= trained
    assert len(_named(model, "visual_projection", "text_projection", "logit_scale", "finding_head")) == 5
    vision = {name for name in trained if name.startswith("vision_model.")}
    assert vision == _named(
        model,
        "vision_model.layers.1.",
        "vision_model.layers.2.",
        "vision_model.layernorm",
        "vision_model.pooler",
    )
    text = {name for name in trained if name.startswith("text_model.model.")}
    assert text == {
        f"text_model.model.layers.{layer}.self_attn.q_proj.lora_{side}.default.weight"
        for layer in (0, 1)
        for side in "AB"
    }
    assert "text_model.soft_prompt.weight" in trained
    layer = model.text_model.model.layers[0].self_attn.q_proj
    assert (layer.r["default"], layer.scaling["default"], layer.lora_dropout["default"].p) == (3, 2.0, 0.25)


@dataclass(frozen=True)
class _Case:
    settings: dict
    message: str


@pytest.mark.parametrize(
    "case",
    [
        _Case(
            {"vision_mode": "last_n"},
            "num_last_vision_layers must be given with vision_mode last_n, got None",
        ),
        _Case({"text_mode": "last_n"}, "num_last_text_layers must be given with text_mode last_n, got None"),
        _Case(
            {"num_last_text_layers": 2},
            "num_last_text_layers must come with text_mode last_n, got 2 with fro",
        ),
        _Case({"num_last_vision_layers": 3}, "must come with vision_mode last_n, got 3 with full"),
        _Case(
            {"text_lora_targets": ("k",)}, r"text_lora_targets must come with text_mode lora, got \('k',\)"
        ),
        _Case(
            {"feature_cache": "f", "text_mode": "soft_prompt"},
            "feature_cache must be None unless text_mode is frozen, got 'f' with soft_prompt, whose",
        ),
    ],
)
def test_a_run_refuses_settings_that_would_do_nothing(case):
    with pytest.raises(ValueError, match=case.message):
        ClipRun(**PLACES, **case.settings)


@pytest.mark.parametrize("mode", ["full", "last_n"])
@pytest.mark.parametrize(
    ("vision", "text", "pooling"),
    [
        ("vit", "bert", "pooler"),
        ("vit", "bert", "mean"),
        ("clip", "qwen3", "pooler"),
        ("clip", "qwen3", "cls"),
        ("siglip", "llm", "pooler"),
        ("siglip", "llm", "mean"),
        ("dinov2", "llm", "pooler"),
        ("ct3d", "llm", "pooler"),
    ],
)
def test_every_trained_weight_has_a_gradient_as_distributed_training_needs(
    make_dual, vision, text, pooling, mode
):
    model = make_dual(vision, text, vision_pooling=pooling)
    number = {} if mode == "full" else {"num_last_layers": 1}
    for tower, kind in ((model.vision_model, pooling), (model.text_model, model.config.text_pooling)):
        set_tower_mode(tower, mode, pooling=kind, **number)
    shape = (2, 1, 16, 16, 16) if vision == "ct3d" else (2, 3, 8, 8)
    ids = torch.tensor([[1, 5, 6, 7], [1, 9, 10, 11]])
    labels = torch.tensor([[1.0], [0.0]])
    model(pixel_values=torch.randn(shape), input_ids=ids, labels=labels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    assert [name for name, p in model.named_parameters() if not p.requires_grad and p.grad is not None] == []
