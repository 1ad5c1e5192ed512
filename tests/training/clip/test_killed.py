"""`radtower train clip`, killed and resumed: a real process, and SIGKILL."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file

BIN = Path(sys.executable).parent
NUM_STEPS = 6


def _start(folder, recipe, *flags):
    path = folder.with_suffix(".yaml")
    path.write_text(yaml.safe_dump({**recipe, "output_dir": str(folder)}))
    radtower = shutil.which("radtower", path=BIN)
    return subprocess.Popen(
        [radtower, "train", "clip", str(path), *flags],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def _kill_once_it_wrote(process, path):
    while not path.exists():
        assert process.poll() is None, process.stderr.read()[-2000:]
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def _finish(process):
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-2000:]


@pytest.mark.slow
def test_a_killed_training_goes_on_as_if_it_had_not_been(study_folder, vision_folder, text_folder, tmp_path):
    recipe = {
        "manifest": str(study_folder / "manifest.csv"),
        "cache": str(study_folder / "cache"),
        "vision": str(vision_folder),
        "text": str(text_folder),
        "text_mode": "full",
        "labels": str(study_folder / "labels.parquet"),
        "projection_dim": 12,
        "chunk_size": 2,
        "ema_decay": 0.8,
        "per_device_train_batch_size": 3,
        "dataloader_drop_last": True,
        "learning_rate": 0.01,
        "lr_scheduler_type": "cosine",
        "max_steps": NUM_STEPS,
        "save_strategy": "steps",
        "save_steps": 1,
        "logging_steps": 1,
        "use_cpu": True,
    }
    _finish(_start(tmp_path / "whole", recipe))
    killed = tmp_path / "killed"
    # Where a checkpoint is begun, and where its last file is there.
    _kill_once_it_wrote(_start(killed, recipe), killed / "checkpoint-2")
    resumed = _start(killed, recipe, "--resume_from_checkpoint", "true")
    _kill_once_it_wrote(resumed, killed / "checkpoint-4" / "trainer_state.json")
    _finish(_start(killed, recipe, "--resume_from_checkpoint", "true"))

    for name in ("model.safetensors", f"checkpoint-{NUM_STEPS}/model.safetensors"):
        expected, found = load_file(tmp_path / "whole" / name), load_file(killed / name)
        assert expected.keys() == found.keys()
        assert all(found[key].equal(value) for key, value in expected.items())
    first = load_file(tmp_path / "whole" / "checkpoint-1" / "model.safetensors")
    assert not all(first[key].equal(value) for key, value in expected.items())
    lines = map(json.loads, (killed / "training_log.jsonl").read_text().splitlines())
    assert [entry["step"] for entry in lines if "loss" in entry] == list(range(1, NUM_STEPS + 1))
