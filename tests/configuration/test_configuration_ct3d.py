import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from radtower.configuration.configuration_ct3d import CT3DVisionConfig


def test_survives_a_round_trip_through_json(tmp_path):
    settings = {
        "num_channels": 3,
        "stem_kernel_size": [3, 5, 7],
        "stem_stride": [1, 2, 4],
        "hidden_sizes": [8, 24],
        "layers": [1, 3],
        "pooling": "max",
        "image_size": [16, 32, 48],
        "id2label": {0: "nodule", 1: "effusion"},
    }
    CT3DVisionConfig(**settings).save_pretrained(tmp_path)
    reloaded = CT3DVisionConfig.from_pretrained(tmp_path)
    assert {name: getattr(reloaded, name) for name in settings} == settings
    assert reloaded.model_type == "ct3d_vision"


def test_the_default_reloads_although_json_turns_its_tuples_into_lists(tmp_path):
    CT3DVisionConfig().save_pretrained(tmp_path)
    assert CT3DVisionConfig.from_pretrained(tmp_path).hidden_sizes == [64, 128, 256, 512]


def test_the_embedding_is_as_wide_as_the_last_stage():
    assert CT3DVisionConfig(hidden_sizes=[8, 24, 40], layers=[1, 1, 1]).hidden_size == 40


@pytest.mark.parametrize(
    ("hidden_sizes", "layers", "message"),
    [([8, 16], [1], r"same length, got \[1\] and \[8, 16\]"), ([], [], r"same length, got \[\] and \[\]")],
)
def test_refuses_stages_that_do_not_match(hidden_sizes, layers, message):
    with pytest.raises(StrictDataclassClassValidationError, match=message):
        CT3DVisionConfig(hidden_sizes=hidden_sizes, layers=layers)


@pytest.mark.parametrize("name", ["stem_kernel_size", "stem_stride", "image_size"])
def test_refuses_a_size_that_is_no_triple(name):
    with pytest.raises(
        StrictDataclassClassValidationError, match=rf"{name} must be \(Z, Y, X\), got \[7, 9\]"
    ):
        CT3DVisionConfig(**{name: [7, 9]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("stem_kernel_size", [2, 0, 2]),
        ("stem_stride", [2, 2, -1]),
        ("image_size", [0, 8, 8]),
        ("hidden_sizes", [8, 0, 8, 8]),
        ("layers", [1, 1, 0, 1]),
    ],
)
def test_refuses_an_entry_that_is_not_positive(name, value):
    shown = str(value).replace("[", r"\[").replace("]", r"\]")
    with pytest.raises(StrictDataclassClassValidationError, match=rf"{name} must be positive, got {shown}"):
        CT3DVisionConfig(**{name: value})


def test_refuses_to_have_no_channel():
    with pytest.raises(StrictDataclassClassValidationError, match="num_channels must be positive, got 0"):
        CT3DVisionConfig(num_channels=0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_channels", "1"),
        ("stem_kernel_size", 2),
        ("stem_stride", [2.5, 2, 2]),
        ("hidden_sizes", "wide"),
        ("layers", ["two", 2, 2, 2]),
        ("pooling", "median"),
        ("image_size", 96),
    ],
)
def test_refuses_a_field_of_the_wrong_type(name, value):
    with pytest.raises(StrictDataclassFieldValidationError, match=name):
        CT3DVisionConfig(**{name: value})


def test_refuses_a_wrong_type_that_is_assigned_later():
    config = CT3DVisionConfig()
    with pytest.raises(StrictDataclassFieldValidationError, match="pooling"):
        config.pooling = "median"
