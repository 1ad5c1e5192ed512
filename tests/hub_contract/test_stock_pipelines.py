"""Pipelines of transformers give what the models of texts, and of pictures, give."""

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageClassification, pipeline
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from hub_contract.stock_models import FINDINGS, build, build_processor, build_tokenizer, picture_config
from radtower import MedCLIPModel

TEXTS = ["small nodule", "there is no effusion"]


def _saved(model, folder):
    model.save_pretrained(folder)
    build_tokenizer().save_pretrained(folder)
    return str(folder)


@torch.no_grad()
def test_feature_extraction_gives_the_states_of_the_tokens_of_an_encoder(tmp_path):
    encoder = build("text").encoder.eval()
    extract = pipeline("feature-extraction", model=_saved(encoder, tmp_path), device="cpu")
    found = extract(TEXTS, return_tensors=True)
    for text, states in zip(TEXTS, found, strict=True):
        expected = encoder(**build_tokenizer()(text, return_tensors="pt")).last_hidden_state
        assert states.shape == (1, len(text.split()), 16)
        torch.testing.assert_close(states, expected)


@torch.no_grad()
def test_text_classification_gives_a_probability_per_finding_that_excludes_no_other(tmp_path):
    model = build("text").eval()
    model.config.problem_type = "multi_label_classification"  # as training writes it
    classify = pipeline("text-classification", model=_saved(model, tmp_path), device="cpu")
    for text, found in zip(TEXTS, classify(TEXTS, top_k=None), strict=True):
        logits = model(**build_tokenizer()(text, return_tensors="pt")).logits[0]
        expected = dict(zip(FINDINGS.values(), logits.sigmoid().tolist(), strict=True))
        assert {one["label"]: one["score"] for one in found} == pytest.approx(expected, abs=1e-6)
        assert sum(expected.values()) != pytest.approx(1.0, abs=1e-3)


@torch.no_grad()
def test_text_classification_gives_logits_from_which_calibrated_probabilities_follow(tmp_path):
    model = build("text").eval()
    model.config.label_temperature = 2.5
    folder = _saved(model, tmp_path)
    classify = pipeline(
        "text-classification", model=folder, device="cpu", top_k=None, function_to_apply="none"
    )
    for text, found in zip(TEXTS, classify(TEXTS), strict=True):
        logits = model(**build_tokenizer()(text, return_tensors="pt")).logits[0]
        expected = dict(zip(FINDINGS.values(), (logits / 2.5).sigmoid().tolist(), strict=True))
        scores = {one["label"]: torch.tensor(one["score"] / 2.5).sigmoid().item() for one in found}
        assert scores == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("task", "instead"),
    [
        ("image-classification", r"model\(\*\*processor\(scan\)\)\.logits\.sigmoid"),
        ("image-feature-extraction", r".*pooler_output"),
    ],
)
def test_pipelines_of_pictures_refuse_a_tower_of_scans_and_say_what_to_use(task, instead, tmp_path):
    build("image").save_pretrained(tmp_path)
    build_processor("image").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=rf"one of scans, got '{task}', .* Use {instead}"):
        pipeline(task, model=str(tmp_path), device="cpu")


def test_the_zero_shot_pipeline_of_pictures_names_that_of_scans(tmp_path):
    build("pair").save_pretrained(tmp_path)
    build_processor("pair").save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"one of scans, .* Use pipeline\(\"zero-shot-ct-classification\"\)"):
        pipeline("zero-shot-image-classification", model=str(tmp_path), device="cpu")


@torch.no_grad()
def test_the_2d_tower_of_a_dual_tower_classifies_images_as_a_model_of_transformers(tmp_path):
    config = picture_config()
    config.vision_config.num_channels = 3  # pipelines of pictures hand over color
    tower = MedCLIPModel(config).eval().vision_model
    processor = ViTImageProcessorPil(size={"height": 8, "width": 8})
    for folder in (tmp_path / "tower", tmp_path / "classifier"):
        processor.save_pretrained(folder)
    tower.save_pretrained(tmp_path / "tower")
    image = Image.fromarray(torch.arange(192, dtype=torch.uint8).reshape(8, 8, 3).numpy())
    pixels = processor(image, return_tensors="pt")
    extract = pipeline("image-feature-extraction", model=str(tmp_path / "tower"), device="cpu")
    states = tower(**pixels).last_hidden_state
    torch.testing.assert_close(extract(image, return_tensors=True), states)

    classifier = AutoModelForImageClassification.from_pretrained(
        tmp_path / "tower", id2label=FINDINGS, problem_type="multi_label_classification"
    ).eval()
    classifier.save_pretrained(tmp_path / "classifier")
    classify = pipeline("image-classification", model=str(tmp_path / "classifier"), device="cpu")
    scores = (states[:, 0] @ classifier.classifier.weight.T + classifier.classifier.bias).sigmoid()[0]
    found = {one["label"]: one["score"] for one in classify(image)}
    assert found == pytest.approx(dict(zip(FINDINGS.values(), scores.tolist(), strict=True)), abs=1e-6)
