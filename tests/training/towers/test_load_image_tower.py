import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModel,
    CLIPConfig,
    CLIPImageProcessorPil,
    CLIPModel,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
    SiglipVisionModel,
    ViTImageProcessorPil,
    ViTModel,
)

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.training.towers.load_image_tower import load_image_tower
from radtower.training.towers.load_weights import require_vectors

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "patch_size": 4,
    "image_size": 16,
}
SIZE = {"height": 16, "width": 16}


def _clip(folder):
    text = {
        "hidden_size": 16,
        "intermediate_size": 24,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "vocab_size": 30,
    }
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=SMALL, projection_dim=8))
    model.save_pretrained(folder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE)
    processor.save_pretrained(folder)
    return model.vision_model


def _vision(model, processor):
    def make(folder):
        model.save_pretrained(folder)
        processor.save_pretrained(folder)
        return model

    return make


@pytest.fixture(params=["vit", "clip", "clip_vision", "siglip_vision", "dinov2"])
def saved_tower(request, tmp_path, tiny_vit_config):
    builders = {
        "vit": lambda: _vision(ViTModel(tiny_vit_config), ViTImageProcessorPil(size=SIZE)),
        "clip": lambda: _clip,
        "clip_vision": lambda: _vision(
            CLIPVisionModel(AutoConfig.for_model("clip_vision_model", **SMALL)),
            CLIPImageProcessorPil(size={"shortest_edge": 16}, crop_size=SIZE),
        ),
        "siglip_vision": lambda: _vision(
            SiglipVisionModel(SiglipVisionConfig(**SMALL)), SiglipImageProcessorPil(size=SIZE)
        ),
        "dinov2": lambda: _vision(
            Dinov2Model(Dinov2Config(**{k: v for k, v in SMALL.items() if k != "intermediate_size"})),
            ViTImageProcessorPil(size=SIZE),
        ),
    }
    return builders[request.param]()(tmp_path).eval(), tmp_path


def test_any_vision_model_of_transformers_is_loaded_with_its_image_processor(saved_tower):
    source, folder = saved_tower
    tower, image_processor = load_image_tower(str(folder), "pooler")
    assert type(tower) is type(source)
    pixels = image_processor([Image.new("RGB", (30, 20), (200, 30, 90))], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 16, 16)
    with torch.no_grad():
        expected = source(pixels).pooler_output
        torch.testing.assert_close(tower(pixels).pooler_output, expected, rtol=1e-5, atol=1e-5)
        fresh, _ = load_image_tower(str(folder), "mean", should_reset=True)
        assert not torch.allclose(fresh(pixels).pooler_output, expected, atol=1e-3)


@pytest.mark.parametrize(
    ("settings", "pooling", "width"),
    [
        ({"model_type": "vit", **SMALL}, "mean", 16),
        ({"model_type": "siglip_vision_model", **SMALL}, "pooler", 16),
        (
            {
                "model_type": "resnet",
                "image_size": [32, 48],
                "embedding_size": 8,
                "hidden_sizes": [8, 12],
                "depths": [1, 1],
                "layer_type": "basic",
            },
            "pooler",
            12,
        ),
    ],
    ids=["vit", "siglip", "resnet"],
)
def test_a_configuration_is_a_fresh_tower_of_that_size(settings, pooling, width):
    tower, image_processor = load_image_tower(settings, pooling)
    size = settings["image_size"] if isinstance(settings["image_size"], list) else [16, 16]
    image = Image.new("RGB", (70, 50), (255, 0, 51))
    image.paste((0, 0, 0), (0, 0, 1, 50))
    pixels = image_processor([image], return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, *size)
    assert pixels[0, :, -1, -1].tolist() == pytest.approx([1.0, -1.0, -0.6])
    assert (pixels[0, 0, :, 0] < 1.0).all()  # nothing is cropped: the dark margin is there
    torch.manual_seed(1)
    first = load_image_tower(settings, pooling)[0].state_dict()
    torch.manual_seed(1)
    second = load_image_tower(settings, pooling)[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert getattr(tower.config, "hidden_size", None) == width or tower.config.hidden_sizes[-1] == width


def test_a_fresh_tower_of_one_channel_reads_gray_images():
    tower, image_processor = load_image_tower({"model_type": "vit", **SMALL, "num_channels": 1}, "cls")
    assert tuple(image_processor.image_mean) == (0.5,)
    assert tower(torch.zeros(1, 1, 16, 16)).last_hidden_state.shape == (1, 17, 16)


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"image_size": 16}, ValueError, r"got no \['model_type'\] in \['image_size'\]"),
        ({"model_type": "vit"}, ValueError, r"got no \['image_size'\]"),
        ({"model_type": "vitt", "image_size": 16}, KeyError, r"got 'vitt'. Did you mean \['vit"),
        ({"model_type": "0", "image_size": 16}, KeyError, "got '0'. Take vit, dinov2 or resnet"),
        (
            {"model_type": "vit", **SMALL, "hiden_size": 4},
            ValueError,
            r"own fields only, got \['hiden_size'\]",
        ),
        ({"model_type": "bert", "image_size": 16}, ValueError, r"must be a 2D vision model .* got a bert"),
        ({"model_type": "ct3d_vision", "image_size": 16}, ValueError, "got a ct3d_vision"),
        (
            {"model_type": "resnet", "image_size": 16, "num_channels": 4},
            ValueError,
            r"num_channels must be 1 \(gray\) or 3 \(color\), got 4",
        ),
    ],
)
def test_refuses_a_configuration_that_is_no_2d_tower(settings, error, match):
    with pytest.raises(error, match=match):
        load_image_tower(settings, "pooler")


