"""Losses, similarities and projections that a dual tower can have, and towers of transformers."""

import math

import pytest
import torch
import torch.nn.functional as F
from transformers import (
    AutoModel,
    BertConfig,
    CLIPVisionConfig,
    ConvNextConfig,
    Dinov2Config,
    Qwen3Config,
    ResNetConfig,
    SiglipVisionConfig,
    ViTConfig,
)

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_pair_losses import matryoshka, sigmoid_loss, symmetric_info_nce
from radtower.modeling.modeling_pair_objective import PairObjective
from radtower.modeling.modeling_pair_relation import PairRelation

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
}
PATCHES = {**SMALL, "image_size": 8, "patch_size": 4}
IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 0], [12, 13, 0, 0]])
MASK = (IDS > 0).long()
PIXELS = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 0.0]])
KEYS = torch.tensor([[3], [4], [3]])


def _vision(config=None):
    torch.manual_seed(0)
    return AutoModel.from_config(config or ViTConfig(**PATCHES)).eval()


def _text(config=None):
    torch.manual_seed(1)
    return AutoModel.from_config(config or BertConfig(vocab_size=32, **SMALL)).eval()


def _model(**config):
    model = MedCLIPModel.from_towers(
        _vision(), _text(), **{"projection_dim": 6, "text_pooling": "cls", **config}
    )
    return model.eval()


def _inputs():
    return {"pixel_values": PIXELS, "input_ids": IDS, "attention_mask": MASK}


@torch.no_grad()
@pytest.mark.parametrize(
    ("config", "width"),
    [
        (ViTConfig(**PATCHES), 16),
        (CLIPVisionConfig(**PATCHES, projection_dim=8), 16),
        (SiglipVisionConfig(**PATCHES), 16),
        (
            Dinov2Config(
                hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=8, patch_size=4
            ),
            16,
        ),
        (ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"), 12),
    ],
)
@pytest.mark.parametrize(
    "text",
    [
        BertConfig(vocab_size=32, **SMALL),
        Qwen3Config(vocab_size=32, **SMALL, head_dim=8, num_key_value_heads=2),
    ],
)
def test_joins_towers_of_transformers_and_reloads_them(config, width, text, tmp_path):
    vision, text = _vision(config), _text(text)
    pooling = "last" if text.config.model_type == "qwen3" else "mean"
    model = MedCLIPModel.from_towers(vision, text, projection_dim=6, text_pooling=pooling).eval()
    assert model.visual_projection.weight.shape == (6, width)
    output = model(**_inputs())
    image = vision(PIXELS).pooler_output.flatten(1) @ model.visual_projection.weight.T
    torch.testing.assert_close(output.image_embeds, F.normalize(image, dim=-1), atol=1e-5, rtol=1e-5)
    for row in range(3):  # alone, without padding
        states = text(input_ids=IDS[row : row + 1, : 4 - row]).last_hidden_state[0]
        pooled = states[-1] if pooling == "last" else states.mean(dim=0)
        alone = F.normalize(pooled @ model.text_projection.weight.T, dim=-1)
        torch.testing.assert_close(output.text_embeds[row], alone, atol=1e-5, rtol=1e-5)
    model.save_pretrained(tmp_path)
    again = MedCLIPModel.from_pretrained(tmp_path).eval()(**_inputs())
    torch.testing.assert_close(again.logits_per_image, output.logits_per_image, atol=1e-5, rtol=0)


@torch.no_grad()
def test_the_pooling_of_the_images_is_configured_too():
    states = _vision()(PIXELS).last_hidden_state
    model = _model(vision_pooling="mean")
    torch.testing.assert_close(model.image_features(PIXELS), states.mean(dim=1))


@torch.no_grad()
@pytest.mark.parametrize("side", ["vision", "text"])
@pytest.mark.parametrize("kind", ["ln_linear", "slice", "identity"])
def test_projections(side, kind, tmp_path):
    size = 16 if kind == "identity" else 6
    model = _model(**{f"{side}_projection": kind, "projection_dim": size})
    if side == "vision":
        features, projected = model.image_features(PIXELS), model.get_image_features(PIXELS).pooler_output
    else:
        features = model.text_features(IDS, MASK)
        projected = model.get_text_features(IDS, MASK).pooler_output
    if kind == "ln_linear":
        layer = (model.visual_projection if side == "vision" else model.text_projection)[1]
        expected = F.layer_norm(features, (16,)) @ layer.weight.T + layer.bias
    else:
        expected = features[:, :size]
    torch.testing.assert_close(projected, expected, atol=1e-4, rtol=1e-4)
    model.save_pretrained(tmp_path)
    again = MedCLIPModel.from_pretrained(tmp_path).eval()(**_inputs()).logits_per_image
    torch.testing.assert_close(again, model(**_inputs()).logits_per_image, atol=1e-5, rtol=0)


@torch.no_grad()
def test_legacy_similarity_is_the_dot_product_without_scale(tmp_path):
    model = _model(similarity="legacy_dot")
    model.logit_scale.log_value.fill_(3.0)
    output = model(**_inputs())
    image, text = (
        model.get_image_features(PIXELS).pooler_output,
        model.get_text_features(IDS, MASK).pooler_output,
    )
    assert torch.equal(output.image_embeds, image)
    torch.testing.assert_close(output.logits_per_image, image @ text.T)
    torch.testing.assert_close(output.loss, symmetric_info_nce(image, text, 1.0))
    model.save_pretrained(tmp_path)
    reloaded = MedCLIPModel.from_pretrained(tmp_path)
    assert not any(parameter.requires_grad for parameter in reloaded.logit_scale.parameters())
    assert all(parameter.requires_grad for parameter in reloaded.vision_model.parameters())


@torch.no_grad()
def test_sigmoid_loss_has_a_bias_that_is_saved_and_stays_in_float32(tmp_path):
    model = _model(loss="siglip", logit_scale_init=math.log(10), logit_bias_init=-7)
    output = model(**_inputs())
    cosines = output.image_embeds @ output.text_embeds.T
    torch.testing.assert_close(output.logits_per_image, 10 * cosines - 7, atol=1e-4, rtol=1e-5)
    expected = sigmoid_loss(output.image_embeds, output.text_embeds, 10.0, -7.0)
    torch.testing.assert_close(output.loss, expected, atol=1e-4, rtol=1e-5)
    model.logit_bias.value.fill_(-1.2345678)
    model.save_pretrained(tmp_path)
    half = MedCLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.logit_bias.value, model.logit_bias.value)
    assert half.logit_bias.value.dtype == torch.float32


