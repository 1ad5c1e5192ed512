import pytest
import torch
from transformers import CLIPVisionConfig, ResNetConfig, SiglipVisionConfig, ViTConfig, ViTModel
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from radtower.modeling.modeling_towers import build_tower, fill_tower, freeze_unread_poolers, pool_states

STATES = torch.arange(12.0).reshape(2, 3, 2)
TINY = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 4,
    "patch_size": 2,
}


@pytest.mark.parametrize(
    ("pooling", "mask", "expected"),
    [
        ("cls", None, [[0, 1], [6, 7]]),
        ("mean", None, [[2, 3], [8, 9]]),
        ("last", None, [[4, 5], [10, 11]]),
        ("cls", [[0, 1, 1], [1, 1, 0]], [[2, 3], [6, 7]]),
        ("mean", [[0, 1, 1], [1, 1, 0]], [[3, 4], [7, 8]]),
        ("last", [[0, 1, 1], [1, 1, 0]], [[4, 5], [8, 9]]),
    ],
)
def test_pools_real_states(pooling, mask, expected):
    mask = None if mask is None else torch.tensor(mask)
    pooled = pool_states(BaseModelOutput(last_hidden_state=STATES), pooling, mask)
    assert pooled.tolist() == expected


def test_takes_the_vector_of_the_tower_with_or_without_space():
    pooled = torch.arange(4.0).reshape(2, 2)
    for vector in (pooled, pooled[..., None, None]):
        output = BaseModelOutputWithPooling(last_hidden_state=STATES, pooler_output=vector)
        assert torch.equal(pool_states(output, "pooler"), pooled)


def test_refuses_a_tower_without_pooler():
    with pytest.raises(ValueError, match=r"pooling must be cls, mean or last .* got 'pooler'\. Set vision_p"):
        pool_states(BaseModelOutput(last_hidden_state=STATES), "pooler")


@torch.no_grad()
@pytest.mark.parametrize("has_pooler", [False, True])
def test_a_pooler_that_is_not_read_is_left_out(has_pooler):
    config = ViTConfig(**TINY)
    source = ViTModel(config, add_pooling_layer=has_pooler).eval()
    tower = build_tower(config, "cls").eval()
    fill_tower(tower, source)
    assert not any(name.startswith("pooler") for name in tower.state_dict())
    pixels = torch.randn(2, 3, 4, 4)
    torch.testing.assert_close(tower(pixels).last_hidden_state, source(pixels).last_hidden_state)


def test_a_pooler_that_is_read_must_be_there():
    config = ViTConfig(**TINY)
    with pytest.raises(RuntimeError, match=r'Missing key\(s\) in state_dict: "pooler'):
        fill_tower(build_tower(config, "pooler"), ViTModel(config, add_pooling_layer=False))


@pytest.mark.parametrize(
    ("config", "name"), [(SiglipVisionConfig, "head"), (CLIPVisionConfig, "post_layernorm")]
)
def test_what_only_the_pooler_reads_is_not_trained(config, name):
    tiny = config(**TINY)
    for pooling, is_trained in (("mean", False), ("pooler", True)):
        tower = build_tower(tiny, pooling)
        freeze_unread_poolers(tower, pooling)
        part = getattr(tower, name)
        assert {parameter.requires_grad for parameter in part.parameters()} == {is_trained}


@pytest.mark.parametrize("pooling", ["cls", "mean", "last"])
def test_refuses_maps_where_a_row_of_states_is_pooled(pooling):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic")
    output = build_tower(config, pooling).eval()(torch.zeros(2, 3, 16, 16))
    with pytest.raises(ValueError, match=rf"must be 'pooler' .* maps, got '{pooling}' for \(2, 12, 2, 2\)"):
        pool_states(output, pooling)
