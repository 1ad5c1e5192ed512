from contextlib import suppress
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import TrainerControl, TrainerState

from radtower.training.weight_average import AVERAGE_FILE, WeightAverage, require_averageable

ARGUMENTS = SimpleNamespace()


@pytest.fixture
def model():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), nn.BatchNorm1d(1))
    nn.init.constant_(model[0].weight, 3.0)
    return model


def _begin(average, model, step=0):
    average.on_train_begin(ARGUMENTS, TrainerState(global_step=step), TrainerControl(), model=model)


def _step(average, model, step, weight):
    nn.init.constant_(model[0].weight, weight)
    model[1].running_mean.fill_(weight / 2)
    model[1].num_batches_tracked.fill_(step)
    average.on_step_end(ARGUMENTS, TrainerState(global_step=step), TrainerControl(), model=model)


def test_the_average_moves_slowly_and_faster_at_the_start(model):
    average = WeightAverage(0.3)
    _begin(average, model)
    _step(average, model, 1, 14.0)  # decay 2/11: below 0.3
    first = 3.0 * 2 / 11 + 14.0 * 9 / 11
    assert average.values["0.weight"][0].tolist() == pytest.approx([first, first])
    assert average.values["1.running_mean"].item() == pytest.approx(7.0 * 9 / 11)
    _step(average, model, 5, -2.0)  # decay 6/15 is above 0.3
    second = 0.3 * first - 2.0 * 0.7
    assert average.values["0.weight"][0].tolist() == pytest.approx([second, second])
    assert average.values["1.num_batches_tracked"].item() == 5
    assert model[0].weight.tolist() == [[-2.0, -2.0]]


def test_the_model_has_the_average_for_a_while(model):
    average = WeightAverage(0.5)
    _begin(average, model)
    _step(average, model, 1, 14.0)
    value = average.values["0.weight"].tolist()
    with average.applied_to(model):
        assert model[0].weight.tolist() == value
    assert model[0].weight.tolist() == [[14.0, 14.0]]
    with suppress(KeyError), average.applied_to(model):
        raise KeyError
    assert model[0].weight.tolist() == [[14.0, 14.0]]
    assert average.values["0.weight"].tolist() == value


def test_the_average_of_a_checkpoint_is_taken_up(model, tmp_path):
    average = WeightAverage(0.5)
    _begin(average, model)
    _step(average, model, 1, 14.0)
    average.save(tmp_path)
    again = WeightAverage(0.5)
    again.resume_from = tmp_path
    _begin(again, model, step=1)
    assert again.values.keys() == average.values.keys()
    assert all(torch.equal(again.values[name], value) for name, value in average.values.items())


def test_a_checkpoint_without_an_average_is_refused(model, tmp_path):
    average = WeightAverage(0.5)
    average.resume_from = tmp_path
    with pytest.raises(FileNotFoundError, match=f"must hold {AVERAGE_FILE} .* got none in {tmp_path}"):
        _begin(average, model, step=1)


@pytest.mark.parametrize("decay", [0.0, 1.0, -1.0, 1.5])
def test_a_decay_outside_zero_to_one_is_refused(decay):
    with pytest.raises(ValueError, match=rf"ema_decay must be in \(0, 1\), got {decay}"):
        WeightAverage(decay)


@pytest.mark.parametrize(
    ("state", "kind"),
    [
        (SimpleNamespace(deepspeed_plugin=object()), "DeepSpeed"),
        (SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=1)), "FSDP of version 1"),
    ],
)
def test_weights_that_the_average_would_not_see_are_refused(state, kind):
    require_averageable(state, None)
    with pytest.raises(ValueError, match=rf"ema_decay must be None with {kind}, .* got 0\.9"):
        require_averageable(state, 0.9)


def test_whole_weights_and_those_in_shards_of_version_2_are_averaged():
    require_averageable(SimpleNamespace(deepspeed_plugin=None), 0.9)
    require_averageable(SimpleNamespace(fsdp_plugin=SimpleNamespace(fsdp_version=2)), 0.9)
