import pytest
from huggingface_hub.errors import StrictDataclassClassValidationError, StrictDataclassFieldValidationError

from radtower.configuration.configuration_ct3d import CT3DVisionConfig


def test_survives_a_round_trip_through_json(tmp_path):
    settings = {
        "num_channels": 3,
        "block_type": "r2plus1d",
        "stem_kernel_size": [3, 5, 7],
        "stem_stride": [1, 2, 4],
        "stem_hidden_size": 45,
        "stem_max_pool": True,
        "hidden_sizes": [8, 24],
        "layers": [1, 3],
        "dilations": [1, 2],
        "shortcut": "pad",
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
        ("dilations", [1, 1, 0, 1]),
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
        ("block_type", "dense"),
        ("shortcut", "B"),
        ("dilations", 2),
        ("stem_max_pool", "yes"),
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


@pytest.mark.parametrize(
    ("depth", "block_type", "layers", "hidden_sizes"),
    [
        (10, "basic", [1, 1, 1, 1], [64, 128, 256, 512]),
        (18, "basic", [2, 2, 2, 2], [64, 128, 256, 512]),
        (34, "basic", [3, 4, 6, 3], [64, 128, 256, 512]),
        (50, "bottleneck", [3, 4, 6, 3], [256, 512, 1024, 2048]),
    ],
)
def test_a_depth_names_the_network_of_the_literature(depth, block_type, layers, hidden_sizes):
    config = CT3DVisionConfig.from_depth(depth)
    assert (config.block_type, config.layers, config.hidden_sizes) == (block_type, layers, hidden_sizes)
    assert config.stem_size == 64


def test_a_depth_goes_with_every_other_field():
    config = CT3DVisionConfig.from_depth(34, block_type="r2plus1d", num_channels=3, hidden_sizes=[8, 8, 8, 8])
    assert (config.block_type, config.num_channels, config.hidden_size) == ("r2plus1d", 3, 8)
    assert config.layers == [3, 4, 6, 3]


def test_refuses_a_depth_that_nobody_published():
    with pytest.raises(ValueError, match=r"depth must be one of \[10, 18, 34, 50\], got 20"):
        CT3DVisionConfig.from_depth(20)


@pytest.mark.parametrize(("depth", "block_type"), [(50, "r2plus1d"), (18, "bottleneck")])
def test_refuses_a_block_type_of_another_depth(depth, block_type):
    with pytest.raises(ValueError, match=rf"got '{block_type}' at {depth}\. Set layers"):
        CT3DVisionConfig.from_depth(depth, block_type=block_type)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("hiden_sizes", "hidden_sizes"),
        ("hidden_size", "hidden_sizes"),
        ("layer", "layers"),
        ("block_types", "block_type"),
        ("stem_kernel_sizes", "stem_kernel_size"),
    ],
)
def test_refuses_a_field_that_is_almost_one_of_its_own(name, meant):
    with pytest.raises(TypeError, match=rf"{name} is no field of CT3DVisionConfig.* Write {meant}"):
        CT3DVisionConfig(**{name: 1})


def test_keeps_the_fields_of_transformers_and_those_of_users(tmp_path):
    config = CT3DVisionConfig(num_labels=3, torch_dtype="float32", problem_type=None, site="east wing")
    config.architectures = ["CT3DVisionModel"]
    config.save_pretrained(tmp_path)
    reloaded = CT3DVisionConfig.from_pretrained(tmp_path, return_unused_kwargs=False)
    assert reloaded.site == "east wing"
    assert reloaded.num_labels == 3


def test_no_dilation_is_a_dilation_of_one_in_every_stage():
    assert CT3DVisionConfig(layers=[1, 2, 1], hidden_sizes=[4, 8, 8]).stage_dilations == [1, 1, 1]
    assert CT3DVisionConfig(dilations=[1, 1, 2, 4]).stage_dilations == [1, 1, 2, 4]


def test_refuses_dilations_that_do_not_match_the_stages():
    with pytest.raises(StrictDataclassClassValidationError, match=r"got \[1, 2\] for \(2, 2, 2, 2\)"):
        CT3DVisionConfig(dilations=[1, 2])


def test_refuses_bottlenecks_that_cannot_be_divided():
    with pytest.raises(StrictDataclassClassValidationError, match=r"multiples of 4 .* got \[64, 66\]"):
        CT3DVisionConfig(block_type="bottleneck", hidden_sizes=[64, 66], layers=[1, 1])


def test_refuses_to_pad_channels_that_become_fewer():
    with pytest.raises(StrictDataclassClassValidationError, match=r"must not shrink .* got \[8, 4\]"):
        CT3DVisionConfig(shortcut="pad", hidden_sizes=[8, 4], layers=[1, 1])


def test_refuses_a_factored_stem_without_channels():
    with pytest.raises(StrictDataclassClassValidationError, match="stem_hidden_size must be positive, got 0"):
        CT3DVisionConfig(stem_hidden_size=0)
