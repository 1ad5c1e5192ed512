import os
import subprocess
import sys

import numpy as np
import pytest
import SimpleITK as sitk
import torch
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
    AutoTokenizer,
)

import radtower
from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.configuration.configuration_medclip import MedCLIPConfig
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification, CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.registration import register

# Equal weights give outputs that differ in the last bits: a loaded file is aligned otherwise in memory.
LAST_BITS = {"atol": 1e-5, "rtol": 0}


@torch.no_grad()
def test_auto_classes_load_the_vision_family(tiny_vision_config, tmp_path):
    classifier = CT3DVisionForImageClassification(tiny_vision_config).eval()
    classifier.save_pretrained(tmp_path)
    CT3DImageProcessor(size=(8, 8, 8)).save_pretrained(tmp_path)
    volume = torch.randn(1, 1, 8, 8, 8)
    assert type(AutoConfig.from_pretrained(tmp_path)) is CT3DVisionConfig
    encoder = AutoModel.from_pretrained(tmp_path).eval()
    assert type(encoder) is CT3DVisionModel
    torch.testing.assert_close(
        encoder(volume).pooler_output, classifier.vision_model(volume).pooler_output, **LAST_BITS
    )
    reloaded = AutoModelForImageClassification.from_pretrained(tmp_path).eval()
    assert type(reloaded) is CT3DVisionForImageClassification
    torch.testing.assert_close(reloaded(volume).logits, classifier(volume).logits, **LAST_BITS)
    image_processor = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(image_processor) is CT3DImageProcessor
    assert image_processor.size == (8, 8, 8)


@torch.no_grad()
def test_auto_classes_load_the_text_family(tiny_text_config, tiny_tokenizer, tmp_path):
    encoder = LLMBiEncoder(tiny_text_config).eval()
    encoder.tokenizer = tiny_tokenizer
    encoder.save_pretrained(tmp_path / "encoder")
    assert type(AutoConfig.from_pretrained(tmp_path / "encoder")) is LLMBiEncoderConfig
    reloaded = AutoModel.from_pretrained(tmp_path / "encoder").eval()
    assert type(reloaded) is LLMBiEncoder
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "encoder")
    assert tokenizer("There is no.").input_ids == tiny_tokenizer("There is no.").input_ids
    inputs = tokenizer(["no", "There is no."], padding=True, return_tensors="pt")
    torch.testing.assert_close(reloaded(**inputs).pooler_output, encoder(**inputs).pooler_output, **LAST_BITS)

    classifier = LLMBiEncoderForSequenceClassification(tiny_text_config).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    again = AutoModelForSequenceClassification.from_pretrained(tmp_path / "classifier").eval()
    assert type(again) is LLMBiEncoderForSequenceClassification
    torch.testing.assert_close(again(**inputs).logits, classifier(**inputs).logits, **LAST_BITS)


@torch.no_grad()
@pytest.mark.parametrize("auto_class", [AutoModel, AutoModelForZeroShotImageClassification])
def test_auto_classes_load_the_dual_tower(tiny_medclip, tmp_path, auto_class):
    tiny_medclip.save_pretrained(tmp_path)
    tiny_medclip.processor.save_pretrained(tmp_path)
    assert type(AutoConfig.from_pretrained(tmp_path)) is MedCLIPConfig
    model = auto_class.from_pretrained(tmp_path).eval()
    assert type(model) is MedCLIPModel
    processor = AutoProcessor.from_pretrained(tmp_path)
    assert type(processor) is MedCLIPProcessor
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is CT3DImageProcessor
    inputs = processor(torch.full((8, 8, 8), -300.0), "no nodule", spacings_mm=(3.0, 3.0, 3.0))
    torch.testing.assert_close(
        model(**inputs).logits_per_image, tiny_medclip(**inputs).logits_per_image, **LAST_BITS
    )


def test_registering_twice_changes_nothing(tiny_vision_config):
    register()
    assert type(AutoModel.from_config(tiny_vision_config)) is CT3DVisionModel


def test_the_image_processor_of_the_package_reads_files(tmp_path):
    hu = np.full((4, 6, 5), -100, dtype=np.int16)
    hu[0] = -1000
    image = sitk.GetImageFromArray(hu)
    image.SetSpacing((1.5, 1.5, 3.0))
    sitk.WriteImage(image, str(tmp_path / "scan.nii.gz"))
    processor = CT3DImageProcessor(spacing_mm=(3.0, 1.5, 1.5), size=(4, 6, 5), windows_hu=[(-1000, 200)])
    pixel_values = processor(str(tmp_path / "scan.nii.gz"))["pixel_values"]
    expected = torch.full((1, 1, 4, 6, 5), 0.5)
    expected[:, :, 0] = -1.0
    torch.testing.assert_close(pixel_values, expected)


def test_the_package_offers_its_classes_at_the_top():
    assert radtower.MedCLIPModel is MedCLIPModel
    assert {name for name in dir(radtower) if name[0].isupper()} == {
        "CT3DImageProcessor",
        "CT3DVisionConfig",
        "CT3DVisionForImageClassification",
        "CT3DVisionModel",
        "LLMBiEncoder",
        "LLMBiEncoderConfig",
        "LLMBiEncoderForMaskedNTP",
        "LLMBiEncoderForSequenceClassification",
        "MedCLIPConfig",
        "MedCLIPModel",
        "MedCLIPProcessor",
        "Volume",
    }
    assert not {"os", "environ"} & set(dir(radtower))
    assert radtower.read_volume.__module__ == "radtower.processing.volume_io"


def test_the_command_line_can_put_off_importing_pytorch():
    env = os.environ | {"RADTOWER_DEFER_MODELS": "1"}
    code = "import sys, radtower; print(radtower.__version__, 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=env, check=True)
    assert done.stdout.split() == [radtower.__version__, "False"]
