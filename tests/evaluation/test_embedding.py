"""Scans and reports become the vectors of the model."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file

from radtower.data.manifest import Manifest, read_manifest
from radtower.data.preprocessing.provenance import processor_hash
from radtower.evaluation.embedding import embed_manifest, embed_reports, embed_scans, scan_ids
from radtower.evaluation.model_hash import model_hash
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

SPACING_MM = (3.0, 2.0, 2.0)


@pytest.fixture
def scans(tmp_path):
    paths = []
    for seed in range(2):
        array = np.random.default_rng(seed).integers(-1000, 600, (8, 12, 12)).astype(np.int16)
        volume = Volume(array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("t", "n"))
        write_volume(volume, tmp_path / f"{seed}.nii.gz")
        paths.append(tmp_path / f"{seed}.nii.gz")
    return paths


@pytest.fixture
def dual_tower(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path / "dual")
    tiny_medclip.processor.save_pretrained(tmp_path / "dual")
    return tmp_path / "dual"


@pytest.fixture
def image_tower(tiny_vision_config, tmp_path):
    CT3DVisionModel(tiny_vision_config).save_pretrained(tmp_path / "image")
    CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8)).save_pretrained(tmp_path / "image")
    return tmp_path / "image"


@pytest.fixture
def text_tower(tiny_llm_folder, tmp_path):
    LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", max_length=64).save_pretrained(tmp_path / "text")
    return tmp_path / "text"


def test_scans_become_the_unit_vectors_of_the_model(dual_tower, image_tower, scans):
    done = []
    features, failures = embed_scans(dual_tower, scans, done.append)
    assert (done, failures, features.ids) == ([1, 2], {}, [path.name for path in scans])
    model = MedCLIPModel.from_pretrained(dual_tower).eval()
    torch.testing.assert_close(features.vectors, model.encode_image([str(path) for path in scans]))
    assert features.source.model_id == "dual"
    assert features.source.processor_hash == processor_hash(model.processor.image_processor)
    alone, _ = embed_scans(image_tower, scans)
    encoder, processor = (
        CT3DVisionModel.from_pretrained(image_tower).eval(),
        CT3DImageProcessor.from_pretrained,
    )
    pixels = processor(image_tower)(scans)["pixel_values"]
    torch.testing.assert_close(alone.vectors, F.normalize(encoder(pixels).pooler_output, dim=-1).detach())
    assert alone.vectors.shape == (2, 16)
    torch.testing.assert_close(alone.vectors.norm(dim=-1), torch.ones(2))


def test_a_scan_that_cannot_be_read_costs_no_other(image_tower, scans, tmp_path):
    missing = tmp_path / "gone.nii.gz"
    features, failures = embed_scans(image_tower, [missing, scans[1]])
    assert features.ids == [scans[1].name]
    assert list(failures) == ["gone.nii.gz"]
    assert failures["gone.nii.gz"].startswith("path must exist, got gone.nii.gz. ")
    whole, _ = embed_scans(image_tower, scans)
    torch.testing.assert_close(features.vectors[0], whole.vectors[1])


def test_refuses_scans_that_all_fail(image_tower, tmp_path):
    with pytest.raises(ValueError, match=r"got 1 failures\. The first says: .*gone\.nii\.gz"):
        embed_scans(image_tower, [tmp_path / "gone.nii.gz"])
    with pytest.raises(ValueError, match=r"got 0 failures.*there were no scans"):
        embed_scans(image_tower, [])


def test_reports_become_unit_vectors_and_are_normalized_as_for_training(dual_tower, text_tower):
    pairs = [("a", "There is no   nodule"), ("b", "effusion\n present")]
    clean = ["There is no nodule", "effusion present"]
    features, failures = embed_reports(dual_tower, pairs)
    assert failures == {}
    assert features.ids == ["a", "b"]
    assert (features.source.kind, features.source.processor_hash) == ("text", None)
    torch.testing.assert_close(features.vectors, MedCLIPModel.from_pretrained(dual_tower).encode_text(clean))
    alone, _ = embed_reports(text_tower, pairs)
    expected = LLMBiEncoder.from_pretrained(text_tower).encode(clean)
    torch.testing.assert_close(alone.vectors, expected / expected.norm(dim=-1, keepdim=True))


@pytest.mark.parametrize("tower", ["dual_tower", "text_tower"])
def test_an_empty_report_costs_no_other(request, tower):
    folder = request.getfixturevalue(tower)
    features, failures = embed_reports(folder, [("a", "nodule"), ("b", " \n "), ("c", "no"), ("d", "")])
    assert features.ids == ["a", "c"]
    assert failures == {"b": "the report is empty", "d": "the report is empty"}
    whole, _ = embed_reports(folder, [("a", "nodule"), ("c", "no")])
    torch.testing.assert_close(features.vectors, whole.vectors)
    with pytest.raises(ValueError, match="at least one report must hold text, got 2 empty ones"):
        embed_reports(folder, [("a", ""), ("b", " ")])


def test_refuses_a_model_without_the_tower(image_tower, text_tower, scans):
    with pytest.raises(TypeError, match="must have an image tower, got LLMBiEncoder"):
        embed_scans(text_tower, scans)
    with pytest.raises(TypeError, match="must have an text tower, got CT3DVisionModel"):
        embed_reports(image_tower, [("a", "no nodule")])


@pytest.fixture
def manifest(scans, tmp_path):
    rows = {
        "study_id": ["s0", "s1", "s2"],
        "patient_id": ["p0", "p1", "p2"],
        "image_path": [scans[1].name, "gone.nii.gz", scans[0].name],
        "report": "no nodule",
        "split": ["test", "test", "train"],
    }
    pd.DataFrame(rows).to_csv(tmp_path / "manifest.csv", index=False)
    return read_manifest(tmp_path / "manifest.csv")


@pytest.mark.parametrize("tower", ["dual_tower", "image_tower"])
def test_scans_of_a_manifest_have_its_ids(request, tower, manifest, scans):
    folder = request.getfixturevalue(tower)
    features, failures = embed_manifest(folder, manifest)
    by_path, _ = embed_scans(folder, [scans[1], scans[0]])
    assert features.ids == ["s0", "s2"]
    assert list(failures) == ["s1"]
    assert failures["s1"].startswith("path must exist, got gone.nii.gz. ")
    torch.testing.assert_close(features.vectors, by_path.vectors)
    assert features.source == by_path.source


def test_reasons_name_files_without_the_folders_of_the_machine(image_tower, scans, monkeypatch):
    def damaged(_, scans, *args, **kwargs):  # a file that makes its decoder raise what it likes
        raise KeyError(f"{scans} is odd")

    monkeypatch.setattr(CT3DImageProcessor, "preprocess", damaged)
    with pytest.raises(ValueError, match=r"The first says: KeyError: '0\.nii\.gz is odd'"):
        embed_scans(image_tower, scans[:1])
    monkeypatch.undo()
    frame = pd.DataFrame({"volume_id": ["v"], "image_path": ["far/gone.nii.gz"]})
    with pytest.raises(ValueError, match=r"path must exist, got far/gone\.nii\.gz\. "):
        embed_manifest(image_tower, Manifest(frame))


def test_ids_are_paths_below_the_folder_that_holds_all(tmp_path):
    one, two = tmp_path / "a" / "x.nii.gz", tmp_path / "b" / "c" / "x.nii.gz"
    assert scan_ids([one, two]) == {"a/x.nii.gz": one, "b/c/x.nii.gz": two}
    assert scan_ids([str(two)]) == {"x.nii.gz": two}
    assert scan_ids([tmp_path / "a", tmp_path / "a" / "x"]) == {
        "a": tmp_path / "a",
        "a/x": one.with_name("x"),
    }
    assert scan_ids([Path("x.nii.gz")]) == {"x.nii.gz": Path.cwd() / "x.nii.gz"}


def test_a_scan_that_comes_twice_is_refused(scans, tmp_path):
    (tmp_path / "link").symlink_to(scans[0])
    for again in (scans[0], tmp_path / "deep" / ".." / scans[0].name, tmp_path / "link"):
        with pytest.raises(ValueError, match="scans must differ, got 1 that come twice"):
            embed_scans("never loaded", [*scans, again])


def test_vectors_are_as_the_model_compares_them(tiny_medclip, scans, tmp_path):
    tiny_medclip.config.similarity = "legacy_dot"
    tiny_medclip.save_pretrained(tmp_path / "dot")
    images, _ = embed_scans(tmp_path / "dot", scans)
    texts, _ = embed_reports(tmp_path / "dot", [("a", "no nodule")])
    paths = [str(path) for path in scans]
    torch.testing.assert_close(images.vectors, tiny_medclip.encode_image(paths, normalize=False))
    torch.testing.assert_close(texts.vectors, tiny_medclip.encode_text(["no nodule"], normalize=False))
    assert not (images.vectors.norm(dim=1) - 1).abs().lt(0.01).any()
    assert (images.source.is_normalized, texts.source.is_normalized) == (False, False)


def test_the_source_tells_models_of_one_name_apart(tiny_medclip, scans, tmp_path):
    hashes = []
    for place in ("one", "two"):
        tiny_medclip.save_pretrained(tmp_path / place / "dual")
        hashes.append(embed_scans(tmp_path / place / "dual", scans)[0].source)
        assert hashes[-1].model_hash == model_hash(MedCLIPModel.from_pretrained(tmp_path / place / "dual"))
        torch.nn.init.normal_(tiny_medclip.text_projection.weight)
    assert hashes[0].model_id == hashes[1].model_id == "dual"
    assert hashes[0].model_hash != hashes[1].model_hash


def test_vectors_that_depend_on_their_batch_are_made_alone_and_not_for_storing(tiny_medclip, tmp_path):
    tower = tiny_medclip
    tower.text_model.tokenizer = tower.processor.tokenizer
    tower.text_model.set_prompt("Describe", "small nodule")
    tower.text_model.config.prompt_padding = "legacy_middle"
    tower.save_pretrained(tmp_path / "legacy")
    pairs = [("a", "no nodule"), ("b", "There is a small effusion in the left")]
    features, _ = embed_reports(tmp_path / "legacy", pairs)
    assert features.source.depends_on_batch
    alone = torch.cat([tower.encode_text([text]) for _, text in pairs])
    torch.testing.assert_close(features.vectors, alone)
    with pytest.raises(ValueError, match="must not depend on their batch, got those of legacy with"):
        embed_reports(tmp_path / "legacy", pairs, is_stored=True)


def test_a_model_without_all_its_weights_is_refused(dual_tower, scans):
    weights = load_file(dual_tower / "model.safetensors")
    name = next(name for name in weights if "text_projection" in name)
    save_file(
        {n: t for n, t in weights.items() if n != name}, dual_tower / "model.safetensors", {"format": "pt"}
    )
    with pytest.raises(
        ValueError, match=r"must find all its weights, got .*dual without 1, such as text_proj"
    ):
        embed_scans(dual_tower, scans)
