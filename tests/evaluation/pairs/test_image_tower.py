"""An image tower embeds as a dual tower does."""

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    BertConfig,
    CLIPConfig,
    ResNetConfig,
    ResNetModel,
    ViTForImageClassification,
    ViTImageProcessor,
    ViTModel,
)

from radtower.data.images_2d import ImageFiles
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


def save_2d(model, folder):
    model.eval().save_pretrained(folder)
    ViTImageProcessor(size={"height": 16, "width": 16}).save_pretrained(folder)
    return folder


def test_images_of_any_depth_are_embedded_by_a_2d_tower(tiny_vit_config, tmp_path):
    model = ViTModel(tiny_vit_config)
    tower = load_image_tower(save_2d(model, tmp_path / "vit"))
    deep = np.arange(64 * 64, dtype=np.uint16).reshape(64, 64) * 15
    Image.fromarray(deep).save(tmp_path / "deep.png")
    Image.fromarray((deep >> 8).astype(np.uint8)).save(tmp_path / "flat.png")
    files = ImageFiles({"a": str(tmp_path / "deep.png"), "b": str(tmp_path / "flat.png")}, tower.processor)
    pixels = torch.stack([files("a"), files("b")])
    assert pixels.shape == (2, 3, 16, 16)
    torch.testing.assert_close(pixels[0], pixels[1], atol=0.2, rtol=0)  # spread, and not clipped to white
    assert not tower.processor.reads_volumes
    with torch.no_grad():
        expected = model(pixels).pooler_output
    torch.testing.assert_close(tower.encode_image(pixels, normalize=False), expected)
    assert model_identity(tower) == ("vit", None)


def test_a_classifier_gives_its_first_token_and_no_random_pooler(tiny_vit_config, tmp_path):
    model = ViTForImageClassification(tiny_vit_config)
    tower = load_image_tower(save_2d(model, tmp_path / "classifier"))
    pixels = torch.rand(2, 3, 16, 16)
    with torch.no_grad():
        expected = model.vit(pixels).last_hidden_state[:, 0]
    torch.testing.assert_close(tower.encode_image(pixels, normalize=False), expected)


def test_maps_that_are_pooled_become_vectors(tmp_path):
    config = ResNetConfig(embedding_size=4, hidden_sizes=[4, 6], depths=[1, 1], num_channels=1)
    tower = load_image_tower(save_2d(ResNetModel(config), tmp_path / "resnet"))
    assert tower.encode_image(torch.rand(2, 1, 32, 32)).shape == (2, 6)
    assert tower.processor.num_channels == 1


def test_a_tower_of_transformers_that_reads_texts_too_is_no_image_tower(tmp_path):
    CLIPConfig().save_pretrained(tmp_path)
    assert load_image_tower(tmp_path) is None
    BertConfig().save_pretrained(tmp_path)
    assert load_image_tower(tmp_path) is None


def test_a_tower_without_all_its_weights_is_refused(tower_folder):
    weights = load_file(tower_folder / "model.safetensors")
    del weights[sorted(weights)[0]]
    save_file(weights, tower_folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"must find all its weights, got .+ without 1, such as"):
        load_image_tower(tower_folder)
