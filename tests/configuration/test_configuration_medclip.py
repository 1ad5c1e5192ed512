import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError
from transformers import BertConfig, MobileNetV2Config, Qwen3Config, ResNetConfig, ViTConfig

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.configuration.configuration_medclip import MedCLIPConfig, tower_width


def test_survives_a_round_trip_through_json(tmp_path):
    settings = {
        "projection_dim": 24,
        "vision_projection": "mlp",
        "text_projection": "mlp",
        "logit_scale_init": 1.5,
        "findings": ["nodule", "effusion"],
    }
    vision = CT3DVisionConfig(hidden_sizes=[8, 40], layers=[1, 2])
    text = LLMBiEncoderConfig(text_config=Qwen3Config(hidden_size=48), bidirectional=False)
    MedCLIPConfig(vision_config=vision, text_config=text, **settings).save_pretrained(tmp_path)
    reloaded = MedCLIPConfig.from_pretrained(tmp_path)
    assert {name: getattr(reloaded, name) for name in settings} == settings
    assert isinstance(reloaded.vision_config, CT3DVisionConfig)
    assert reloaded.vision_config.hidden_sizes == [8, 40]
    assert isinstance(reloaded.text_config, LLMBiEncoderConfig)
    assert isinstance(reloaded.text_config.text_config, Qwen3Config)
    assert reloaded.text_config.hidden_size == 48
    assert reloaded.text_config.bidirectional is False
    assert reloaded.model_type == "medclip"


def test_no_towers_means_the_default_ones():
    config = MedCLIPConfig()
    assert isinstance(config.vision_config, CT3DVisionConfig)
    assert isinstance(config.text_config, LLMBiEncoderConfig)
    assert config.findings == ()


def test_reloads_towers_of_transformers_as_their_own_class(tmp_path):
    towers = MedCLIPConfig(
        vision_config={"model_type": "vit", "hidden_size": 20}, text_config=BertConfig(hidden_size=28)
    )
    towers.save_pretrained(tmp_path)
    reloaded = MedCLIPConfig.from_pretrained(tmp_path)
    assert isinstance(reloaded.vision_config, ViTConfig)
    assert reloaded.vision_config.hidden_size == 20
    assert isinstance(reloaded.text_config, BertConfig)
    assert reloaded.text_config.hidden_size == 28


@pytest.mark.parametrize("name", ["vision_config", "text_config"])
def test_refuses_a_tower_of_unknown_family(name):
    with pytest.raises(ValueError, match=r"must name its model_type, got \['depth', 'width'\]"):
        MedCLIPConfig(**{name: {"width": 8, "depth": 2}})


def test_refuses_an_empty_joint_space():
    with pytest.raises(StrictDataclassClassValidationError, match="projection_dim must be positive, got -3"):
        MedCLIPConfig(projection_dim=-3)


def test_refuses_a_finding_named_twice():
    with pytest.raises(StrictDataclassClassValidationError, match=r"unique, got \['nodule'\] more than once"):
        MedCLIPConfig(findings=["nodule", "effusion", "nodule"])


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("vision_config", "ct3d_vision"),
        ("text_config", 3),
        ("projection_dim", "512"),
        ("vision_projection", "conv"),
        ("text_projection", "conv"),
        ("logit_scale_init", "2.7"),
        ("findings", "nodule"),
        ("findings", [1, 2]),
    ],
)
def test_refuses_a_field_of_the_wrong_type(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        MedCLIPConfig(**{name: value})


def test_refuses_a_text_prefix_that_nobody_would_read():
    text = {"model_type": "llm_biencoder", "text_prefix": "Report:"}
    with pytest.raises(StrictDataclassClassValidationError, match="empty in a dual tower, got 'Report:'"):
        MedCLIPConfig(text_config=text)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vision_projection": "identity"}, r"width of the vision tower .* got 512 for 20\. Set it"),
        ({"text_projection": "identity"}, r"width of the text tower .* got 512 for 28\. Set it"),
        ({"text_projection": "slice"}, r"at most the width of the text tower .* got 512 for 28\. Make"),
        (
            {"similarity": "legacy_dot", "loss": "siglip"},
            r"cosine for siglip .* got 'legacy_dot' with siglip",
        ),
        ({"similarity": "legacy_dot", "matryoshka_dims": [8]}, r"for matryoshka_dims, got .* \[8\]\. Choose"),
        ({"label_share": 0}, r"label_share must be in \(0, 1\], got 0\. Use loss='infonce'"),
        ({"label_share": 1.5}, r"label_share must be in \(0, 1\], got 1.5\."),
        ({"matryoshka_dims": [4, 4]}, r"different sizes between 1 and 512, got \[4, 4\]\. Name each"),
        ({"matryoshka_dims": [0]}, r"different sizes between 1 and 512, got \[0\]\."),
        ({"matryoshka_dims": [513]}, r"different sizes between 1 and 512, got \[513\]\."),
    ],
)
def test_refuses_settings_that_do_not_go_together(settings, message):
    towers = {"vision_config": ViTConfig(hidden_size=20), "text_config": BertConfig(hidden_size=28)}
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        MedCLIPConfig(**towers, **settings)


@pytest.mark.parametrize(("name", "kind"), [("vision", "ct3d_vision"), ("text", "llm_biencoder")])
def test_own_towers_pool_themselves(name, kind):
    with pytest.raises(StrictDataclassClassValidationError, match=rf"{name}_pooling must be .* for {kind}"):
        MedCLIPConfig(**{f"{name}_pooling": "mean"})


def test_the_width_of_a_tower_is_in_its_configuration():
    assert tower_width(ViTConfig(hidden_size=16)) == 16
    assert tower_width(ResNetConfig(hidden_sizes=[8, 12], depths=[1, 1])) == 12
    with pytest.raises(ValueError, match=r"hidden_size or hidden_sizes, got none in a mobilenet_v2\. Choose"):
        tower_width(MobileNetV2Config())


def test_the_text_configuration_is_the_one_with_the_vocabulary():
    config = MedCLIPConfig()
    assert config.get_text_config() is config.text_config.text_config
    assert config.get_text_config(decoder=True).vocab_size == 32000
    foreign = MedCLIPConfig(text_config=BertConfig(hidden_size=28))
    assert foreign.get_text_config() is foreign.text_config
    assert (
        foreign.get_text_config(encoder=True) is foreign
    )  # as in CLIP, which has no encoder of its own name