def test_the_bias_starts_where_it_is_configured_when_a_checkpoint_has_none(tmp_path):
    _model().save_pretrained(tmp_path)
    model = MedCLIPModel.from_pretrained(tmp_path, loss="siglip", logit_bias_init=-4)
    assert model.logit_bias.value.item() == -4


@torch.no_grad()
@pytest.mark.parametrize("loss", ["infonce", "siglip"])
def test_pairs_that_share_a_key_are_no_negatives(loss):
    model = _model(loss=loss)
    output = model(**_inputs(), pair_keys=KEYS)
    relation = PairRelation(own=torch.arange(3), row_keys=KEYS, column_keys=KEYS)
    sides = output.image_embeds, output.text_embeds
    scale = model.logit_scale()
    expected = (
        symmetric_info_nce(*sides, scale, relation)
        if loss == "infonce"
        else sigmoid_loss(*sides, scale, model.logit_bias(), relation)
    )
    torch.testing.assert_close(output.loss, expected)
    assert (output.loss - model(**_inputs()).loss).abs() > 1e-3


@torch.no_grad()
def test_soft_targets_go_by_the_labels_without_a_finding_head():
    model = _model(loss="soft_infonce", label_share=0.25)
    output = model(**_inputs(), labels=LABELS)
    relation = PairRelation(own=torch.arange(3), row_labels=LABELS, column_labels=LABELS, label_share=0.25)
    expected = symmetric_info_nce(output.image_embeds, output.text_embeds, model.logit_scale(), relation)
    torch.testing.assert_close(output.loss, expected)


@torch.no_grad()
def test_cuts_of_the_vectors_are_trained_together():
    model = _model(matryoshka_dims=[2, 6])
    output = model(**_inputs())
    expected = matryoshka(
        lambda a, b: symmetric_info_nce(a, b, model.logit_scale()),
        output.image_projection,
        output.text_projection,
        [2, 6],
    )
    torch.testing.assert_close(output.loss, expected)


def test_cuts_of_half_precision_are_compared_in_float32():
    objective = PairObjective(matryoshka_dims=[2, 6])
    half = torch.randn(2, 8, 6).to(torch.bfloat16)
    relation = PairRelation(own=torch.arange(8))
    found, expected = (
        objective(*sides, torch.tensor(50.0), None, relation) for sides in (half, half.float())
    )
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected)


