"""`radtower train clip` under the two launchers, in two real processes."""

import json
import os
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from radtower.modeling.modeling_medclip import MedCLIPModel

BIN = Path(sys.executable).parent
LAUNCHERS = {
    "torchrun": ["--standalone", "--nproc-per-node", "2"],
    "accelerate": [
        "launch",
        "--cpu",
        "--num_processes",
        "2",
        "--num_machines",
        "1",
        "--mixed_precision",
        "no",
    ],
}


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_two_processes_train_one_model(launcher, study_folder, vision_folder, text_folder, tmp_path):
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
        "max_steps": 3,
        "logging_steps": 1,
        "use_cpu": True,
        "ddp_find_unused_parameters": False,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = ["--main_process_port", free.getsockname()[1]] if launcher == "accelerate" else []
    command = [BIN / launcher, *LAUNCHERS[launcher], *port, shutil.which("radtower", path=BIN)]
    done = subprocess.run(
        [*map(str, command), "train", "clip", str(tmp_path / "recipe.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert MedCLIPModel.from_pretrained(tmp_path / "model").config.projection_dim == 12
    lines = (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines if '"loss"' in line]
    assert [entry["step"] for entry in losses] == [1, 2, 3]
    assert all(0 < entry["loss"] < 20 for entry in losses)
