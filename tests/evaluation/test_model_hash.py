"""The hash tells models apart, not copies."""

import pytest
import torch

from radtower.evaluation.model_hash import _tensor_hash, model_hash
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_medclip import MedCLIPModel


def test_a_copy_in_another_folder_has_the_same_hash(tiny_medclip, tmp_path):
    expected = model_hash(tiny_medclip)
    assert len(expected) == 16
    for name in ("one", "two"):
        tiny_medclip.save_pretrained(tmp_path / name, max_shard_size="20KB" if name == "two" else "1GB")
        assert model_hash(MedCLIPModel.from_pretrained(tmp_path / name)) == expected


def test_one_weight_of_any_tensor_changes_it(tiny_vision_config):
    model = CT3DVisionModel(tiny_vision_config)
    original = model_hash(model)
    for tensor in model.state_dict().values():
        flat = tensor.view(-1)
        before = flat[len(flat) // 2].clone()
        flat[len(flat) // 2] += 1
        assert model_hash(model) != original
        flat[len(flat) // 2] = before
    assert model_hash(model) == original


def test_a_weight_between_the_samples_and_two_that_change_places_change_it():
    plain = torch.nn.Linear(100, 100, bias=False)
    first = _tensor_hash(plain.weight)
    with torch.no_grad():
        plain.weight[0, 1] += 0.5  # sampled are every 39th
    second = _tensor_hash(plain.weight)
    with torch.no_grad():
        plain.weight[0, [0, 1]] = plain.weight[0, [1, 0]]
    third = _tensor_hash(plain.weight)
    assert len({first, second, third}) == 3


@pytest.mark.parametrize(("name", "changes"), [("pooling", True), ("_name_or_path", False)])
def test_a_setting_counts_and_a_place_does_not(tiny_vision_config, name, changes):
    model = CT3DVisionModel(tiny_vision_config)
    before = model_hash(model)
    setattr(model.config, name, "max" if changes else "/elsewhere")
    assert (model_hash(model) != before) is changes