@torch.no_grad()
def test_a_side_alone_and_stored_features_give_what_both_give():
    model = _model(findings=["nodule"])
    both = model(**_inputs())
    scans = model(pixel_values=PIXELS, return_loss=False)
    reports = model(input_ids=IDS, attention_mask=MASK, return_loss=False)
    assert (
        scans.text_embeds
        is scans.logits_per_image
        is scans.finding_logits_text
        is reports.image_embeds
        is None
    )
    torch.testing.assert_close(scans.image_embeds, both.image_embeds)
    torch.testing.assert_close(scans.finding_logits_image, both.finding_logits_image)
    torch.testing.assert_close(reports.text_embeds, both.text_embeds)
    bare = model(**_inputs(), return_logits=False)
    assert bare.logits_per_image is bare.logits_per_text is None
    torch.testing.assert_close(bare.loss, both.loss)
    stored = model(image_features=model.image_features(PIXELS), text_features=model.text_features(IDS, MASK))
    torch.testing.assert_close(stored.loss, both.loss)


def test_soft_targets_need_labels():
    with pytest.raises(ValueError, match=r"labels must be given where soft_infonce trains, got None"):
        _model(loss="soft_infonce").train()(**_inputs())


@torch.no_grad()
def test_soft_targets_need_no_labels_where_nothing_is_trained():
    model = _model(loss="soft_infonce")
    for rows in (1, 2, 3):
        inputs = _inputs() | {"pixel_values": PIXELS[:rows]}
        output = model(**inputs)
        assert output.loss is None
        expected = model.logit_scale() * model.encode_image(PIXELS[:rows]) @ output.text_embeds.T
        torch.testing.assert_close(output.logits_per_image, expected, atol=1e-4, rtol=1e-5)
    assert model(**_inputs(), labels=LABELS).loss.isfinite()


def test_refuses_neither_side():
    with pytest.raises(ValueError, match=r"got \[\] and \[\]\. Use return_loss=False for a single tower"):
        _model()(return_loss=False)


@torch.no_grad()
@pytest.mark.parametrize(
    "config",
    [
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic"),
        ConvNextConfig(num_stages=2, hidden_sizes=[8, 12], depths=[1, 1], patch_size=2),
        ViTConfig(**PATCHES),
    ],
)
def test_pixels_come_to_the_precision_of_the_tower(config, tmp_path):
    model = MedCLIPModel.from_towers(_vision(config), _text(), projection_dim=6, text_pooling="cls").eval()
    model.save_pretrained(tmp_path)
    half = MedCLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    expected = model.encode_image(PIXELS)
    torch.testing.assert_close(half.encode_image(PIXELS), expected, atol=0.05, rtol=0)
    torch.testing.assert_close(half(**_inputs()).image_embeds, expected, atol=0.05, rtol=0)
    assert half.image_features(PIXELS).dtype == torch.bfloat16


@torch.no_grad()
def test_prompt_and_head_stay_in_float32_and_reload_equal(tiny_medclip, tmp_path):
    text = tiny_medclip.text_model
    text.tokenizer = tiny_medclip.processor.tokenizer
    text.set_prompt("", "nodule effusion")
    tiny_medclip.save_pretrained(tmp_path / "whole")
    half = MedCLIPModel.from_pretrained(tmp_path / "whole", dtype=torch.bfloat16)
    kept = {name for name, value in half.named_parameters() if value.dtype == torch.float32}
    assert kept == {
        "logit_scale.log_value",
        "finding_head.weight",
        "finding_head.bias",
        "text_model.soft_prompt.weight",
    }
    batch = {"pixel_values": torch.randn(3, 1, 8, 8, 8), "input_ids": IDS, "attention_mask": MASK}
    with torch.enable_grad():
        output = half.train()(**batch, labels=LABELS)
        output.loss.backward()
    assert output.loss.isfinite()
    assert half.finding_head.weight.grad.abs().sum() > 0
    half.save_pretrained(tmp_path / "half")
    again = MedCLIPModel.from_pretrained(tmp_path / "half", dtype="auto")
    values = half.state_dict()
    assert all(
        value.dtype == values[name].dtype and torch.equal(value, values[name])
        for name, value in again.state_dict().items()
    )
