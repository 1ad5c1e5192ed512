"""A dual tower of 2D images, from a manifest to a folder that loads."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import (
    AutoModel,
    AutoProcessor,
    BertConfig,
    BertModel,
    ViTImageProcessorPil,
    ViTModel,
    pipeline,
)

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.clip.clip_run import ClipRun
from radtower.training.train_medclip import train_medclip

FRESH_VIT = {
    "model_type": "vit",
    "image_size": 16,
    "patch_size": 4,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
REPORTS = ["no nodule", "small nodule", "There is effusion", "no effusion", "no nodule", "nodule present"]


@pytest.fixture
def image_folder(tmp_path):
    """Six images of several kinds, one of which is damaged, and their manifest."""
    folder = tmp_path / "images"
    folder.mkdir()
    rng = np.random.default_rng(0)
    rows = []
    for number, report in enumerate(REPORTS):
        name = f"i{number}.{'jpg' if number == 1 else 'png'}"
        values = rng.integers(0, 256, (18, 22 + number), dtype=np.uint8)
        image = Image.fromarray(values.astype(np.uint16) * 100 if number == 2 else values)
        image.save(folder / name)
        rows.append((f"s{number}", f"p{number}", name, report, "train"))
    (folder / "i3.png").write_bytes(b"damaged")
    columns = ["study_id", "patient_id", "image_path", "report", "split"]
    pd.DataFrame(rows, columns=columns).to_csv(folder / "manifest.csv", index=False)
    return folder


@pytest.fixture
def run(image_folder, text_folder):
    return ClipRun(
        manifest=str(image_folder / "manifest.csv"),
        vision=FRESH_VIT,
        text=str(text_folder),
        vision_pooling="mean",
        projection_dim=12,
        max_length=40,
    )


def test_a_fresh_tower_learns_from_image_files_and_the_folder_loads(run, make_arguments, image_folder):
    notes = []
    still = train_medclip(run, make_arguments("still", learning_rate=0.0), on_note=notes.append)
    folder = train_medclip(run, make_arguments())
    assert notes[0] == "1 of 6 images are left out:"
    assert notes[1].startswith("  an image must be one of PNG")
    assert str(image_folder / "i3.png") in notes[1]
    assert len(notes) == 2
    model, processor = AutoModel.from_pretrained(folder).eval(), AutoProcessor.from_pretrained(folder)
    before = AutoModel.from_pretrained(still)
    assert isinstance(model, MedCLIPModel)
    assert (model.config.vision_config.model_type, model.config.vision_pooling) == ("vit", "mean")
    assert (processor.max_length, processor.image_processor.size["height"]) == (40, 16)
    moved = {
        name: not torch.equal(value, dict(before.named_parameters())[name])
        for name, value in model.named_parameters()
    }
    assert not any(is_moved for name, is_moved in moved.items() if name.startswith("text_model."))
    assert all(is_moved for name, is_moved in moved.items() if name.startswith("vision_model.encoder"))
    paths = [image_folder / "i0.png", image_folder / "i2.png"]
    opened = [Image.open(path) for path in paths]
    similarities = model.compute_similarities(paths, ["no nodule", "small nodule"])
    assert similarities.shape == (2, 2)
    torch.testing.assert_close(
        model.compute_similarities(opened, ["no nodule", "small nodule"]), similarities
    )
    assert similarities.abs().max() <= 1.0001
    assert not torch.allclose(similarities[0], similarities[1], atol=1e-3)
    classify = pipeline("zero-shot-image-classification", model=str(folder))
    found = classify(
        str(image_folder / "i0.png"), candidate_labels=["no nodule", "small nodule"], hypothesis_template="{}"
    )
    logits = model.logit_scale() * similarities[0]
    expected = dict(zip(["no nodule", "small nodule"], logits.softmax(-1).tolist(), strict=True))
    assert {item["label"]: item["score"] for item in found} == pytest.approx(expected, abs=1e-4)


def test_a_trained_tower_and_a_bert_are_joined(
    run, make_arguments, tmp_path, tiny_vit_config, tiny_tokenizer
):
    vision = ViTModel(tiny_vit_config)
    vision.save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size={"height": 16, "width": 16}, image_mean=[0.25] * 3).save_pretrained(
        tmp_path / "vit"
    )
    text = BertModel(
        BertConfig(
            vocab_size=len(tiny_tokenizer),
            hidden_size=24,
            intermediate_size=24,
            num_hidden_layers=1,
            num_attention_heads=2,
            initializer_range=0.3,
        )
    )
    text.save_pretrained(tmp_path / "bert")
    tiny_tokenizer.save_pretrained(tmp_path / "bert")
    joined = replace(run, vision=str(tmp_path / "vit"), text=str(tmp_path / "bert"), text_pooling="cls")
    folder = train_medclip(joined, make_arguments("still", learning_rate=0.0), on_note=lambda _note: None)
    model = AutoModel.from_pretrained(folder).eval()
    image = Image.new("RGB", (16, 16), (51, 0, 255))
    pixels = model.processor(images=image)["pixel_values"]
    assert pixels[0, :, 0, 0].tolist() == pytest.approx([-0.1, -0.5, 1.5])
    ids = torch.tensor([tiny_tokenizer("no nodule").input_ids])
    with torch.no_grad():
        states = vision.eval()(pixels).last_hidden_state.mean(dim=1)
        torch.testing.assert_close(model.image_features(pixels), states, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(
            model.text_features(ids), text.eval()(ids).last_hidden_state[:, 0], atol=1e-5, rtol=1e-4
        )
    found = pipeline("zero-shot-image-classification", model=str(folder))(
        image, candidate_labels=["no", "small"]
    )
    assert sum(item["score"] for item in found) == pytest.approx(1.0, abs=1e-4)


def test_an_llm_is_read_directly(run, make_arguments, tiny_llm_folder):
    llm = replace(
        run, text=str(tiny_llm_folder), llm_pooling="mean", num_llm_layers=1, hard_prompt="Describe"
    )
    folder = train_medclip(llm, make_arguments(), on_note=lambda _note: None)
    model = AutoModel.from_pretrained(folder)
    config = model.config.text_config
    assert (config.pooling, config.hard_prompt, len(model.text_model.model.layers)) == ("mean", "Describe", 1)


def test_a_soft_prompt_of_an_llm_learns_from_images(run, make_arguments, tiny_llm_folder):
    prompted = replace(
        run, text=str(tiny_llm_folder), llm_pooling="mean", soft_prompt="nodule", text_mode="soft_prompt"
    )
    before, after = (
        AutoModel.from_pretrained(
            train_medclip(prompted, make_arguments(name, learning_rate=rate), on_note=lambda _note: None)
        )
        for name, rate in (("still", 0.0), ("model", 0.01))
    )
    values = dict(before.text_model.named_parameters())
    moved = [n for n, p in after.text_model.named_parameters() if not torch.equal(p, values[n])]
    assert len(moved) == 1
    assert moved[0].startswith("soft_prompt.")


def test_a_resumed_run_equals_the_uninterrupted_one(run, make_arguments):
    settings = {"max_steps": 4, "save_strategy": "steps", "save_steps": 2, "lr_scheduler_type": "constant"}
    whole = train_medclip(run, make_arguments("whole", **settings), on_note=lambda _note: None)
    train_medclip(run, make_arguments("half", **settings | {"max_steps": 2}), on_note=lambda _note: None)
    resumed = train_medclip(
        run, make_arguments("half", **settings, resume_from_checkpoint=True), on_note=lambda _note: None
    )
    expected = load_file(whole / "model.safetensors")
    got = load_file(resumed / "model.safetensors")
    assert got.keys() == expected.keys()
    assert [name for name in expected if not torch.equal(got[name], expected[name])] == []


def test_refuses_to_train_without_a_usable_image(run, make_arguments, image_folder):
    for path in image_folder.glob("i*.*"):
        path.write_bytes(b"damaged")
    with pytest.raises(
        ValueError, match=r"at least one image must be usable, got 6 that are not\. The first"
    ):
        train_medclip(run, make_arguments())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision": FRESH_VIT}, r"unless vision is a dual encoder .* got {'model_type': 'vit'"),
        ({"cache": "cache"}, r"got {'cache': 'cache'}"),
        ({"should_reset_vision": True}, r"got {'should_reset_vision': True}"),
        ({"vision_pooling": "mean"}, r"got {'vision_pooling': 'mean'}"),
    ],
)
def test_the_projection_of_a_dual_encoder_needs_all_of_its_image_half(run, settings, message):
    whole = {"vision": "clip", "vision_pooling": "pooler", "should_keep_projection": True}
    assert replace(run, **whole).should_keep_projection
    with pytest.raises(ValueError, match=f"should_keep_projection must be false .*{message}"):
        replace(run, **whole | settings)


def test_updates_are_alone_only_where_there_are_any(run):
    assert replace(run, lora_only=True, text_mode="lora").lora_only
    with pytest.raises(ValueError, match=r"lora_only must be false .* got true with full and frozen"):
        replace(run, lora_only=True)


@pytest.mark.parametrize("other", [{"cache": "cache"}, {"should_reset_vision": True}])
def test_a_fresh_tower_is_for_2d_images_and_is_not_reset(run, other):
    name, value = next(iter(other.items()))
    with pytest.raises(ValueError, match=rf"vision must be a model folder .*{name}={value!r}"):
        replace(run, **other)
