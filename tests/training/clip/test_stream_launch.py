"""Two real processes stream one data set."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from parquet_sets import noisy_png, write_set
from radtower.modeling.modeling_medclip import MedCLIPModel

BIN = Path(sys.executable).parent


@pytest.mark.slow
@pytest.mark.parametrize(("num_files", "num_workers"), [(2, 0), (3, 1)])
def test_two_processes_train_one_model_on_parts_of_a_stream(num_files, num_workers, text_folder, tmp_path):
    images = [noisy_png(number) for number in range(24)]
    images[5] = b"damaged"
    # Every report comes twice, so that the processes have some in common.
    reports = [f"finding {number % 12}" for number in range(24)]
    write_set(tmp_path / "set", images, reports, num_files=num_files)
    vit = {"model_type": "vit", "image_size": 16, "patch_size": 8, "hidden_size": 16}
    recipe = {
        "dataset": str(tmp_path / "set"),
        "image_column": "image",
        "report_column": "report",
        "shuffle_buffer": 4,
        "vision": {**vit, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2},
        "vision_pooling": "mean",
        "text": str(text_folder),
        "projection_dim": 12,
        "output_dir": str(tmp_path / "model"),
        "per_device_train_batch_size": 3,
        "dataloader_num_workers": num_workers,
        "max_steps": 7,  # more than two passes
        "logging_steps": 1,
        "use_cpu": True,
        "ddp_find_unused_parameters": False,
    }
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe))
    command = [BIN / "torchrun", "--standalone", "--nproc-per-node", "2", shutil.which("radtower", path=BIN)]
    done = subprocess.run(
        [*map(str, command), "train", "clip", str(tmp_path / "recipe.yaml")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert MedCLIPModel.from_pretrained(tmp_path / "model").config.projection_dim == 12
    lines = (tmp_path / "model" / "training_log.jsonl").read_text().splitlines()
    losses = [json.loads(line) for line in lines if '"loss"' in line]
    assert [entry["step"] for entry in losses] == [1, 2, 3, 4, 5, 6, 7]
    assert all(0 < entry["loss"] < 20 for entry in losses)
    assert done.stdout.count(" rows read were left out, among them: report ") == 1
