import pytest
from torch import nn

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.training.layer_rates import layer_groups


@pytest.fixture
def model():
    config = CT3DVisionConfig(hidden_sizes=[4, 8], layers=[1, 1], num_labels=2, image_size=[8, 8, 8])
    return CT3DVisionForImageClassification(config)


def test_each_stage_learns_slower_than_what_is_above_it(model):
    decayed = ["vision_model.stem.0.weight", "classifier.weight"]
    groups = layer_groups(model, decayed, learning_rate=0.8, weight_decay=0.3, layer_lr_decay=0.5)
    found = {
        id(parameter): (group["lr"], group["weight_decay"])
        for group in groups
        for parameter in group["params"]
    }
    by_name = {name: found[id(parameter)] for name, parameter in model.named_parameters()}
    assert by_name["classifier.weight"] == (0.8, 0.3)
    assert by_name["classifier.bias"] == (0.8, 0.0)
    assert by_name["vision_model.stages.1.0.conv1.weight"] == (0.4, 0.0)
    assert by_name["vision_model.stages.0.0.conv1.weight"] == (0.2, 0.0)
    assert by_name["vision_model.stem.0.weight"] == (0.1, 0.3)
    assert by_name["vision_model.stem.1.weight"] == (0.1, 0.0)
    assert len(found) == len(list(model.parameters()))


def test_frozen_weights_are_left_out(model):
    model.vision_model.stem.requires_grad_(False)
    groups = layer_groups(model, [], 0.8, 0.3, 0.5)
    assert {group["lr"] for group in groups} == {0.2, 0.4, 0.8}


@pytest.mark.parametrize("decay", [0.0, -0.5, 1.5])
def test_a_decay_outside_zero_to_one_is_refused(model, decay):
    with pytest.raises(ValueError, match=rf"layer_lr_decay must be in \(0, 1\], got {decay}"):
        layer_groups(model, [], 0.8, 0.3, decay)


def test_a_model_without_stages_is_refused():
    with pytest.raises(ValueError, match=r"without stages, got 0.5 for Linear"):
        layer_groups(nn.Linear(2, 2), [], 0.8, 0.3, 0.5)
