import json
import os
import re
import subprocess
import sys
import textwrap
from importlib.metadata import requires

import pytest
import torch
from safetensors import safe_open
from transformers import (
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
)

from radtower.hub_cards.checksums import verify_checksums
from radtower.hub_cards.export import export_model
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor

# For each folder: run the code of its card as pasted, then print outputs of its models.
RUN_WITHOUT_THE_PACKAGE = """
    import json, re, sys
    class Block:
        def find_spec(self, name, path=None, target=None):
            if name.split(".")[0] == "radtower":
                raise ModuleNotFoundError(name)
    sys.meta_path.insert(0, Block())
    import torch, transformers
    from pathlib import Path
    volume = torch.linspace(-1000, 400, 12 * 20 * 16).reshape(12, 20, 16)
    labels = torch.tensor([[1.0, 0.25]])
    def load(auto, folder):
        return getattr(transformers, auto).from_pretrained(folder, trust_remote_code=True)
    for folder in sys.argv[1:]:
        code, *_ = re.findall(r"```python\\n(.*?)```", Path(folder, "README.md").read_text(), re.DOTALL)
        exec(compile(code, folder, "exec"), {"__name__": "card"})
        config = json.loads(Path(folder, "config.json").read_text())
        kind, autos = config["model_type"], config["auto_map"]
        out = {}
        if "AutoModel" in autos:
            model = load("AutoModel", folder).eval()
            out["class"] = type(model).__name__
        with torch.no_grad():
            if "AutoModel" not in autos:
                pass
            elif kind == "llm_biencoder":
                out["pooled"] = model.encode_text(["no nodule", "There is effusion"]).tolist()
            elif kind == "ct3d_vision":
                inputs = load("AutoImageProcessor", folder)([volume], spacings_mm=[(3.0, 2.0, 2.0)])
                out["pooled"] = model(**inputs).pooler_output.tolist()
            else:
                inputs = load("AutoProcessor", folder)(
                    images=[volume], spacings_mm=[(3.0, 2.0, 2.0)], text=["no nodule"]
                )
                output = model(**inputs, labels=labels)
                out["pooled"] = output.image_embeds.tolist() + output.text_embeds.tolist()
                out["loss"] = output.loss.item()
            if "AutoModelForImageClassification" in autos:
                output = load("AutoModelForImageClassification", folder).eval()(**inputs, labels=labels)
                out |= {"logits": output.logits.tolist(), "loss": output.loss.item()}
            if "AutoModelForSequenceClassification" in autos:
                classifier = load("AutoModelForSequenceClassification", folder).eval()
                output = classifier(torch.tensor([[5, 9, 40]]), labels=labels)
                out |= {"logits": output.logits.tolist(), "loss": output.loss.item()}
            if "AutoModelForMaskedLM" in autos:
                ids = torch.tensor([[5, 9, 40]])
                masked = load("AutoModelForMaskedLM", folder).eval()
                out["masked_loss"] = masked(ids, labels=torch.tensor([[-100, 7, 40]])).loss.item()
        print("RESULT", json.dumps(out))
"""
VOLUME = torch.linspace(-1000, 400, 12 * 20 * 16).reshape(12, 20, 16)
LABELS = torch.tensor([[1.0, 0.25]])


def _run_without_the_package(exports, cache):
    env = os.environ | {"HF_HOME": str(cache), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUN_WITHOUT_THE_PACKAGE), *(path.name for path in exports)],
        capture_output=True,
        text=True,
        env=env,
        cwd=exports[0].parent,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = done.stdout.splitlines()
    return [json.loads(line.removeprefix("RESULT ")) for line in lines if line.startswith("RESULT ")], lines


def _close(got, expected):
    torch.testing.assert_close(torch.tensor(got), expected.detach(), atol=1e-6, rtol=1e-5)


