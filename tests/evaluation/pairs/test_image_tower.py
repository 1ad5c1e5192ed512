"""A 3D image tower embeds as a dual tower does."""

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

from radtower.evaluation.pairs.embedded_pairs import embed_volumes, model_identity
from radtower.evaluation.pairs.image_tower import load_image_tower
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor


@pytest.fixture
def tower_folder(tiny_vision_config, tmp_path):
    folder = tmp_path / "tower"
    CT3DVisionModel(tiny_vision_config).eval().save_pretrained(folder)
    CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8)).save_pretrained(folder)
    return folder


def test_it_embeds_as_its_model_pools(tower_folder):
    tower = load_image_tower(tower_folder)
    pixels = torch.rand(2, 1, 8, 8, 8)
    volumes = embed_volumes(tower, pd.DataFrame({"volume_id": [0, 1]}), pixels.__getitem__, batch_size=1)
    with torch.no_grad():
        pooled = CT3DVisionModel.from_pretrained(tower_folder).eval()(pixels).pooler_output
    torch.testing.assert_close(volumes.images, pooled / pooled.norm(dim=1, keepdim=True))
    torch.testing.assert_close(tower.encode_image(pixels, normalize=False), pooled)
    assert volumes.similarity == "cosine"
    assert model_identity(tower) == ("tower", None)
    assert tower.processor.reads_volumes
    assert tower.processor.image_processor.size == (8, 8, 8)


def test_another_model_is_no_image_tower(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path / "dual")
    assert load_image_tower(tmp_path / "dual") is None


def test_a_tower_without_all_its_weights_is_refused(tower_folder):
    weights = load_file(tower_folder / "model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, tower_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"must find all its weights, got .+ without 1, such as"):
        load_image_tower(tower_folder)
