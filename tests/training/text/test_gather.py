import shutil
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.gather import gather_with_gradient, own_rows, row_counts

sys.path.insert(0, str(Path(__file__).parent))
from gather_worker import PAIRS, loss_and_gradients, train

WORKER = Path(__file__).parent / "gather_worker.py"


def test_one_process_gathers_its_own_rows():
    rows = torch.rand(3, 2)
    assert gather_with_gradient(rows) is rows
    assert row_counts(3, rows.device) == [3]
    assert own_rows([3], rows.device).tolist() == [0, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2, 4])
def test_several_processes_have_loss_and_gradients_of_one_with_all_pairs(
    tiny_llm_folder, run_workers, tmp_path, world_size
):
    shutil.copytree(tiny_llm_folder, tmp_path / "llm")
    run_workers(WORKER, world_size, tmp_path, "loss")
    whole = loss_and_gradients(tiny_llm_folder, PAIRS)
    together = [load_file(tmp_path / f"rank_{rank}.safetensors") for rank in range(world_size)]
    for name, value in whole.items():
        difference = (together[0][name] - value).abs().max() / value.abs().max().clamp_min(1e-3)
        assert difference < 1e-5, name
    assert whole["0 loss"] > 0.5
    for rank, found in enumerate(together):
        expected = [float(r) for r in range(world_size) for _ in range(r + 1)]
        assert found["rows"][:, 1].tolist() == expected
        start = rank * (rank + 1) // 2  # rows of the ranks before
        weight = sum(range(1, world_size + 1))
        assert found["gradient"][:, 0].tolist() == [weight * (start + row) for row in range(rank + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [2])
def test_training_in_several_processes_gives_the_model_of_one(
    tiny_llm_folder, pairs_file, run_workers, tmp_path, world_size
):
    shutil.copytree(tiny_llm_folder, tmp_path / "llm")
    shutil.copy(pairs_file, tmp_path / "pairs.parquet")
    run_workers(WORKER, world_size, tmp_path, "train")
    alone = LLMBiEncoder.from_pretrained(train({}, tmp_path, 6)).state_dict()
    together = LLMBiEncoder.from_pretrained(tmp_path / f"batch_{6 // world_size}").state_dict()
    start = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean").state_dict()
    moved = [(alone[name] - start[name]).abs().max().item() for name in alone]
    assert max(moved) > 1e-3
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6)
