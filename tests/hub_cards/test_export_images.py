"""An exported dual tower of 2D images, where RadTower is not installed."""

import json
import os
import re
import subprocess
import sys
import textwrap

import pytest
import torch
from PIL import Image
from transformers import pipeline

from radtower.hub_cards.export import export_model
from radtower.hub_cards.families import FAMILIES, IMAGE_CLIP, family_of_config
from radtower.modeling.modeling_medclip import MedCLIPModel

RUN_WITHOUT_THE_PACKAGE = """
    import json, re, sys
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "radtower":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Block())
    import torch
    from pathlib import Path
    from PIL import Image
    from transformers import AutoModel, AutoProcessor, pipeline
    folder = sys.argv[1]
    code, *_ = re.findall(r"```python\\n(.*?)```", Path(folder, "README.md").read_text(), re.DOTALL)
    exec(compile(code, folder, "exec"), {"__name__": "card"})
    model = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
    processor = AutoProcessor.from_pretrained(folder, trust_remote_code=True)
    deep = Image.open("deep.png")
    with torch.no_grad():
        inputs = processor(images=[deep, deep.rotate(90)], text=["no nodule", "There is effusion"])
        out = {"loss": model(**inputs).loss.item()}
    texts = ["no nodule", "There is effusion"]
    out["similarities"] = model.compute_similarities([deep], texts).tolist()
    classify = pipeline("zero-shot-image-classification", model=folder, trust_remote_code=True)
    out["scores"] = {
        item["label"]: item["score"]
        for item in classify("flat.png", candidate_labels=texts, hypothesis_template="{}")
    }
    try:
        model.encode_image("deep.png")
    except TypeError as error:
        out["refusal"] = str(error)
    print("RESULT", json.dumps(out))
"""


def test_exported_dual_tower_of_images_runs_its_card_where_the_package_is_not_installed(
    make_model_folder, tmp_path
):
    trained = make_model_folder("image_clip")
    _pad_between_prompt_and_text(trained)
    folder = export_model(trained, tmp_path / "dual-tower")
    assert "**The vector of a text depends on its batch**" in (folder / "README.md").read_text()
    deep = (torch.arange(20 * 24).reshape(20, 24) % 97 * 40 + 300).to(torch.uint16).numpy()
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.new("L", (9, 9), 90).save(tmp_path / "flat.png")
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN_WITHOUT_THE_PACKAGE), folder.name],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "1"},
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    assert re.match(r"tensor\(\[-?\d\.\d+, -?\d\.\d+\]\)", lines[0])
    got = json.loads(next(line for line in lines if line.startswith("RESULT ")).removeprefix("RESULT "))
    model = MedCLIPModel.from_pretrained(trained).eval()
    assert model.config.text_config.depends_on_batch
    texts = ["no nodule", "There is effusion"]
    opened = Image.open(tmp_path / "deep.png")
    with torch.no_grad():
        loss = model(**model.processor(images=[opened, opened.rotate(90)], text=texts)).loss
    assert got["loss"] == pytest.approx(loss.item(), abs=1e-5)
    expected = model.compute_similarities(tmp_path / "deep.png", texts)
    torch.testing.assert_close(torch.tensor(got["similarities"]), expected, atol=1e-6, rtol=1e-5)
    logits = model.logit_scale() * model.compute_similarities(tmp_path / "flat.png", texts)
    scores = dict(zip(texts, logits.softmax(-1)[0].tolist(), strict=True))
    assert got["scores"] == pytest.approx(scores, abs=1e-4)
    assert got["refusal"].startswith("images must be Pillow images or arrays where radtower is not installed")


def _pad_between_prompt_and_text(folder):
    """As the published QwenCLIP does: the arithmetic is remote code, too."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    prompt = {"hard_prompt": "There is", "hard_prompt_ids": [5, 6], "prompt_padding": "legacy_middle"}
    config["text_config"] |= prompt
    path.write_text(json.dumps(config))


def test_the_image_processor_of_transformers_needs_no_remote_code(make_model_folder, tmp_path):
    folder = export_model(make_model_folder("image_clip"), tmp_path / "out")
    settings = json.loads((folder / "processor_config.json").read_text())
    assert settings["auto_map"] == {"AutoProcessor": "processing_medclip.MedCLIPProcessor"}
    assert "auto_map" not in settings["image_processor"]
    assert settings["image_processor"]["image_processor_type"] == "ViTImageProcessor"
    names = {path.name for path in folder.iterdir()}
    assert {"processing_medclip.py", "image_processing_2d.py"} <= names
    assert "image_processing_ct3d.py" not in names
    card = (folder / "README.md").read_text()
    assert "a vit reads the image" in card
    assert "size\n{'height': 16, 'width': 16}, mean" in card.replace(", size ", ", size\n")
    assert "Hounsfield" not in card
    assert "depends on its batch" not in card


def test_the_card_says_how_the_pipeline_reads_the_instruction(make_model_folder, tmp_path):
    trained = make_model_folder("image_clip")
    plain = (export_model(trained, tmp_path / "plain") / "README.md").read_text()
    assert "hypothesis_template" not in plain
    assert '"max_length": 64}`' in plain
    path = trained / "processor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"instruction": "Describe\n{text}"}))
    card = (export_model(trained, tmp_path / "out") / "README.md").read_text()
    template = json.loads(re.search(r"hypothesis_template=(.*?)`", card)[1])
    assert template == "Describe\nThere is {}."
    model, image = MedCLIPModel.from_pretrained(trained).eval(), Image.new("RGB", (9, 9), (90, 90, 90))
    logits = model.logit_scale() * model.compute_similarities(
        image, ["There is nodule.", "There is effusion."]
    )
    classify = pipeline("zero-shot-image-classification", model=str(trained))
    scores = [
        {
            item["label"]: item["score"]
            for item in classify(image, candidate_labels=["nodule", "effusion"], hypothesis_template=given)
        }
        for given in (template, "There is {}.")
    ]
    assert scores[0]["nodule"] == pytest.approx(logits.softmax(-1)[0, 0].item(), abs=1e-4)
    assert scores[1]["nodule"] != pytest.approx(scores[0]["nodule"], abs=1e-3)


def test_the_image_tower_decides_on_the_family():
    assert family_of_config({"model_type": "medclip", "vision_config": {"model_type": "vit"}}) is IMAGE_CLIP
    for vision in ({"model_type": "ct3d_vision"}, None):
        config = {"model_type": "medclip", "vision_config": vision}
        assert family_of_config(config) is FAMILIES["medclip"]
    assert family_of_config({"model_type": "ct3d_vision"}) is FAMILIES["ct3d_vision"]
    with pytest.raises(KeyError, match="got 'clip'"):
        family_of_config({"model_type": "clip", "vision_config": {"model_type": "vit"}})
