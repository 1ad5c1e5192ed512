"""``return_dict=False`` gives tuples, as it does for the models of transformers, and breaks nothing."""

import pytest
import torch

from hub_contract.stock_models import AUTO_CLASSES, build, build_processor, build_samples


def _inputs(kind):
    samples = build_samples(kind)
    return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}


def _without_dicts(model):
    for module in model.modules():
        if hasattr(module, "config"):
            module.config.return_dict = False
    return model


@pytest.mark.parametrize("kind", AUTO_CLASSES)
@torch.no_grad()
def test_return_dict_false_gives_the_fields_as_a_tuple_asked_or_configured(kind):
    model, inputs = build(kind).eval(), _inputs(kind)
    expected = model(**inputs).to_tuple()

    asked = model(**inputs, return_dict=False)
    configured = _without_dicts(model)(**inputs)

    for given in (asked, configured):
        assert isinstance(given, tuple)
        assert len(given) == len(expected)
        assert all(torch.equal(one, other) for one, other in zip(given, expected, strict=True))


@torch.no_grad()
def test_the_image_encoder_reads_windows_where_its_configuration_says_return_dict_false():
    model = build("image").vision_model.eval()
    volume = build_samples("image")[0]["pixel_values"]
    last, pooled = model(volume[None], return_dict=False)
    expected = model.encode_volume(volume)
    assert torch.equal(last.flatten(2).mean(dim=-1), pooled)
    assert torch.equal(_without_dicts(model).encode_volume(volume), expected)


@torch.no_grad()
def test_the_dual_tower_encodes_where_its_configuration_says_return_dict_false():
    model, inputs = build("pair").eval(), _inputs("pair")
    model.processor = build_processor("pair")
    scans, texts = inputs["pixel_values"], ["no nodule", "small effusion"]
    tokens = {name: inputs[name] for name in ("input_ids", "attention_mask")}
    features = [model.get_image_features(scans), model.get_text_features(**tokens)]
    expected = [model.encode_image(scans), model.encode_text(texts), model.zero_shot(scans, ["nodule"])]

    _without_dicts(model)

    tuples = [model.get_image_features(scans), model.get_text_features(**tokens)]
    assert all(isinstance(one, tuple) for one in tuples)
    assert all(torch.equal(one[1], two.pooler_output) for one, two in zip(tuples, features, strict=True))
    given = [model.encode_image(scans), model.encode_text(texts), model.zero_shot(scans, ["nodule"])]
    assert all(torch.equal(one, two) for one, two in zip(given, expected, strict=True))
