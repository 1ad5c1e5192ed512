"""The dual tower on 2D images: what it reads, and the pipeline of transformers."""

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoModel, AutoProcessor, pipeline

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.processing_medclip import MedCLIPProcessor

DEEP = np.random.default_rng(0).integers(300, 5000, (20, 24)).astype(np.uint16)


def _spread(values):
    values = values.astype(np.float64)
    return ((values - values.min()) / (values.max() - values.min()) * 255 + 0.5).astype(np.uint8)


@pytest.fixture
def deep_png(tmp_path):
    Image.fromarray(DEEP).save(tmp_path / "deep.png")
    return tmp_path / "deep.png"


def test_paths_pillow_images_and_arrays_give_the_same_vector(tiny_image_clip, deep_png):
    model = tiny_image_clip
    gray = _spread(DEEP)
    # What the tower must see: 8 bits, three equal channels, [-1, 1].
    small = np.array(Image.fromarray(gray).resize((16, 16), Image.Resampling.BILINEAR))
    pixels = torch.from_numpy(small / 127.5 - 1).float().expand(1, 3, 16, 16)
    expected = model.encode_image(pixels)
    assert expected.shape == (1, 12)
    for images in (deep_png, str(deep_png), [Image.open(deep_png)], DEEP, [gray], Image.fromarray(gray)):
        torch.testing.assert_close(model.encode_image(images), expected, atol=1e-5, rtol=1e-4)
    several = model.encode_image([deep_png, 255 - gray])
    torch.testing.assert_close(several[:1], expected, atol=1e-5, rtol=1e-4)
    assert not torch.allclose(several[1], several[0], atol=1e-2)
    batch = np.stack([gray, 255 - gray])[..., None].repeat(3, axis=-1)
    torch.testing.assert_close(model.encode_image(batch), several, atol=1e-5, rtol=1e-4)


def test_a_saved_folder_loads_with_its_image_processor(tiny_image_clip, deep_png, tmp_path):
    tiny_image_clip.save_pretrained(tmp_path / "model")
    model = AutoModel.from_pretrained(tmp_path / "model").eval()
    processor = AutoProcessor.from_pretrained(tmp_path / "model")
    assert isinstance(model, MedCLIPModel)
    assert isinstance(processor, MedCLIPProcessor)
    inputs = processor(images=[deep_png], text=["no nodule", "There is effusion"])
    assert inputs["pixel_values"].shape == (1, 3, 16, 16)
    texts = ["no nodule", "There is effusion"]
    similarities = model.compute_similarities(deep_png, texts)
    torch.testing.assert_close(similarities, tiny_image_clip.compute_similarities(deep_png, texts))
    with torch.no_grad():
        output = model(**inputs)
    assert output.loss is None  # two candidates for one image are no pairs
    scale = model.logit_scale()
    torch.testing.assert_close(output.logits_per_image, scale * similarities, atol=1e-4, rtol=1e-4)


def test_a_tower_of_one_channel_gets_gray_images(tiny_image_clip):
    processor = tiny_image_clip.processor
    processor.image_processor.image_mean = [0.5]
    processor.image_processor.image_std = [0.25]
    pixels = processor(images=Image.new("RGB", (5, 7), (255, 0, 0)))["pixel_values"]
    torch.testing.assert_close(pixels, torch.full((1, 1, 16, 16), (76 / 255 - 0.5) / 0.25))


def test_a_path_needs_the_package(tiny_image_clip, monkeypatch):
    monkeypatch.setattr(MedCLIPProcessor, "image_reader", None)
    with pytest.raises(TypeError, match=r"where radtower is not installed, got the path a\.png"):
        tiny_image_clip.encode_image("a.png")


def test_the_zero_shot_pipeline_ranks_as_the_model_does(tiny_image_clip, tmp_path):
    Image.fromarray(_spread(DEEP)).save(tmp_path / "scan.png")
    tiny_image_clip.save_pretrained(tmp_path / "model")
    classify = pipeline("zero-shot-image-classification", model=str(tmp_path / "model"))
    labels = ["nodule", "effusion", "small effusion present"]
    for images in (str(tmp_path / "scan.png"), Image.open(tmp_path / "scan.png")):
        found = classify(images, candidate_labels=labels, hypothesis_template="There is {}")
        texts = [f"There is {label}" for label in labels]
        logits = tiny_image_clip.logit_scale() * tiny_image_clip.compute_similarities(
            tmp_path / "scan.png", texts
        )
        expected = dict(zip(labels, logits.softmax(-1)[0].tolist(), strict=True))
        assert {item["label"]: item["score"] for item in found} == pytest.approx(expected, abs=1e-4)
    assert max(expected.values()) - min(expected.values()) > 0.01
