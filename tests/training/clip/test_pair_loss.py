"""Processes, losses, chunks and autocast: all give the loss and the gradients of the whole batch."""

import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

sys.path.insert(0, str(Path(__file__).parent))
from pair_worker import CASES, LOSSES, loss_and_gradients, make_batch, make_model, sharded_gradients

WORKER = Path(__file__).parent / "pair_worker.py"


@pytest.fixture(scope="module")
def alone() -> dict[str, torch.Tensor]:
    return loss_and_gradients(0, 1)


def _assert_close(found, expected, case, relative):
    loss, _, has_autocast = case
    names = [name for name in expected if name.startswith(f"{loss} False {has_autocast} ")]
    assert len(names) > 30
    for name in names:
        value = found[name.replace(f"{loss} False", f"{loss} {case[1]}")]
        # Against the largest gradient of the tensor: single numbers may cancel to nothing.
        difference = (value - expected[name]).abs().max() / expected[name].abs().max().clamp_min(1e-3)
        assert difference < relative, name


@pytest.mark.parametrize("loss", LOSSES)
def test_the_whole_batch_is_what_the_model_says_alone(alone, loss):
    model, batch = make_model(loss), make_batch()
    output = model(**batch)
    output.loss.backward()
    assert output.loss.item() > 0.3
    torch.testing.assert_close(alone[f"{loss} False False loss"], output.loss.detach())
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(alone[f"{loss} False False {name}"], parameter.grad)


@pytest.mark.parametrize("case", [case for case in CASES if case[1]])
def test_chunks_give_the_gradients_of_the_whole_batch(alone, case):
    # bf16 products of 2 rows and of 9 round apart.
    _assert_close(alone, alone, case, 0.02 if case[2] else 1e-5)


def _gradients(folder, world_size):
    return [load_file(folder / f"rank_{rank}.safetensors") for rank in range(world_size)]


@pytest.mark.parametrize("world_size", [pytest.param(2, marks=pytest.mark.slow), 4])
def test_processes_give_the_gradients_of_one(alone, run_workers, world_size, tmp_path):
    run_workers(WORKER, world_size, tmp_path)
    for found in _gradients(tmp_path, world_size):
        for case in CASES:
            _assert_close(found, alone, case, 0.02 if case[2] else 1e-5)


@pytest.mark.slow
def test_weights_in_shards_give_the_gradients_of_whole_ones(run_workers, tmp_path):
    run_workers(WORKER, 2, tmp_path, "sharded")
    expected = sharded_gradients(0, 1)
    for found in _gradients(tmp_path, 2):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            difference = (found[name] - value).abs().max() / value.abs().max().clamp_min(1e-3)
            assert difference < 1e-5, name
