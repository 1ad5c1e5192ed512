import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import ViTConfig, ViTModel

from radtower.training.checkpoint_weights import load_renamed_weights

CONFIG = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
}


def _models():
    return [ViTModel(ViTConfig(**CONFIG)) for _ in range(2)]


def _same(left, right):
    left, right = left.state_dict(), right.state_dict()
    return {name for name in left if torch.equal(left[name], right[name])}


@pytest.mark.parametrize("shard_size", ["1GB", "1KB"])
def test_weights_that_are_saved_under_other_names_are_loaded(tmp_path, shard_size):
    saved, model = _models()
    saved.save_pretrained(tmp_path, max_shard_size=shard_size)
    assert (tmp_path / "model.safetensors.index.json").exists() == (shard_size == "1KB")
    assert load_renamed_weights(model, tmp_path)
    assert _same(saved, model) == set(saved.state_dict())


def test_nothing_is_loaded_where_the_names_are_those_of_the_model(tmp_path):
    saved, model = _models()
    saved.save_pretrained(tmp_path)
    save_file(saved.state_dict(), tmp_path / "model.safetensors")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert not load_renamed_weights(model, tmp_path)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_a_checkpoint_that_lacks_weights_is_refused(tmp_path):
    saved, model = _models()
    saved.save_pretrained(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    name = next(name for name in weights if "query.weight" in name or "q_proj.weight" in name)
    del weights[name]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(ValueError, match=r"must hold all weights .* without 1, such as .*q_proj\.weight\."):
        load_renamed_weights(model, tmp_path)


def test_a_folder_without_such_files_is_left_to_the_trainer(tmp_path):
    assert not load_renamed_weights(_models()[0], tmp_path)