def test_refuses_a_3d_tower_and_one_that_lacks_weights(tmp_path, tiny_vision_config, tiny_vit_config):
    CT3DVisionModel(tiny_vision_config).save_pretrained(tmp_path / "3d")
    with pytest.raises(ValueError, match=r"got a ct3d_vision. .* a 3D tower needs a cache"):
        load_image_tower(str(tmp_path / "3d"), "pooler")
    assert isinstance(tiny_vision_config, CT3DVisionConfig)
    ViTModel(tiny_vit_config, add_pooling_layer=False).save_pretrained(tmp_path / "vit")
    ViTImageProcessorPil(size=SIZE).save_pretrained(tmp_path / "vit")
    with pytest.raises(
        ValueError, match=r"ViTModel must find all its weights, got .* without 2, such as pooler"
    ):
        load_image_tower(str(tmp_path / "vit"), "pooler")
    tower, _ = load_image_tower(str(tmp_path / "vit"), "cls")
    assert isinstance(tower, ViTModel)
    weights = load_file(tmp_path / "vit" / "model.safetensors")
    lost = next(name for name in weights if "layernorm.weight" in name)
    del weights[lost]
    save_file(weights, tmp_path / "vit" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=r"ViTModel must find all its weights, got .* without 1, such as layernorm"
    ):
        load_image_tower(str(tmp_path / "vit"), "cls")


def test_refuses_an_image_processor_of_another_size(tmp_path, tiny_vit_config):
    ViTModel(tiny_vit_config).save_pretrained(tmp_path)
    ViTImageProcessorPil(size={"height": 20, "width": 20}).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match=r"must fit, got a vit, pixel_values \(1, 3, 20, 20\) and 'pooler': "
    ):
        load_image_tower(str(tmp_path), "pooler")


def test_refuses_a_pooling_that_the_tower_has_not():
    settings = {"model_type": "dinov2", "image_size": 16, "patch_size": 4, "hidden_size": 16}
    settings |= {"num_hidden_layers": 1, "num_attention_heads": 2}
    assert AutoModel.from_config(AutoConfig.for_model(**settings)).main_input_name == "pixel_values"
    settings = {"model_type": "segformer", "image_size": 64}
    with pytest.raises(ValueError, match=r"must fit, got a segformer, .* and 'pooler': pooling must be cls"):
        load_image_tower(settings, "pooler")


def test_refuses_states_that_are_maps_and_another_width_than_configured():
    settings = {"model_type": "resnet", "image_size": 16, "embedding_size": 8, "hidden_sizes": [8, 12]}
    settings |= {"depths": [1, 1], "layer_type": "basic"}
    for pooling in ("cls", "mean", "last"):
        with pytest.raises(ValueError, match=rf"fit, got a resnet, .* and '{pooling}': pooling must be 'poo"):
            load_image_tower(settings, pooling)
    tower, _ = load_image_tower(settings, "pooler")
    with pytest.raises(ValueError, match=r"one vector of 12 numbers, .* got \(1, 8\)\. Choose another"):
        require_vectors(tower, torch.zeros(1, 8))
