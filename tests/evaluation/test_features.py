import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from radtower.data.preprocessing.provenance import processor_hash
from radtower.evaluation.features import (
    Features,
    FeatureSource,
    embed_reports,
    embed_scans,
    read_features,
    require_same_space,
    write_features,
)
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

SPACING_MM = (3.0, 2.0, 2.0)
SOURCE = FeatureSource(
    kind="image", model_id="m", model_revision="abc", processor_hash="123", is_normalized=True
)


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
    assert (done, failures, features.ids) == ([1, 2], {}, [str(path) for path in scans])
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
    assert features.ids == [str(scans[1])]
    assert list(failures) == [str(missing)]
    assert "gone.nii.gz" in failures[str(missing)]
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


def _features(**source):
    return Features(torch.tensor([[0.6, 0.8], [1.0, 0.0]]), ["a", "b"], replace(SOURCE, **source))


def test_features_survive_the_files(tmp_path):
    folder = write_features(_features(), tmp_path / "deep" / "features")
    back = read_features(folder)
    assert torch.equal(back.vectors, _features().vectors)
    assert (back.ids, back.source) == (["a", "b"], SOURCE)
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["shape"] == [2, 2]
    assert manifest["processor_hash"] == "123"


def test_vectors_that_do_not_match_their_manifest_are_refused(tmp_path):
    folder = write_features(_features(), tmp_path)
    save_file({"features": torch.zeros(3, 2)}, folder / "features.safetensors")
    with pytest.raises(ValueError, match=r"manifest \[2, 2\] with 2 ids, got \[3, 2\]"):
        read_features(folder)


def test_half_a_write_cannot_be_read(tmp_path, monkeypatch):
    write_features(_features(), tmp_path)

    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr("radtower.evaluation.features.save_file", fail)
    with pytest.raises(OSError, match="disk full"):
        write_features(_features(), tmp_path)
    with pytest.raises(FileNotFoundError, match=r"manifest\.json"):
        read_features(tmp_path)


@pytest.mark.parametrize(
    ("name", "value"), [("model_id", "n"), ("model_revision", None), ("is_normalized", False)]
)
def test_vectors_of_another_model_are_refused(name, value):
    require_same_space(_features(), _features(kind="text", processor_hash=None))
    with pytest.raises(ValueError, match=f"share their {name}, got {getattr(SOURCE, name)!r} and {value!r}"):
        require_same_space(_features(), _features(kind="text", **{name: value}))


def test_scans_that_another_processor_prepared_are_refused():
    require_same_space(_features(), _features())
    with pytest.raises(ValueError, match="share their processor_hash, got '123' and '456'"):
        require_same_space(_features(), _features(processor_hash="456"))
