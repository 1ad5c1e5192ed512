import pytest
from torch import nn

from radtower.training.clip.tower_parts import find_layers


@pytest.mark.parametrize(
    ("kind", "name", "number"),
    [
        ("vit", "layers", 3),
        ("clip", "encoder.layers", 3),
        ("siglip", "encoder.layers", 3),
        ("dinov2", "encoder.layer", 3),
        ("bert", "encoder.layer", 3),
        ("qwen3", "layers", 3),
        ("convnext", "encoder.stages", 2),
        ("ct3d", "stages", 3),
        ("llm", "model.layers", 2),
    ],
)
def test_finds_the_layers_of_every_family(make_tower, kind, name, number):
    tower = make_tower(kind)
    found, layers = find_layers(tower)
    assert (found, len(layers)) == (name, number)
    assert tower.get_submodule(name) is layers


def test_takes_the_longest_list_that_lies_in_no_other():
    tower = nn.Module()
    tower.heads = nn.ModuleList([nn.Linear(1, 1)])
    blocks = [nn.ModuleList([nn.Linear(1, 1) for _ in range(4)]) for _ in range(2)]
    tower.stages = nn.ModuleList(blocks)
    assert find_layers(tower) == ("stages", tower.stages)


def test_refuses_a_tower_without_layers_or_with_two_lists():
    with pytest.raises(ValueError, match=r"one list of layers, got \[\] in Linear\. Use mode 'frozen'"):
        find_layers(nn.Linear(1, 1))
    tower = nn.Module()
    tower.left, tower.right = (nn.ModuleList([nn.Linear(1, 1)]) for _ in range(2))
    with pytest.raises(ValueError, match=r"got \['left', 'right'\] in Module"):
        find_layers(tower)
