import pytest
import torch
from transformers import CLIPConfig, CLIPModel, CLIPVisionConfig, CLIPVisionModel, SiglipConfig, SiglipModel

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.towers.load_projection import keep_projection

SMALL = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
VISION = SMALL | {"image_size": 16, "patch_size": 8}
TEXT = SMALL | {"vocab_size": 40, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}


@pytest.fixture
def clip(tmp_path):
    clip = CLIPModel(CLIPConfig(vision_config=VISION, text_config=TEXT, projection_dim=6)).eval()
    clip.save_pretrained(tmp_path / "clip")
    return clip


@pytest.fixture
def make_model(clip, tiny_text_config):
    def make(**fields):
        return MedCLIPModel.from_towers(
            clip.vision_model, LLMBiEncoder(tiny_text_config), **{"projection_dim": 6} | fields
        ).eval()

    return make


@torch.no_grad()
def test_images_begin_where_the_dual_encoder_puts_them(clip, make_model, tmp_path):
    model = make_model()
    pixels = torch.randn(2, 3, 16, 16)
    expected = clip.get_image_features(pixels).pooler_output
    assert (model.get_image_features(pixels).pooler_output - expected).abs().max() > 1e-3
    keep_projection(model, str(tmp_path / "clip"))
    found = model.get_image_features(pixels).pooler_output
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=1e-5)
    assert model.visual_projection.weight.requires_grad


@pytest.mark.parametrize("fields", [{"projection_dim": 8}, {"vision_projection": "mlp"}])
def test_refuses_a_projection_of_another_shape(clip, make_model, tmp_path, fields):
    model = make_model(**fields)
    before = {name: value.clone() for name, value in model.visual_projection.state_dict().items()}
    kind, size = fields.get("vision_projection", "linear"), fields.get("projection_dim", 6)
    with pytest.raises(
        ValueError, match=rf"linear from 16 to 6 numbers, .* got '{kind}' with projection_dim {size}\."
    ):
        keep_projection(model, str(tmp_path / "clip"))
    assert all(
        torch.equal(value, before[name]) for name, value in model.visual_projection.state_dict().items()
    )


def test_refuses_a_source_without_an_image_projection(clip, make_model, tmp_path):
    CLIPVisionModel(CLIPVisionConfig(**VISION)).save_pretrained(tmp_path / "half")
    siglip = SiglipConfig(vision_config=VISION, text_config=TEXT)
    SiglipModel(siglip).save_pretrained(tmp_path / "siglip")
    for name in ("half", "siglip"):
        with pytest.raises(ValueError, match=rf"with a linear image projection, such as CLIP, .*{name}\."):
            keep_projection(make_model(), str(tmp_path / name))