def test_exported_dual_tower_runs_its_card_where_the_package_is_not_installed(make_model_folder, tmp_path):
    trained = make_model_folder("medclip")
    (got,), lines = _run_without_the_package(
        [export_model(trained, tmp_path / "dual-tower")], tmp_path / "hf"
    )
    assert re.match(r"tensor\(\[-?\d\.\d+, -?\d\.\d+\]\)", lines[0])
    model = MedCLIPModel.from_pretrained(trained).eval()
    inputs = model.processor(images=[VOLUME], spacings_mm=[(3.0, 2.0, 2.0)], text=["no nodule"])
    expected = model(**inputs, labels=LABELS)
    _close(got["pooled"], torch.cat([expected.image_embeds, expected.text_embeds]))
    _close(got["loss"], expected.loss)
    assert got["class"] == "MedCLIPModel"


def test_exported_image_towers_run_their_cards_where_the_package_is_not_installed(
    make_model_folder, tmp_path
):
    trained = [make_model_folder(kind) for kind in ("ct3d_classifier", "ct3d_bare")]
    exports = [export_model(folder, tmp_path / f"image-tower-{n}") for n, folder in enumerate(trained)]
    results, lines = _run_without_the_package(exports, tmp_path / "hf")
    assert lines[0] == "torch.Size([1, 16])"
    for folder, got in zip(trained, results, strict=True):
        inputs = CT3DImageProcessor.from_pretrained(folder)([VOLUME], spacings_mm=[(3.0, 2.0, 2.0)])
        model = CT3DVisionModel.from_pretrained(folder).eval()
        _close(got["pooled"], model(**inputs).pooler_output)
        assert got["class"] == "CT3DVisionModel"
    classifier = AutoModelForImageClassification.from_pretrained(trained[0]).eval()
    inputs = CT3DImageProcessor.from_pretrained(trained[0])([VOLUME], spacings_mm=[(3.0, 2.0, 2.0)])
    expected = classifier(**inputs, labels=LABELS)
    _close(results[0]["logits"], expected.logits)
    _close(results[0]["loss"], expected.loss)
    assert "logits" not in results[1]


def test_exported_text_towers_run_their_cards_where_the_package_is_not_installed(make_model_folder, tmp_path):
    kinds = ("llm_mean", "llm_latent", "llm_classifier", "llm_mntp")
    trained = [make_model_folder(kind) for kind in kinds]
    exports = [export_model(folder, tmp_path / f"text-tower-{n}") for n, folder in enumerate(trained)]
    results, lines = _run_without_the_package(exports, tmp_path / "hf")
    assert lines[0] == "torch.Size([2, 32])"
    for folder, got in zip(trained, results, strict=True):
        model = LLMBiEncoder.from_pretrained(folder).eval()
        _close(got["pooled"], model.encode_text(["no nodule", "There is effusion"]))
    assert not torch.allclose(
        torch.tensor(results[0]["pooled"]), torch.tensor(results[1]["pooled"]), atol=1e-2
    )
    classifier = AutoModelForSequenceClassification.from_pretrained(trained[2]).eval()
    expected = classifier(torch.tensor([[5, 9, 40]]), labels=LABELS)
    _close(results[2]["logits"], expected.logits)
    _close(results[2]["loss"], expected.loss)
    assert ["logits" in got for got in results] == [False, False, True, False]
    masked = AutoModelForMaskedLM.from_pretrained(trained[3]).eval()
    loss = masked(torch.tensor([[5, 9, 40]]), labels=torch.tensor([[-100, 7, 40]])).loss
    _close(results[3]["masked_loss"], loss)
    assert ["masked_loss" in got for got in results] == [False, False, False, True]


def test_heads_without_pooling_run_their_cards_where_the_package_is_not_installed(
    make_model_folder, tmp_path
):
    trained = [make_model_folder(kind) for kind in ("llm_latent_classifier", "llm_latent_mntp")]
    exports = [export_model(folder, tmp_path / f"head-{n}") for n, folder in enumerate(trained)]
    results, lines = _run_without_the_package(exports, tmp_path / "hf")
    assert lines[0].startswith("['effusion', 'nodule'] tensor([[0.")
    assert [sorted(got) for got in results] == [["logits", "loss"], ["masked_loss"]]
    classifier = AutoModelForSequenceClassification.from_pretrained(trained[0]).eval()
    _close(results[0]["logits"], classifier(torch.tensor([[5, 9, 40]])).logits)
    for folder in exports:
        assert "encode_text" not in (folder / "README.md").read_text()
        assert "| pooling |" not in (folder / "README.md").read_text()


