import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from transformers import BertConfig, BertModel, ViTConfig, ViTModel

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.configuration.configuration_medclip import MedCLIPConfig
from radtower.modeling.losses import masked_binary_cross_entropy
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_pair_losses import symmetric_info_nce
from radtower.modeling.modeling_zero_shot import ENSEMBLE
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor

REPORTS = ["There is no effusion.", "small nodule", "There is a small effusion. There is no nodule.", "no"]
LABELS = torch.tensor([[0.0, -100.0], [0.0, 1.0], [1.0, 0.0], [-100.0, 0.0]])

# Equal weights give outputs that differ in the last bits: a loaded file is aligned otherwise in memory.
LAST_BITS = {"atol": 1e-5, "rtol": 0}


@pytest.fixture
def model(tiny_medclip) -> MedCLIPModel:
    torch.nn.init.normal_(tiny_medclip.finding_head.weight)
    return tiny_medclip


@pytest.fixture
def batch(model) -> dict[str, torch.Tensor]:
    return {"pixel_values": torch.randn(4, 1, 8, 8, 8), **model.processor(text=REPORTS)}


@pytest.fixture
def foreign_towers() -> tuple[ViTModel, BertModel]:
    """Towers of transformers, of two widths."""
    vision = ViTConfig(
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        image_size=8,
        patch_size=4,
    )
    text = BertConfig(
        vocab_size=309, hidden_size=20, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2
    )
    return ViTModel(vision).eval(), BertModel(text).eval()


@torch.no_grad()
def test_shapes(model, batch):
    output = model(**batch)
    assert output.logits_per_image.shape == (4, 4)
    assert output.image_embeds.shape == output.text_embeds.shape == (4, 12)
    assert output.finding_logits_image.shape == output.finding_logits_text.shape == (4, 2)
    assert model.encode_image(batch["pixel_values"]).shape == (4, 12)
    assert model.encode_text("no").shape == (1, 12)


def test_new_projections_do_not_begin_like_the_language_model(tiny_vision_config, tiny_text_config):
    assert tiny_text_config.text_config.initializer_range == 0.2
    torch.manual_seed(0)
    config = MedCLIPConfig(
        vision_config=tiny_vision_config, text_config=tiny_text_config, projection_dim=96, findings=["a", "b"]
    )
    model = MedCLIPModel(config)
    for layer in (model.visual_projection, model.text_projection, model.finding_head):
        assert layer.weight.std().item() == pytest.approx(0.02, rel=0.15)
    assert not model.finding_head.bias.any()


