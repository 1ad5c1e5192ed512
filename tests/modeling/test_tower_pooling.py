import pytest
import torch
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling

from radtower.modeling.modeling_tower_pooling import pool_states

STATES = torch.arange(12.0).reshape(2, 3, 2)


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