def _auto_maps(folder):
    maps = {}
    for path in sorted(folder.glob("*config*.json")):
        content = json.loads(path.read_text())
        maps[path.name] = content.get("auto_map")
        if "image_processor" in content:
            maps["image_processor"] = content["image_processor"].get("auto_map")
    return maps


def test_ships_the_model_and_nothing_else(make_model_folder, make_results, tmp_path):
    folder = export_model(make_model_folder("medclip"), tmp_path / "out", make_results())
    assert sorted(path.name for path in folder.rglob("*")) == [
        "README.md",
        "checksums.sha256",
        "config.json",
        "configuration_ct3d.py",
        "configuration_llm_biencoder.py",
        "configuration_medclip.py",
        "image_processing_2d.py",
        "image_processing_ct3d.py",
        "image_processing_ct3d_settings.py",
        "image_processing_resampling.py",
        "losses.py",
        "model.safetensors",
        "modeling_attention_direction.py",
        "modeling_causal_layers.py",
        "modeling_cpu_linear.py",
        "modeling_ct3d.py",
        "modeling_ct3d_blocks.py",
        "modeling_ct3d_import.py",
        "modeling_ct3d_winograd.py",
        "modeling_encode_batches.py",
        "modeling_inner_outputs.py",
        "modeling_joint_space.py",
        "modeling_latent_attention.py",
        "modeling_llm_biencoder.py",
        "modeling_llm_biencoder_base.py",
        "modeling_llm_files.py",
        "modeling_llm_import.py",
        "modeling_llm_lora.py",
        "modeling_llm_st_folder.py",
        "modeling_loaded_from.py",
        "modeling_medclip.py",
        "modeling_medclip_output.py",
        "modeling_pair_losses.py",
        "modeling_pair_objective.py",
        "modeling_pair_relation.py",
        "modeling_prompted_decoder.py",
        "modeling_soft_prompt.py",
        "modeling_text_inputs.py",
        "modeling_towers.py",
        "modeling_vector_precision.py",
        "modeling_zero_shot.py",
        "processing_call_settings.py",
        "processing_medclip.py",
        "processor_config.json",
        "requirements.txt",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert sorted(path.name for path in tmp_path.iterdir() if "out" in path.name) == ["out"]


def test_says_which_versions_load_it(make_model_folder, tmp_path):
    for kind, packages in (("ct3d", "pillow torch transformers"), ("llm_mean", "torch transformers")):
        folder = export_model(make_model_folder(kind), tmp_path / kind)
        lines = (folder / "requirements.txt").read_text().splitlines()
        assert [re.match(r"\w+", line)[0] for line in lines] == packages.split()
        declared = requires("radtower")
        assert all(line in declared and ">=" in line for line in lines)


IMAGE_MAP = {"AutoImageProcessor": "image_processing_ct3d.CT3DImageProcessor"}
VISION = {
    "AutoConfig": "configuration_ct3d.CT3DVisionConfig",
    "AutoModel": "modeling_ct3d.CT3DVisionModel",
}
WITHOUT_VECTORS = {"AutoConfig": "configuration_llm_biencoder.LLMBiEncoderConfig"}
TEXT = WITHOUT_VECTORS | {"AutoModel": "modeling_llm_biencoder.LLMBiEncoder"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (
            "medclip",
            {
                "config.json": {
                    "AutoConfig": "configuration_medclip.MedCLIPConfig",
                    "AutoModel": "modeling_medclip.MedCLIPModel",
                    "AutoModelForZeroShotImageClassification": "modeling_medclip.MedCLIPModel",
                },
                "processor_config.json": {"AutoProcessor": "processing_medclip.MedCLIPProcessor"},
                "image_processor": IMAGE_MAP,
            },
        ),
        ("ct3d_bare", {"config.json": VISION, "preprocessor_config.json": IMAGE_MAP}),
        (
            "ct3d_classifier",
            {
                "config.json": VISION
                | {"AutoModelForImageClassification": "modeling_ct3d.CT3DVisionForImageClassification"},
                "preprocessor_config.json": IMAGE_MAP,
            },
        ),
        ("llm_mean", {"config.json": TEXT}),
        (
            "llm_mntp",
            {
                "config.json": TEXT
                | {"AutoModelForMaskedLM": "modeling_llm_biencoder_mntp.LLMBiEncoderForMaskedNTP"}
            },
        ),
        (
            "llm_latent_mntp",
            {
                "config.json": WITHOUT_VECTORS
                | {"AutoModelForMaskedLM": "modeling_llm_biencoder_mntp.LLMBiEncoderForMaskedNTP"}
            },
        ),
        (
            "llm_latent_classifier",
            {
                "config.json": WITHOUT_VECTORS
                | {
                    "AutoModelForSequenceClassification": (
                        "modeling_llm_biencoder_heads.LLMBiEncoderForSequenceClassification"
                    )
                }
            },
        ),
        (
            "llm_classifier",
            {
                "config.json": TEXT
                | {
                    "AutoModelForSequenceClassification": (
                        "modeling_llm_biencoder_heads.LLMBiEncoderForSequenceClassification"
                    )
                }
            },
        ),
    ],
)
def test_every_auto_class_leads_to_a_class_that_has_its_weights(make_model_folder, tmp_path, kind, expected):
    maps = _auto_maps(export_model(make_model_folder(kind), tmp_path / "out"))
    for name in ("tokenizer_config", "sentence_bert_config", "config_sentence_transformers"):
        assert maps.pop(f"{name}.json", None) is None
    assert maps == expected


