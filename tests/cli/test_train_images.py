"""From a downloaded set of images to a folder for the Hub, with commands alone."""

import json
from pathlib import Path

import numpy as np
import torch
import yaml
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoModel, pipeline

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel

RECIPE = Path(__file__).parents[2] / "recipes" / "medpix_small.yaml"
TINY_VIT = (
    "{model_type: vit, image_size: 16, patch_size: 8, hidden_size: 16, intermediate_size: 24, "
    "num_hidden_layers: 1, num_attention_heads: 2}"
)


def _write_cases(folder):
    """Eight images of a bright left or right half; one is damaged, one is deep, one is not there."""
    (folder / "images").mkdir()
    cases = []
    for number in range(9):
        side = "left" if number % 2 else "right"
        pixels = np.full((20, 24), 10 + number, np.uint16 if number == 4 else np.uint8)
        pixels[:, :12] += 90 * (number % 2)
        pixels[:, 12:] += 90 * (1 - number % 2)
        if number < 8:
            Image.fromarray(pixels).save(folder / "images" / f"c{number}.png")
        split = "dev" if number == 7 else "train"
        caption = f"There is effusion {side} {number}"
        cases.append({"image": f"c{number}.png", "uid": f"u{number}", "split": split, "caption": caption})
    (folder / "images" / "c3.png").write_bytes((folder / "images" / "c3.png").read_bytes()[:50])
    (folder / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))


def test_the_medpix_recipe_runs_end_to_end_in_miniature(radtower, tmp_path, tiny_llm_folder):
    _write_cases(tmp_path)
    manifest, model, export = (tmp_path / name for name in ("manifest.csv", "model", "export"))
    done = radtower("manifest", "medpix", tmp_path / "cases.jsonl", "-o", manifest)
    assert done.code == 0, done.err
    assert "not there: c8.png" in done.out
    flags = {"manifest": manifest, "vision": TINY_VIT, "text": tiny_llm_folder, "output_dir": model}
    flags |= {
        "num_llm_layers": 1,
        "per_device_train_batch_size": 3,
        "num_train_epochs": 2,
        "logging_steps": 1,
    }
    flags |= {"projection_dim": 8, "disable_tqdm": "true", "warmup_steps": 1}
    done = radtower("train", "clip", RECIPE, *(str(x) for name, v in flags.items() for x in (f"--{name}", v)))
    assert done.code == 0, done.err
    assert "1 of 7 images are left out:\n  an image must be whole, got " in done.out
    assert "c3.png" in done.out
    assert f"Saved {model}" in done.out
    log = [json.loads(line) for line in (model / "training_log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log if "loss" in entry] == [1, 2, 3, 4]
    record = yaml.safe_load((model / "run.yaml").read_text())["run"]
    assert record["vision"]["hidden_size"] == 16
    assert (record["cache"], record["llm_pooling"], record["bidirectional"]) == (None, "mean", False)
    loaded = AutoModel.from_pretrained(model)
    assert isinstance(loaded, MedCLIPModel)
    llm = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", num_hidden_layers=1).state_dict()
    assert loaded.text_model.state_dict().keys() == llm.keys()
    assert all(torch.equal(value, llm[name]) for name, value in loaded.text_model.state_dict().items())
    image = tmp_path / "images" / "c7.png"
    labels = ["effusion left", "effusion right"]
    found = pipeline("zero-shot-image-classification", model=str(model))(str(image), candidate_labels=labels)
    assert {item["label"] for item in found} == set(labels)

    done = radtower(
        "embed", "images", model, image, tmp_path / "images" / "c4.png", "-o", tmp_path / "features"
    )
    assert done.code == 0, done.err
    assert "2 of 2 scans, 8 numbers each" in done.out
    vectors = load_file(tmp_path / "features" / "features.safetensors")
    vectors = next(iter(vectors.values()))
    expected = loaded.eval().encode_image([image, tmp_path / "images" / "c4.png"])
    np.testing.assert_allclose(vectors, expected, atol=1e-5)

    done = radtower("export", model, "-o", export)
    assert done.code == 0, done.err
    names = {path.name for path in export.iterdir()}
    assert {"README.md", "image_processing_2d.py", "processor_config.json", "model.safetensors"} <= names
    assert not names & {"run.yaml", "training_log.jsonl"}
    assert str(tmp_path) not in (export / "config.json").read_text()
