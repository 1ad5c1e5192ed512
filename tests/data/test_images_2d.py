import numpy as np
import pytest
import torch
from PIL import Image
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from radtower.data.datasets import StudyDataset
from radtower.data.images_2d import ImageFiles
from radtower.processing.processing_medclip import MedCLIPProcessor


@pytest.fixture
def processor(tiny_tokenizer) -> MedCLIPProcessor:
    return MedCLIPProcessor(ViTImageProcessorPil(size={"height": 4, "width": 6}), tiny_tokenizer)


def test_images_of_any_depth_become_pixel_values(processor, tmp_path):
    Image.new("RGB", (9, 5), (255, 0, 51)).save(tmp_path / "color.png")
    deep = np.full((5, 9), 4000, np.uint16)
    deep[:, 5:] = 8000
    Image.fromarray(deep).save(tmp_path / "deep.png")
    images = ImageFiles({"a": str(tmp_path / "color.png"), "b": str(tmp_path / "deep.png")}, processor)
    dataset = StudyDataset(["b", "a"], images)
    color, gray = dataset[1]["pixel_values"], dataset[0]["pixel_values"]
    assert (color.dtype, tuple(color.shape)) == (torch.float32, (3, 4, 6))
    for channel, value in enumerate((1.0, -1.0, -0.6)):
        torch.testing.assert_close(color[channel], torch.full((4, 6), value))
    assert gray[:, :, 0].unique().tolist() == [-1.0]
    assert gray[:, :, -1].unique().tolist() == [1.0]
    assert images.refused() == {}


def test_every_image_that_cannot_be_used_is_named_with_its_reason(processor, tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (40, 40), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "good.png")
    (tmp_path / "cut.png").write_bytes((tmp_path / "good.png").read_bytes()[:900])
    Image.fromarray(np.full((4, 4), 500, np.uint16)).save(tmp_path / "flat.png")
    (tmp_path / "text.png").write_text("no image")
    names = ["cut", "good", "flat", "none", "text"]
    refused = ImageFiles({n: str(tmp_path / f"{n}.png") for n in names}, processor).refused(num_threads=2)
    assert list(refused) == ["cut", "flat", "none", "text"]
    assert refused["cut"].startswith(f"an image must be whole, got {tmp_path / 'cut.png'}: ")
    assert refused["flat"].startswith(f"{tmp_path / 'flat.png'}: gray values of more than 8 bits must")
    assert refused["none"].startswith("an image must be a file, got none at ")
    assert "got another file at" in refused["text"]
