"""DeepSpeed's ZeRO with gradients and optimizer in shards, where DeepSpeed is installed."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from radtower.modeling.modeling_medclip import MedCLIPModel

sys.path.insert(0, str(Path(__file__).parent))
from pair_worker import make_model
from zero_worker import CASES, launched, train

WORKER = Path(__file__).parent / "zero_worker.py"
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(importlib.util.find_spec("deepspeed") is None, reason="DeepSpeed is not installed"),
]


def test_training_under_zero_gives_the_folder_of_one_process(run_workers, tmp_path):
    run_workers(WORKER, 2, tmp_path)
    start = make_model("infonce").state_dict()
    expected = MedCLIPModel.from_pretrained(train(tmp_path, "whole_batch", 4)).state_dict()
    name = "visual_projection.weight"
    moved = (expected[name] - start[name]).abs().max()
    assert moved > 1e-3
    for case in CASES:
        for run in ("no", "resumed"):
            found = MedCLIPModel.from_pretrained(tmp_path / f"{case}_{run}_2").state_dict()
            for name, value in expected.items():
                torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6, msg=f"{run} {name}")
        rounded = MedCLIPModel.from_pretrained(tmp_path / f"{case}_bf16_2", dtype=torch.float32).state_dict()
        for name, value in expected.items():
            assert (rounded[name] - value).abs().max() < 0.3 * moved + 0.01 * value.abs().max(), name


def test_the_command_trains_under_zero(study_folder, vision_folder, text_folder, tmp_path):
    recipe = {
        "manifest": str(study_folder / "manifest.csv"),
        "cache": str(study_folder / "cache"),
        "vision": str(vision_folder),
        "text": str(text_folder),
        "labels": str(study_folder / "labels.parquet"),
        "projection_dim": 12,
        "chunk_size": 1,
        "output_dir": str(tmp_path / "model"),
        "per_device_train_batch_size": 2,
        "dataloader_drop_last": True,
        "max_steps": 2,
        "ddp_backend": "gloo",
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    (tmp_path / "command.py").write_text("from radtower_command import main\n\nmain()\n")
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, str(tmp_path / "command.py"), "train", "clip", str(tmp_path / "recipe.yaml")],
        env=os.environ | launched() | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=500,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-6000:]
    assert MedCLIPModel.from_pretrained(tmp_path / "model").config.projection_dim == 12