def test_weights_are_those_that_were_trained(make_model_folder, tmp_path):
    trained = make_model_folder("ct3d_classifier")
    folder = export_model(trained, tmp_path / "out")
    with safe_open(folder / "model.safetensors", "pt") as exported:
        model = AutoModelForImageClassification.from_pretrained(trained)
        assert torch.equal(exported.get_tensor("classifier.weight"), model.classifier.weight)


@pytest.mark.parametrize("kind", ["medclip", "ct3d_bare", "llm_latent", "llm_classifier"])
def test_no_local_path_and_nothing_private_is_exported(make_model_folder, make_results, tmp_path, kind):
    trained = make_model_folder(kind)
    if kind == "medclip":  # a dual tower of towers that were loaded from folders
        towers = [make_model_folder(name) for name in ("ct3d_bare", "llm_mean")]
        vision, text = CT3DVisionModel.from_pretrained(towers[0]), LLMBiEncoder.from_pretrained(towers[1])
        MedCLIPModel.from_towers(vision, text, projection_dim=8).save_pretrained(trained)
        assert str(tmp_path) in (trained / "config.json").read_text()
    folder = export_model(trained, tmp_path / "out", make_results())
    for path in folder.iterdir():
        content = path.read_bytes()
        assert str(tmp_path.parent).encode() not in content, path.name
        assert b"/tmp/" not in content, path.name
        assert b"manifest.csv" not in content, path.name


def test_exporting_twice_gives_the_same_bytes(make_model_folder, make_results, tmp_path):
    trained, results = make_model_folder("medclip"), make_results()
    first = {p.name: p.read_bytes() for p in export_model(trained, tmp_path / "out", results).iterdir()}
    listed = [line.split("  ")[1] for line in first["checksums.sha256"].decode().splitlines()]
    assert listed == sorted(first.keys() - {"checksums.sha256"})
    verify_checksums(tmp_path / "out")
    (tmp_path / "out" / "merges.txt").write_text("of an earlier tokenizer")
    again = {p.name: p.read_bytes() for p in export_model(trained, tmp_path / "out", results).iterdir()}
    assert again == first


