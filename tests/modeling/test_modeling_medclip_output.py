"""What the dual tower returns of its towers: states and attention maps, and only if asked for."""

import pytest
import torch

from radtower.configuration.configuration_medclip import MedCLIPConfig
from radtower.modeling.modeling_medclip import MedCLIPModel

REPORTS = ["There is no effusion.", "small nodule"]
BOTH = {"output_hidden_states": True, "output_attentions": True}


def _batch(model, *shape):
    return {"pixel_values": torch.randn(2, *shape), **model.processor(text=REPORTS)}


def _same(some, others):
    return all(torch.equal(*pair) for pair in zip(some, others, strict=True))


@torch.no_grad()
def test_a_scan_gives_the_maps_of_its_tower_and_a_report_states_and_attention(tiny_medclip):
    tiny_medclip.set_attn_implementation("eager")
    batch = _batch(tiny_medclip, 1, 8, 8, 8)
    plain, output = tiny_medclip(**batch), tiny_medclip(**batch, **BOTH)
    assert plain.text_model_output is None
    assert plain.vision_model_output is None
    for name, value in plain.items():
        assert torch.equal(value, output[name]), name
    tokens = batch["input_ids"], batch["attention_mask"]
    scans = tiny_medclip.vision_model(batch["pixel_values"], output_hidden_states=True)
    reports = tiny_medclip.text_model(*tokens, **BOTH)
    assert len(scans.hidden_states) == 3
    assert (len(reports.hidden_states), len(reports.attentions)) == (3, 2)
    assert _same(output.vision_model_output.hidden_states, scans.hidden_states)
    assert torch.equal(output.vision_model_output.pooler_output, scans.pooler_output)
    assert _same(output.text_model_output.hidden_states, reports.hidden_states)
    assert _same(output.text_model_output.attentions, reports.attentions)
    features = tiny_medclip.get_image_features(batch["pixel_values"], **BOTH)
    assert _same(features.hidden_states, scans.hidden_states)
    features = tiny_medclip.get_text_features(*tokens, **BOTH)
    assert _same(features.hidden_states, reports.hidden_states)
    assert _same(features.attentions, reports.attentions)
    assert features.pooler_output.shape == (2, 12)


@torch.no_grad()
def test_a_tower_of_transformers_gives_its_own(tiny_image_clip):
    tiny_image_clip.set_attn_implementation("eager")
    batch = _batch(tiny_image_clip, 3, 16, 16)
    output = tiny_image_clip(**batch, **BOTH).vision_model_output
    expected = tiny_image_clip.vision_model(batch["pixel_values"], **BOTH)
    assert (len(output.hidden_states), len(output.attentions)) == (3, 2)
    assert _same(output.hidden_states, expected.hidden_states)
    assert _same(output.attentions, expected.attentions)


@torch.no_grad()
def test_one_kind_and_one_side_can_be_asked_for_alone(tiny_medclip):
    tiny_medclip.set_attn_implementation("eager")
    batch = _batch(tiny_medclip, 1, 8, 8, 8)
    maps = tiny_medclip(**batch, output_attentions=True)
    assert maps.vision_model_output is None  # it has none
    assert maps.text_model_output.hidden_states is None
    assert len(maps.text_model_output.attentions) == 2
    scans = tiny_medclip(pixel_values=batch["pixel_values"], return_loss=False, output_hidden_states=True)
    assert scans.text_model_output is None
    assert len(scans.vision_model_output.hidden_states) == 3


@torch.no_grad()
@pytest.mark.parametrize("part", ["both towers", "text tower"])
def test_the_configuration_asks_for_all_or_that_of_a_tower_for_its_own(tiny_medclip, part):
    config = tiny_medclip.config if part == "both towers" else tiny_medclip.config.text_config
    config.output_hidden_states = True
    batch = _batch(tiny_medclip, 1, 8, 8, 8)
    output = tiny_medclip(**batch)
    assert len(output.text_model_output.hidden_states) == 3
    assert (output.vision_model_output is None) == (part == "text tower")
    assert tiny_medclip(**batch, output_hidden_states=False).text_model_output is None


@torch.no_grad()
def test_in_a_tuple_the_outputs_of_the_towers_are_tuples(tiny_medclip):
    batch = _batch(tiny_medclip, 1, 8, 8, 8)
    output = tiny_medclip(**batch, output_hidden_states=True)
    loss, *tensors, reports, scans = tiny_medclip(**batch, output_hidden_states=True, return_dict=False)
    assert torch.equal(loss, output.loss)
    assert output[0] is output.loss
    assert torch.equal(tensors[0], output.logits_per_image)
    assert torch.equal(tensors[-1], output.logit_scale)
    assert len(tensors) == 9
    assert [type(side) for side in (reports, scans)] == [tuple, tuple]
    assert torch.equal(reports[1], output.text_model_output.pooler_output)
    assert _same(reports[2], output.text_model_output.hidden_states)
    assert _same(scans[2], output.vision_model_output.hidden_states)


def test_names_as_float32_what_its_configuration_has(tiny_vision_config, tiny_text_config):
    towers = {"vision_config": tiny_vision_config, "text_config": tiny_text_config, "projection_dim": 12}
    found = [
        MedCLIPModel(MedCLIPConfig(**towers, **fields))._keep_in_fp32_modules_strict
        for fields in ({}, {"loss": "siglip"}, {"findings": ["nodule"]})
    ]
    assert found == [{"logit_scale"}, {"logit_scale", "logit_bias"}, {"logit_scale", "finding_head"}]
