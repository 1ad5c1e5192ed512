"""Weights in shards: what is trained and saved is what one process trains and saves."""

import json
import sys
from pathlib import Path

import pytest
import torch
from accelerate import FullyShardedDataParallelPlugin
from accelerate.utils.fsdp_utils import fsdp2_prepare_auto_wrap_policy
from safetensors.torch import load_file

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.clip.tower_lora import merge_tower_adapters
from radtower.training.shards import (
    called_as_forward,
    cut_like,
    is_sharded,
    local_part,
    merged_state,
    prepare_for_shards,
    whole_state,
    whole_tensors,
)
from radtower.training.text.lora import has_adapters
from radtower.training.weight_average import AVERAGE_FILE

sys.path.insert(0, str(Path(__file__).parent))
from shard_worker import CASES, make_model, train

WORKER = Path(__file__).parent / "shard_worker.py"


def _losses(folder):
    lines = [json.loads(line) for line in (folder / "training_log.jsonl").read_text().splitlines()]
    return [line["loss"] for line in lines if "loss" in line]


def _assert_close(found, expected, absolute=1e-6):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=absolute, msg=name)


def test_blocks_that_are_there_become_units_and_weights_contiguous():
    model = make_model("ct3d")
    weight = model.vision_model.stages[0][0].conv1.weight
    assert not weight.is_contiguous()
    before = weight.clone()
    assert "BertEmbeddings" in model._no_split_modules
    assert any(p.is_contiguous() and p.dim() == 5 and p.stride(-1) > 1 for p in model.parameters())
    prepare_for_shards(model)
    # accelerate cuts the embedding of tokens itself, so that what holds it cannot be a unit.
    assert model._no_split_modules == {"CT3DBasicBlock", "CT3DGatedPooling", "BertLayer"}
    assert all(p.stride() == torch.empty(p.shape).stride() for p in model.parameters())
    assert torch.equal(weight, before)
    plain = torch.nn.Linear(2, 2)
    prepare_for_shards(plain)
    assert not hasattr(plain, "_no_split_modules")


@pytest.mark.parametrize(
    ("vision", "text", "blocks"),
    [
        ("ct3d", "llm", {"CT3DBasicBlock", "LlamaDecoderLayer"}),
        ("vit", "bert", {"ViTLayer", "BertLayer"}),
        ("clip", "qwen3", {"CLIPEncoderLayer", "Qwen3DecoderLayer"}),
    ],
)
def test_accelerate_finds_the_blocks_that_it_wraps(make_dual, vision, text, blocks):
    model = make_dual(vision, text)
    prepare_for_shards(model)
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, auto_wrap_policy="transformer_based_wrap")
    policy = fsdp2_prepare_auto_wrap_policy(plugin, model)
    wrapped = {type(module).__name__ for module in model.modules() if policy(module)}
    assert blocks <= wrapped
    assert wrapped == model._no_split_modules


def test_the_dual_tower_hands_out_the_embedding_of_its_reports():
    model = make_model("full")
    assert model.get_input_embeddings() is model.text_model.embeddings.word_embeddings
    other = torch.nn.Embedding(5, 16)
    model.set_input_embeddings(other)
    assert model.text_model.embeddings.word_embeddings is other


@pytest.mark.parametrize("case", ["bert_lora", "soft_prompt"])
def test_updates_are_added_to_whole_weights_as_to_those_of_a_model(case):
    model = make_model(case)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    found = merged_state(model, state)
    assert has_adapters(model)
    merge_tower_adapters(model)
    expected = model.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    name = "vision_model.layers.1.attention.q_proj"
    assert (found[f"{name}.weight"] - state[f"{name}.base_layer.weight"]).abs().max() > 0.01


def test_refuses_to_save_merged_weights_that_are_not_finite():
    model = make_model("bert_lora")
    name = "text_model.encoder.layer.1.attention.self.query"
    model.get_parameter(f"{name}.lora_B.default.weight").data[0, 0] = torch.inf
    with pytest.raises(ValueError, match=f"merged weights must be finite, got others in {name}.weight"):
        merged_state(model, model.state_dict())


def test_whole_weights_stay_as_they_are():
    model = make_model("full")
    assert not is_sharded(model)
    values = model.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in whole_state(model).items())
    assert whole_tensors(values, is_kept=True).keys() == values.keys()
    assert whole_tensors(values, is_kept=False) == {}
    assert all(torch.equal(value, values[name]) for name, value in cut_like(values, model).items())
    assert local_part(values["visual_projection.weight"]) is values["visual_projection.weight"]
    assert called_as_forward(model, "text_features") == model.text_features


@pytest.mark.slow
@pytest.mark.parametrize("cases", [list(CASES)[::2], list(CASES)[1::2]])
def test_training_in_shards_gives_the_folder_of_one_process(run_workers, tmp_path, cases):
    run_workers(WORKER, 2, tmp_path, *cases)
    for case in cases:
        kind, settings = CASES[case]
        torch.manual_seed(8)
        start = make_model(kind).state_dict()
        train(tmp_path, case, 4)
        expected = MedCLIPModel.from_pretrained(tmp_path / f"{case}_1").state_dict()
        name = "visual_projection.weight"
        moved = (expected[name] - start[name]).abs().max().item()
        assert moved > 1e-3
        # What bf16 rounds is little against what three steps move.
        tolerance = 0.1 * moved if case == "bf16" else 1e-6
        folders = ["_2", "_2_resumed"] if "ema_decay" in settings else ["_2"]
        for folder in folders:
            together, report = MedCLIPModel.from_pretrained(
                tmp_path / f"{case}{folder}", output_loading_info=True
            )
            assert not report["missing_keys"]
            assert not report["unexpected_keys"]
            assert all(weight.dtype == torch.float32 for weight in together.parameters())
            _assert_close(together.state_dict(), expected, tolerance)
        relative = 0.02 if case == "bf16" else 1e-4
        assert _losses(tmp_path / f"{case}_2") == pytest.approx(_losses(tmp_path / f"{case}_1"), rel=relative)
        for file in ["model.safetensors", *([AVERAGE_FILE] if "ema_decay" in settings else [])]:
            path = Path("checkpoint-2") / file
            found = load_file(tmp_path / f"{case}_2" / path)
            _assert_close(found, load_file(tmp_path / f"{case}_1" / path), tolerance)