@torch.no_grad()
def test_logits_are_scaled_cosines_of_the_projected_towers(model, batch):
    model.logit_scale.log_value.fill_(math.log(7.0))
    image = model.vision_model(batch["pixel_values"]).pooler_output @ model.visual_projection.weight.T
    text = model.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output
    text = text @ model.text_projection.weight.T
    output = model(**batch)
    expected = 7.0 * torch.cosine_similarity(image[:, None], text[None], dim=-1)
    torch.testing.assert_close(output.logits_per_image, expected, atol=1e-5, rtol=1e-5)
    assert torch.equal(output.logits_per_text, output.logits_per_image.T)
    torch.testing.assert_close(output.image_embeds, image / image.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(output.text_embeds, text / text.norm(dim=-1, keepdim=True))


@torch.no_grad()
def test_the_finding_head_reads_both_projected_vectors(model, batch):
    output = model(**batch)
    head = model.finding_head
    image = model.get_image_features(batch["pixel_values"]).pooler_output
    text = model.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    torch.testing.assert_close(output.finding_logits_image, image @ head.weight.T + head.bias)
    torch.testing.assert_close(output.finding_logits_text, text @ head.weight.T + head.bias)


@torch.no_grad()
def test_the_loss_is_info_nce_plus_half_of_each_finding_loss(model, batch):
    output = model(**batch, labels=LABELS)
    scale = torch.tensor(math.exp(2.6592))
    contrast = symmetric_info_nce(output.image_embeds, output.text_embeds, scale)
    known = LABELS != -100
    finding_losses = [
        F.softplus(torch.where(LABELS[known] == 1, -logits[known], logits[known])).mean()
        for logits in (output.finding_logits_image, output.finding_logits_text)
    ]
    expected = contrast + 0.5 * (finding_losses[0] + finding_losses[1])
    torch.testing.assert_close(output.loss, expected)
    torch.testing.assert_close(model(**batch).loss, contrast)
    assert abs(finding_losses[0] - finding_losses[1]) > 1e-3


@torch.no_grad()
def test_returns_no_loss_when_told_so(model, batch):
    assert model(**batch, return_loss=False).loss is None
    assert model(**batch, labels=LABELS, return_loss=False).loss is None


@torch.no_grad()
def test_without_findings_there_is_no_head(model, batch):
    config = MedCLIPConfig(
        vision_config=model.config.vision_config, text_config=model.config.text_config, projection_dim=12
    )
    headless = MedCLIPModel(config).eval()
    output = headless(**batch)
    assert headless.finding_head is None
    assert output.finding_logits_image is None
    assert output.finding_logits_text is None
    with pytest.raises(ValueError, match=r"got labels \(4, 2\) and no findings"):
        headless(**batch, labels=LABELS)


@torch.no_grad()
def test_stored_text_features_give_what_the_token_ids_give(model, batch):
    stored = model.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output
    expected = model(**batch, labels=LABELS)
    output = model(pixel_values=batch["pixel_values"], text_features=stored, labels=LABELS)
    assert torch.equal(output.logits_per_image, expected.logits_per_image)
    assert torch.equal(output.loss, expected.loss)


@torch.no_grad()
def test_the_embed_mask_reaches_the_text_tower(model, batch):
    embed_mask = torch.zeros_like(batch["attention_mask"])
    embed_mask[:, -1] = 1
    tower = model.text_model(batch["input_ids"], batch["attention_mask"], embed_mask).pooler_output
    expected = F.normalize(tower @ model.text_projection.weight.T, dim=-1)
    torch.testing.assert_close(model(**batch, embed_mask=embed_mask).text_embeds, expected)
    assert (model(**batch).text_embeds - expected).abs().max() > 1e-2


@pytest.mark.parametrize(
    ("left_out", "added", "message"),
    [
        ("pixel_values", None, r"got \[\] and \['input_ids'\]\. Use return_loss=False"),
        ("input_ids", None, r"got \['pixel_values'\] and \[\]\. Use return_loss=False"),
        (None, "text_features", r"got \['pixel_values'\] and \['input_ids', 'text_features'\]\."),
        (None, "image_features", r"got \['pixel_values', 'image_features'\] and \['input_ids'\]\."),
    ],
)
def test_refuses_all_but_one_scan_and_one_text_input(model, batch, left_out, added, message):
    batch.pop(left_out, None)
    if added:
        batch[added] = torch.randn(4, 32)
    with pytest.raises(ValueError, match=message):
        model(**batch)


def test_refuses_the_uncertain_label_of_chexpert(model, batch):
    with pytest.raises(ValueError, match=r"in \[0, 1\] or -100, got \[-1.0\]"):
        model(**batch, labels=torch.full((4, 2), -1.0))


def test_refuses_another_number_of_texts_than_scans(model, batch):
    with pytest.raises(ValueError, match=r"pair up row by row, got \(4, 12\) and \(3, 12\)"):
        model(pixel_values=batch["pixel_values"], text_features=torch.randn(3, 32))


@torch.no_grad()
def test_the_scale_starts_at_the_configured_logarithm_and_stops_at_100(model, batch):
    assert model.logit_scale().item() == pytest.approx(math.exp(2.6592))
    model.logit_scale.log_value.fill_(5.0)
    assert model.logit_scale().item() == 100
    output = model(**batch)
    torch.testing.assert_close(
        output.logits_per_image, 100 * output.image_embeds @ output.text_embeds.T, atol=1e-4, rtol=1e-5
    )
    torch.testing.assert_close(
        output.loss, symmetric_info_nce(output.image_embeds, output.text_embeds, torch.tensor(100.0))
    )


def test_the_scale_comes_down_from_its_cap(model):
    scale = model.logit_scale
    for start, value in ((math.log(7.0), 7.0), (5.0, 100.0), (200.0, 100.0)):
        torch.nn.init.constant_(scale.log_value, start)
        scale.log_value.grad = None
        (3 * scale()).sum().backward()
        assert scale().item() == pytest.approx(value, rel=1e-6)
        assert scale.log_value.grad.item() == pytest.approx(3 * value, rel=1e-6)  # d exp(x) = exp(x) dx
    scale.cap()
    assert scale.log_value.item() == pytest.approx(math.log(100), rel=1e-6)
    torch.nn.init.constant_(scale.log_value, 1.5)
    scale.cap()
    assert scale.log_value.item() == 1.5


@torch.no_grad()
def test_the_scale_stays_in_float32_where_everything_else_is_half(model, batch, tmp_path):
    model.logit_scale.log_value.fill_(1.2345678)
    model.save_pretrained(tmp_path)
    half = MedCLIPModel.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    kept = {name for name, p in half.named_parameters() if p.dtype == torch.float32}
    assert kept == {"logit_scale.log_value", "finding_head.weight", "finding_head.bias"}
    assert torch.equal(half.logit_scale.log_value, model.logit_scale.log_value)
    output = half(**batch, labels=LABELS)
    assert output.loss.dtype == output.image_embeds.dtype == output.logits_per_image.dtype == torch.float32
    torch.testing.assert_close(output.image_embeds, model(**batch).image_embeds, atol=0.1, rtol=0)
    torch.testing.assert_close(output.text_embeds, model(**batch).text_embeds, atol=0.1, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["vision", "text"])
def test_a_projection_may_have_a_hidden_layer(model, batch, kind):
    config = model.config.to_dict() | {f"{kind}_projection": "mlp"}
    deep = MedCLIPModel(MedCLIPConfig(**config)).eval()
    projection = deep.visual_projection if kind == "vision" else deep.text_projection
    for parameter in projection.parameters():
        torch.nn.init.normal_(parameter)
    if kind == "vision":
        pooled = deep.vision_model(batch["pixel_values"]).pooler_output
        projected = deep.get_image_features(batch["pixel_values"]).pooler_output
    else:
        pooled = deep.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output
        projected = deep.get_text_features(batch["input_ids"], batch["attention_mask"]).pooler_output
    h = F.gelu(pooled @ projection[0].weight.T + projection[0].bias)
    expected = h @ projection[2].weight.T + projection[2].bias
    torch.testing.assert_close(projected, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_an_embedding_does_not_depend_on_the_batch(model, batch):
    volumes = batch["pixel_values"]
    alone = torch.cat([model.encode_text(report) for report in REPORTS])
    for size in (1, 3, 16):
        torch.testing.assert_close(model.encode_text(REPORTS, batch_size=size), alone, atol=1e-5, rtol=0)
    torch.testing.assert_close(
        model.encode_image(volumes)[2:3], model.encode_image(volumes[2:3]), atol=1e-5, rtol=0
    )
    torch.testing.assert_close(model(**batch).text_embeds, alone, atol=1e-5, rtol=0)


@torch.no_grad()
def test_encoding_normalizes_unless_told_not_to(model, batch):
    image, text = model.encode_image(batch["pixel_values"], normalize=False), model.encode_text("no", False)
    assert torch.equal(image, model.get_image_features(batch["pixel_values"]).pooler_output)
    assert (image.norm(dim=-1) - 1).abs().min() > 1e-2
    torch.testing.assert_close(model.encode_image(batch["pixel_values"]), F.normalize(image, dim=-1))
    torch.testing.assert_close(model.encode_text("no"), F.normalize(text, dim=-1))
    assert not model.encode_text("no").requires_grad
    assert not model.encode_image(batch["pixel_values"]).requires_grad


@torch.no_grad()
def test_similarities_are_the_cosines_of_every_scan_with_every_text(model, batch):
    similarities = model.compute_similarities(batch["pixel_values"][:2], REPORTS[:3])
    output = model(**batch)
    expected = torch.cosine_similarity(output.image_embeds[:2, None], output.text_embeds[None, :3], dim=-1)
    torch.testing.assert_close(similarities, expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_arrays_in_hounsfield_units_go_through_the_image_processor(model):
    volume_hu = torch.linspace(-1100, 400, 8**3).view(8, 8, 8)
    expected = model.encode_image(((volume_hu + 1000) / 600 - 1).clamp(-1, 1)[None, None])
    encoded = model.encode_image([volume_hu], spacings_mm=[(3.0, 3.0, 3.0)])
    torch.testing.assert_close(encoded, expected, atol=1e-5, rtol=1e-5)
    scores = model.zero_shot([volume_hu], ["nodule"], spacings_mm=[(3.0, 3.0, 3.0)])
    torch.testing.assert_close(
        scores, model.zero_shot([volume_hu.double()], ["nodule"], spacings_mm=[(3.0,) * 3])
    )


@torch.no_grad()
def test_zero_shot_with_one_prompt_is_the_softmax_over_the_pair(model, batch):
    volumes = batch["pixel_values"]
    scores = model.zero_shot(volumes, ["CT artifact", "nodule"], prompts="is_present")
    assert scores.shape == (4, 2)
    image = model.encode_image(volumes)
    for column, finding in enumerate(["CT artifact", "Nodule"]):
        pair = model.encode_text([f"{finding} is present.", f"{finding} is not present."])
        expected = (math.exp(2.6592) * image @ pair.T).softmax(dim=-1)[:, 0]
        torch.testing.assert_close(scores[:, column], expected, atol=1e-5, rtol=1e-4)


@torch.no_grad()
def test_zero_shot_with_the_ensemble_is_the_sigmoid_of_the_mean_margin(model, batch):
    image = model.encode_image(batch["pixel_values"])
    present = model.encode_text(
        ["There is nodule.", "Nodule is present.", "Findings are compatible with nodule.", "Nodule."]
    )
    absent = model.encode_text(
        [
            "There is no nodule.",
            "Nodule is not present.",
            "Findings are not compatible with nodule.",
            "not nodule.",
        ]
    )
    margin = (image @ present.T - image @ absent.T).mean(dim=-1)
    expected = 1 / (1 + torch.exp(-math.exp(2.6592) * margin))
    scores = model.zero_shot(batch["pixel_values"], ["effusion", "nodule"])
    torch.testing.assert_close(scores[:, 1], expected, atol=1e-5, rtol=1e-4)
    assert not scores.requires_grad
    assert len(ENSEMBLE) == 4


@pytest.mark.parametrize("nothing", [[], (), torch.zeros(0, 1, 8, 8, 8), np.zeros((0, 8, 8, 8))])
def test_refuses_to_encode_nothing(model, nothing):
    with pytest.raises(ValueError, match="images must be at least one, got none"):
        model.encode_image(nothing)
    with pytest.raises(ValueError, match="text must be at least one report, got none"):
        model.encode_text([])


@torch.no_grad()
def test_encoding_while_training_is_that_of_evaluation(model, batch):
    volumes = batch["pixel_values"]
    expected = [model.encode_image(volumes), model.zero_shot(volumes, "nodule")]
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.train()
    alone = torch.cat([model.encode_image(volume[None]) for volume in volumes])
    torch.testing.assert_close(alone, expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.encode_image(volumes), expected[0], atol=1e-5, rtol=0)
    torch.testing.assert_close(model.zero_shot(volumes, "nodule"), expected[1], atol=1e-4, rtol=0)
    assert any("running_mean" in name for name in before)
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())
    assert all(module.training for module in model.modules())


def test_zero_shot_refuses_an_unknown_prompt(model):
    with pytest.raises(KeyError, match=r"one of \['compatible_with', .*'there_is'\], got 'has'"):
        model.zero_shot(torch.zeros(1, 1, 8, 8, 8), ["nodule"], prompts="has")


@torch.no_grad()
def test_joined_towers_keep_their_weights(tiny_vision_config, tiny_text_config, batch):
    vision, text = CT3DVisionModel(tiny_vision_config), LLMBiEncoder(tiny_text_config).eval()
    vision.train()(3 * torch.randn(4, 1, 8, 8, 8))  # running statistics that are not the identity
    vision.eval()
    model = MedCLIPModel.from_towers(vision, text, projection_dim=9, findings=["nodule"]).eval()
    assert model.config.projection_dim == 9
    assert model.config.findings == ["nodule"]
    for joined, tower in ((model.vision_model, vision), (model.text_model, text)):
        before, after = tower.state_dict(), joined.state_dict()
        assert before.keys() == after.keys()
        assert all(torch.equal(before[name], after[name]) for name in before)
    expected = text(batch["input_ids"], batch["attention_mask"]).pooler_output
    assert torch.equal(model.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output, expected)


def test_refuses_a_tower_that_does_not_fit_its_own_configuration(tiny_vision_config, tiny_text_config):
    vision = CT3DVisionModel(tiny_vision_config)
    vision.config = CT3DVisionConfig(hidden_sizes=[8, 24], layers=[1, 1])
    with pytest.raises(RuntimeError, match="size mismatch for stages"):
        MedCLIPModel.from_towers(vision, LLMBiEncoder(tiny_text_config))


@torch.no_grad()
def test_joins_towers_of_two_precisions(tiny_vision_config, tiny_text_config, batch, tmp_path):
    LLMBiEncoder(tiny_text_config).save_pretrained(tmp_path)
    text = LLMBiEncoder.from_pretrained(tmp_path, dtype=torch.bfloat16)
    model = MedCLIPModel.from_towers(CT3DVisionModel(tiny_vision_config), text).eval()
    assert model.text_model.dtype == torch.bfloat16
    assert model.vision_model.dtype == model.text_projection.weight.dtype == torch.float32
    assert model(**batch).loss.isfinite()


def test_every_parameter_receives_a_gradient(model, batch):
    model.train()(**batch, labels=LABELS).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_gives_the_same_gradients(model, batch, checkpointed_copy):
    thrifty = checkpointed_copy(model)
    calls = []
    thrifty.vision_model.stages[1][0].conv1.register_forward_hook(lambda *_: calls.append("image"))
    thrifty.text_model.model.layers[0].self_attn.register_forward_hook(lambda *_: calls.append("text"))
    model.train()(**batch, labels=LABELS).loss.backward()
    thrifty(**batch, labels=LABELS).loss.backward()
    assert min(calls.count("image"), calls.count("text")) > 1, "a tower was not recomputed"
    for (name, plain), (_, saved) in zip(model.named_parameters(), thrifty.named_parameters(), strict=True):
        torch.testing.assert_close(plain.grad, saved.grad, msg=name)


@torch.no_grad()
@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_reload_gives_identical_weights_buffers_and_outputs(model, batch, tmp_path, kind):
    config = model.config.to_dict() | {"vision_projection": kind, "text_projection": kind}
    model = MedCLIPModel(MedCLIPConfig(**config))
    model.train()(**batch)  # running statistics that are not the identity
    model.eval().save_pretrained(tmp_path)
    reloaded, report = MedCLIPModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    before = model.state_dict() | dict(model.named_buffers())
    after = reloaded.state_dict() | dict(reloaded.named_buffers())
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    expected, output = model(**batch, labels=LABELS), reloaded.eval()(**batch, labels=LABELS)
    torch.testing.assert_close(output.loss, expected.loss, **LAST_BITS)
    torch.testing.assert_close(output.logits_per_image, expected.logits_per_image, **LAST_BITS)
    assert reloaded.text_model.model.config.is_causal is False


def test_a_reloaded_model_finds_the_processor_saved_beside_its_weights(model, tmp_path):
    volume_hu = torch.linspace(-1100, 400, 8**3).view(8, 8, 8)
    model.save_pretrained(tmp_path)
    model.processor.save_pretrained(tmp_path)
    reloaded = MedCLIPModel.from_pretrained(tmp_path).eval()
    assert reloaded._processor is None, "loaded before anybody asked"
    torch.testing.assert_close(reloaded.encode_text(REPORTS), model.encode_text(REPORTS), **LAST_BITS)
    arrays = {"images": [volume_hu], "spacings_mm": [(3.0, 3.0, 3.0)]}
    torch.testing.assert_close(reloaded.encode_image(**arrays), model.encode_image(**arrays), **LAST_BITS)
    assert isinstance(reloaded.processor, MedCLIPProcessor)
    assert reloaded.processor is reloaded.processor
    assert reloaded.text_model.tokenizer is reloaded.processor.tokenizer


def test_a_model_without_processor_says_so_when_asked(model, tmp_path):
    model._processor = None
    model.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"processor must lie beside the weights, got none .*'{tmp_path}'"):
        _ = MedCLIPModel.from_pretrained(tmp_path).processor


@torch.no_grad()
def test_joins_a_vision_transformer_and_a_bert(foreign_towers, tiny_tokenizer, tmp_path):
    vision, text = foreign_towers
    model = MedCLIPModel.from_towers(vision, text, projection_dim=6, findings=["nodule"]).eval()
    images = torch.randn(2, 3, 8, 8)
    model.processor = MedCLIPProcessor(CT3DImageProcessor(), tiny_tokenizer)
    inputs = model.processor(text=["no nodule", "There is effusion"])
    output = model(pixel_values=images, **inputs, labels=torch.tensor([[0.0], [1.0]]))
    image = vision(images).pooler_output @ model.visual_projection.weight.T
    report = text(**inputs).pooler_output @ model.text_projection.weight.T
    torch.testing.assert_close(output.image_embeds, F.normalize(image, dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(output.text_embeds, F.normalize(report, dim=-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(model.encode_text(["no nodule", "There is effusion"]), output.text_embeds)
    model.save_pretrained(tmp_path)
    reloaded = MedCLIPModel.from_pretrained(tmp_path).eval()
    assert isinstance(reloaded.vision_model, ViTModel)
    assert isinstance(reloaded.text_model, BertModel)
    again = reloaded(pixel_values=images, **inputs).logits_per_image
    torch.testing.assert_close(again, output.logits_per_image, **LAST_BITS)


@torch.no_grad()
def test_the_finding_loss_equals_the_pure_function(model, batch):
    output = model(**batch, labels=LABELS)
    halves = (
        masked_binary_cross_entropy(output.finding_logits_image, LABELS),
        masked_binary_cross_entropy(output.finding_logits_text, LABELS),
    )
    torch.testing.assert_close(output.loss - model(**batch).loss, (halves[0] + halves[1]) / 2)


@pytest.mark.parametrize(
    "is_stored",
    [pytest.param(False, id="token ids"), pytest.param(True, id="text features", marks=pytest.mark.slow)],
)
def test_fits_four_studies_with_the_stock_trainer(model, batch, fit_with_stock_trainer, is_stored):
    columns = {"pixel_values": batch["pixel_values"], "labels": LABELS}
    if is_stored:
        with torch.no_grad():
            pooled = model.text_model(batch["input_ids"], batch["attention_mask"]).pooler_output
        model.text_model.requires_grad_(False)
        columns["text_features"] = pooled
    else:
        columns |= {name: batch[name] for name in ("input_ids", "attention_mask")}
    studies = [{name: column[row] for name, column in columns.items()} for row in range(4)]
    losses, eval_loss = fit_with_stock_trainer(model, studies, steps=80, learning_rate=0.01)
    assert losses[-1] < 0.1 * losses[0]
    assert eval_loss < 0.2 * losses[0]
    with torch.no_grad():
        output = model.eval()(**{name: column for name, column in columns.items() if name != "labels"})
    assert output.logits_per_image.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_the_stock_trainer_reports_an_eval_loss_without_labels(model, batch, fit_with_stock_trainer):
    # Trainer takes forward's "labels" for required unless it is told that there are none.
    names = ("pixel_values", "input_ids", "attention_mask")
    pairs = [{name: batch[name][row] for name in names} for row in range(4)]
    losses, eval_loss = fit_with_stock_trainer(model, pairs, steps=30, learning_rate=0.01, label_names=[])
    assert losses[-1] < 0.1 * losses[0]
    assert eval_loss < 0.5 * losses[0]


def test_one_finding_may_be_a_bare_string_and_is_not_spelled_out(tiny_medclip):
    scan = torch.randn(1, 1, 8, 8, 8)
    scores = tiny_medclip.zero_shot(scan, "effusion")
    assert scores.shape == (1, 1)
    assert torch.equal(scores, tiny_medclip.zero_shot(scan, ["effusion"]))


@pytest.mark.parametrize(
    ("findings", "message"), [([], "got 0 with"), (["effusion", " "], r"blanks at \[1\]")]
)
def test_refuses_findings_without_a_name(tiny_medclip, findings, message):
    with pytest.raises(ValueError, match=message):
        tiny_medclip.finding_directions(findings)


def test_the_processor_is_saved_with_the_model(tiny_medclip, tmp_path):
    tiny_medclip.save_pretrained(tmp_path)
    reloaded = MedCLIPModel.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(reloaded.encode_text("no effusion"), tiny_medclip.encode_text("no effusion"))


@torch.no_grad()
def test_the_prompt_of_the_text_tower_is_read_and_saved(tiny_medclip, tmp_path):
    plain = tiny_medclip.encode_text("no effusion")
    tiny_medclip.text_model.set_prompt(hard_prompt="Describe", soft_prompt=" There is a nodule")
    torch.nn.init.normal_(tiny_medclip.text_model.soft_prompt.weight)
    expected = tiny_medclip.encode_text(["no effusion", "There is a small nodule"])
    torch.testing.assert_close(tiny_medclip.encode_text("no effusion"), expected[:1], atol=1e-5, rtol=0)
    assert (expected[:1] - plain).abs().max() > 1e-2
    pooled = tiny_medclip.text_model.encode_text("no effusion")
    projected = F.normalize(tiny_medclip.text_projection(pooled), dim=-1)
    torch.testing.assert_close(projected, expected[:1], atol=1e-5, rtol=0)
    tiny_medclip.save_pretrained(tmp_path)
    reloaded = MedCLIPModel.from_pretrained(tmp_path).eval()
    assert reloaded.config.text_config.hard_prompt == "Describe"
    torch.testing.assert_close(
        reloaded.encode_text(["no effusion", "There is a small nodule"]), expected, atol=1e-5, rtol=0
    )


@torch.no_grad()
def test_a_dual_tower_with_more_tokens_is_saved_with_its_vocabulary(tiny_medclip, tmp_path):
    expected = tiny_medclip.encode_text("no effusion")
    size = tiny_medclip.get_input_embeddings().num_embeddings
    tiny_medclip.resize_token_embeddings(size + 2, mean_resizing=False)
    torch.testing.assert_close(tiny_medclip.encode_text("no effusion"), expected, **LAST_BITS)
    tiny_medclip.save_pretrained(tmp_path)
    reloaded = MedCLIPModel.from_pretrained(tmp_path).eval()
    assert reloaded.config.text_config.text_config.vocab_size == size + 2
    assert torch.equal(reloaded.get_input_embeddings().weight, tiny_medclip.get_input_embeddings().weight)


def test_refuses_a_text_prefix_that_the_processor_would_leave_out(tiny_medclip):
    tiny_medclip.text_model.set_prompt(text_prefix="Report:")
    with pytest.raises(ValueError, match="must be empty in a dual tower, got 'Report:'"):
        tiny_medclip.encode_text("no effusion")


def test_a_narrowed_text_tower_is_projected_from_its_width(tiny_vision_config, tiny_text_config, batch):
    tiny_text_config.embedding_dim = 20
    config = MedCLIPConfig(
        vision_config=tiny_vision_config.to_dict(), text_config=tiny_text_config.to_dict(), projection_dim=7
    )
    model = MedCLIPModel(config)
    assert model.text_projection.in_features == 20
    inputs = {name: batch[name] for name in ("input_ids", "attention_mask")}
    assert model.get_text_features(**inputs).pooler_output.shape[1] == 7