def test_results_are_not_dropped_in_silence(make_model_folder, make_results, tmp_path):
    trained, results = make_model_folder("llm_mean"), make_results()
    export_model(trained, tmp_path / "out")
    folder = export_model(trained, tmp_path / "out", results)
    before = (folder / "README.md").read_text()
    with pytest.raises(ValueError, match=r"results must be given again, got None, and the card in .*out has"):
        export_model(trained, folder)
    assert (folder / "README.md").read_text() == before
    export_model(trained, folder, results)


@pytest.mark.parametrize("license_id", ["", " "])
def test_refuses_an_empty_license(make_model_folder, tmp_path, license_id):
    with pytest.raises(ValueError, match=f"must name a license, got '{license_id}'"):
        export_model(make_model_folder("llm_mean"), tmp_path / "out", license_id=license_id)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json"])
def test_refuses_an_adapter_that_is_not_merged(make_model_folder, tmp_path, name):
    trained = make_model_folder("llm_mean")
    (trained / name).write_bytes(b"{}")
    with pytest.raises(ValueError, match=rf"must hold no adapter, got {name} in .*trained_llm_mean\. Merge"):
        export_model(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_ships_the_weights_of_the_model_alone(make_model_folder, tmp_path):
    trained = make_model_folder("llm_mean")
    (trained / "optimizer.safetensors").write_bytes(b"")
    folder = export_model(trained, tmp_path / "out")
    assert [path.name for path in folder.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize("content", ["chapter.txt", "config.json"])
def test_refuses_to_replace_what_is_no_export(make_model_folder, tmp_path, content):
    output = tmp_path / "thesis"
    output.mkdir()
    (output / content).write_text('{"model_type": "medclip"}')
    with pytest.raises(FileExistsError, match=r"got .*thesis, which is neither"):
        export_model(make_model_folder("ct3d_bare"), output)
    assert [path.name for path in output.iterdir()] == [content]


def test_a_failed_export_leaves_the_earlier_one(make_model_folder, tmp_path):
    trained = make_model_folder("ct3d_bare")
    before = sorted(path.name for path in export_model(trained, tmp_path / "out").iterdir())
    with pytest.raises(FileNotFoundError, match=r"nowhere\.json"):
        export_model(trained, tmp_path / "out", tmp_path / "nowhere.json")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == before


def test_refuses_a_folder_without_configuration_or_weights(make_model_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"must hold config\.json, got .*nothing"):
        export_model(tmp_path / "nothing", tmp_path / "out")
    trained = make_model_folder("ct3d_bare")
    (trained / "model.safetensors").rename(trained / "pytorch_model.bin")
    with pytest.raises(
        ValueError, match=r"must be safetensors, got .*pytorch_model\.bin, a pickle, which is"
    ):
        export_model(trained, tmp_path / "out")
    (trained / "pytorch_model.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"safetensors weights, got none in .*trained_ct3d_bare"):
        export_model(trained, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_refuses_a_model_of_another_family(make_model_folder, tmp_path):
    trained = make_model_folder("ct3d_bare")
    (trained / "config.json").write_text('{"model_type": "clip"}')
    with pytest.raises(KeyError, match="got 'clip'"):
        export_model(trained, tmp_path / "out")


@pytest.mark.parametrize("keepsake", [".git", "NOTES.md"])
def test_refuses_to_replace_a_clone_of_an_export(make_model_folder, tmp_path, keepsake):
    trained = make_model_folder("ct3d_bare")
    clone = export_model(trained, tmp_path / "clone")
    if keepsake == ".git":
        (clone / keepsake).mkdir()
    else:
        (clone / keepsake).write_text("by hand")
    with pytest.raises(FileExistsError, match=r"got .*clone, which is neither"):
        export_model(trained, clone)
    assert (clone / keepsake).exists()


def test_a_failed_export_leaves_nothing_behind(make_model_folder, tmp_path):
    trained = make_model_folder("ct3d_bare")
    (trained / "preprocessor_config.json").write_text("{broken")
    (tmp_path / "out.partial").mkdir()  # somebody else's
    (tmp_path / "place").mkdir()
    before = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(ValueError, match="Expecting property name"):
        export_model(trained, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == before
