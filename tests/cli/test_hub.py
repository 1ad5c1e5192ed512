import json
import os
import subprocess
import sys

import numpy as np
import pytest
from huggingface_hub import ModelCard
from PIL import Image

from radtower.cli.card_pictures import example_pictures
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder

pytest.importorskip("matplotlib")

LAUNCHER = "import sys; sys.argv[0] = 'radtower'; from radtower_command import main; main()"


def test_export_writes_a_folder_and_refuses_to_replace_another(radtower, dual_tower, tmp_path):
    done = radtower("export", dual_tower, "-o", tmp_path / "out", "--license", "apache-2.0")
    assert (done.code, done.out) == (0, f"Exported {tmp_path / 'out'}\n")
    assert ModelCard.load(tmp_path / "out" / "README.md").data.license == "apache-2.0"
    assert (tmp_path / "out" / "modeling_medclip.py").is_file()
    again = radtower("export", dual_tower, "-o", dual_tower)
    assert again.code == 2
    assert "which is neither" in again.err
    assert (dual_tower / "model.safetensors").is_file()


def test_the_installed_command_exports_a_text_encoder_and_says_nothing_else(tiny_llm_folder, tmp_path):
    LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", max_length=64).save_pretrained(tmp_path / "text")
    done = subprocess.run(
        [sys.executable, "-c", LAUNCHER, "export", tmp_path / "text", "-o", tmp_path / "out"],
        capture_output=True,
        text=True,
        env=os.environ | {"COLUMNS": "200"},
    )
    assert (done.returncode, done.stdout) == (0, f"Exported {tmp_path / 'out'}\n")
    assert done.stderr == ""


def test_slices_of_a_scan_that_may_be_shown_go_on_the_card(radtower, dual_tower, phantom_scan, tmp_path):
    source = "phantom of RadTower, CC0"
    done = radtower(
        *("export", dual_tower, "-o", tmp_path / "out", "--example-scan", phantom_scan),
        *("--example-source", source),
    )
    assert done.code == 0, done.err
    card = ModelCard.load(tmp_path / "out" / "README.md").content
    assert "(card_images/example-scan.png)\n\nExample slices. The middle slices of one scan" in card
    assert f" mm (Z, Y, X), a row for each window. Scan: {source}\n" in card
    with Image.open(tmp_path / "out" / "card_images" / "example-scan.png") as picture:
        assert set(picture.info) <= {"dpi"}
        assert np.asarray(picture.convert("L")).std() > 20


def test_slices_are_drawn_one_way_whatever_the_model_wants(dual_tower, phantom_scan):
    pictures = [example_pictures(dual_tower, phantom_scan, "CC0")]
    path = dual_tower / "processor_config.json"
    settings = json.loads(path.read_text())
    settings["image_processor"]["orientation"] = "RAS"
    path.write_text(json.dumps(settings))
    pictures.append(example_pictures(dual_tower, phantom_scan, "CC0"))
    assert pictures[0] == pictures[1]


def test_a_scan_is_shown_with_its_source_only(radtower, dual_tower, phantom_scan, tmp_path):
    for given in (["--example-scan", phantom_scan], ["--example-source", "me"]):
        done = radtower("export", dual_tower, "-o", tmp_path / "out", *given)
        assert done.code == 2
        assert "--example-scan must come with --example-source" in done.err
    assert not (tmp_path / "out").exists()


def test_a_scan_is_shown_for_models_of_scans_only(radtower, tiny_image_clip, phantom_scan, tmp_path):
    tiny_image_clip.save_pretrained(tmp_path / "pictures")
    tiny_image_clip.processor.save_pretrained(tmp_path / "pictures")
    done = radtower(
        *("export", tmp_path / "pictures", "-o", tmp_path / "out", "--example-scan", phantom_scan),
        *("--example-source", "me"),
    )
    assert done.code == 2
    assert "--example-scan is for models of CT scans, got ViTImageProcessor" in done.err
