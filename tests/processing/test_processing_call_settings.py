"""Settings of the parts in one call of the dual tower's processor."""

import numpy as np
import pytest
import torch
from transformers import ViTImageProcessorPil

from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor

SPACING_MM = (3.0, 3.0, 3.0)
REPORTS = ["no", "There is no nodule"]


@pytest.fixture
def processor(tiny_tokenizer) -> MedCLIPProcessor:
    images = CT3DImageProcessor(spacing_mm=SPACING_MM, size=(4, 6, 5))
    return MedCLIPProcessor(images, tiny_tokenizer, max_length=6)


@pytest.fixture
def picture_processor(tiny_tokenizer) -> MedCLIPProcessor:
    images = ViTImageProcessorPil(size={"height": 4, "width": 6})
    return MedCLIPProcessor(images, tiny_tokenizer, max_length=6)


@pytest.fixture
def volume_hu() -> torch.Tensor:
    return torch.linspace(-1000, 400, 5 * 6 * 5).view(5, 6, 5)


def _lengths(inputs):
    return inputs["attention_mask"].sum(dim=1).tolist()


@pytest.mark.parametrize("by_part", [False, True])
def test_texts_are_padded_and_cut_as_a_call_says_flat_or_by_part(processor, by_part):
    settings = {"padding": "max_length", "max_length": 9, "truncation": True, "padding_side": "right"}
    inputs = processor(text=REPORTS, **({"text_kwargs": settings} if by_part else settings))
    ids = [processor.tokenizer(text).input_ids for text in REPORTS]
    assert inputs["input_ids"].tolist() == [row + [0] * (9 - len(row)) for row in ids]
    assert inputs["attention_mask"].tolist() == [[1] * len(row) + [0] * (9 - len(row)) for row in ids]


def test_the_length_of_a_call_cuts_and_no_truncation_keeps_all(processor):
    report = "There is no nodule, no effusion. There is no nodule."
    whole = processor.tokenizer(report).input_ids
    assert len(whole) > 6
    assert processor(text=report)["input_ids"].tolist() == [whole[:6]]
    assert processor(text=report, max_length=8)["input_ids"].tolist() == [whole[:8]]
    assert processor(text=report, truncation=False)["input_ids"].tolist() == [whole]
    assert processor(text=report, padding="max_length")["input_ids"].tolist() == [whole[:6]]
    assert processor(text="no", padding="max_length")["input_ids"].shape == (1, 6)


def test_the_instruction_is_part_of_what_is_cut(tiny_tokenizer):
    processor = MedCLIPProcessor(CT3DImageProcessor(), tiny_tokenizer, instruction="Describe {text} present")
    whole = tiny_tokenizer("Describe no nodule present").input_ids
    found = processor(text="no nodule", max_length=4, padding="max_length")["input_ids"].tolist()
    assert found == [whole[:4]]


def test_the_mask_tells_padding_where_the_end_token_pads_and_ends_texts(tiny_tokenizer):
    tiny_tokenizer.pad_token = None
    processor = MedCLIPProcessor(CT3DImageProcessor(), tiny_tokenizer)
    inputs = processor(text="no<eos>", padding="max_length", max_length=5)
    end = tiny_tokenizer.eos_token_id
    assert inputs["input_ids"][0].tolist().count(end) == 3
    assert inputs["attention_mask"].tolist() == [[0, 0, 1, 1, 1]]


def test_a_length_that_came_with_the_tokenizer_cuts_nothing_and_its_padding_is_taken(processor, tmp_path):
    processor.tokenizer.save_pretrained(tmp_path)
    loaded = type(processor.tokenizer).from_pretrained(tmp_path, max_length=2, padding="max_length")
    inputs = MedCLIPProcessor(processor.image_processor, loaded, max_length=7)(text=REPORTS)
    assert inputs["input_ids"].shape == (2, 7)
    assert _lengths(inputs) == [len(loaded(text).input_ids) for text in REPORTS]


def test_texts_without_padding_come_as_lists(processor):
    inputs = processor(text=REPORTS, padding=False, return_tensors=None)
    assert inputs["input_ids"] == [processor.tokenizer(text).input_ids for text in REPORTS]
    assert inputs["attention_mask"] == [[1] * len(row) for row in inputs["input_ids"]]


def test_a_setting_of_none_is_as_if_left_out(processor):
    expected = processor(text=REPORTS)
    found = processor(text=REPORTS, padding=None, truncation=None, max_length=None, stride=None)
    assert {name: value.tolist() for name, value in found.items()} == {
        name: value.tolist() for name, value in expected.items()
    }


def test_texts_give_what_else_is_asked_for(processor):
    asked = processor(text=REPORTS, return_length=True, return_special_tokens_mask=True)
    assert set(asked) == {"input_ids", "attention_mask", "length", "special_tokens_mask"}
    assert asked["special_tokens_mask"].sum(dim=1).tolist() == [
        1 + padding for padding in (asked["attention_mask"] == 0).sum(dim=1).tolist()
    ]  # <bos> and padding
    multiple = processor(text=REPORTS, pad_to_multiple_of=4, max_length=8, add_special_tokens=False)
    assert multiple["input_ids"].shape[1] % 4 == 0
    assert processor.tokenizer.bos_token_id not in multiple["input_ids"]


@pytest.mark.parametrize("by_part", [False, True])
def test_scans_are_prepared_as_a_call_says_flat_or_by_part(processor, volume_hu, by_part):
    settings = {"windows_hu": ((-160.0, 240.0),), "size": (3, 5, 4)}
    given = {"images_kwargs": settings} if by_part else settings
    found = processor(volume_hu, "no", SPACING_MM, max_length=5, **given)
    expected = processor.image_processor(volume_hu, SPACING_MM, **settings)["pixel_values"]
    assert expected.shape == (1, 1, 3, 5, 4)
    assert torch.equal(found["pixel_values"], expected)
    assert found["input_ids"].tolist() == processor(text="no")["input_ids"].tolist()


def test_the_voxel_size_is_asked_for_whatever_the_settings(processor, volume_hu):
    with pytest.raises(ValueError, match="spacings_mm must give the voxel size of every array, got None"):
        processor(volume_hu, images_kwargs={"spacing_mm": (2.0, 2.0, 2.0)})


@pytest.mark.parametrize("by_part", [False, True])
def test_pictures_are_prepared_as_a_call_says_flat_or_by_part(picture_processor, by_part):
    gray = np.arange(35, dtype=np.uint8).reshape(5, 7) * 7
    settings = {"do_normalize": False, "size": {"height": 5, "width": 7}}
    found = picture_processor(gray, **({"images_kwargs": settings} if by_part else settings))
    expected = torch.from_numpy(gray).float().div(255).expand(1, 3, 5, 7)
    torch.testing.assert_close(found["pixel_values"], expected)


def test_what_both_parts_have_goes_to_both_or_to_one(processor, volume_hu):
    def types(**settings):
        inputs = processor(volume_hu, "no", SPACING_MM, **settings)
        return [type(inputs[name]).__name__ for name in ("pixel_values", "input_ids")]

    assert types() == ["Tensor", "Tensor"]
    assert types(return_tensors="np") == ["ndarray", "ndarray"]
    assert types(text_kwargs={"return_tensors": "np"}) == ["Tensor", "ndarray"]
    assert types(common_kwargs={"return_tensors": "np"}) == ["ndarray", "ndarray"]
    common = {"return_tensors": "np", "padding": "max_length"}
    assert types(common_kwargs=common, images_kwargs={"return_tensors": "pt"}) == ["Tensor", "ndarray"]
    assert processor(text="no", common_kwargs=common, max_length=4)["input_ids"].shape == (1, 4)


def test_settings_of_a_part_that_is_not_asked_are_of_no_effect(processor, volume_hu):
    found = processor(volume_hu, spacings_mm=SPACING_MM, padding=True, truncation=True)
    assert set(found) == {"pixel_values"}
    assert set(processor(text="no", size=(3, 3, 3))) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    ("part", "settings"),
    [("text_kwargs", {"padding": "do_not_pad"}), ("images_kwargs", {"size": (3, 3, 3)})],
)
def test_refuses_a_setting_that_is_given_twice(processor, part, settings):
    name = next(iter(settings))
    with pytest.raises(ValueError, match=rf"argument {name} was passed two times:\nin a .* for {part}"):
        processor(text="no", **settings, **{part: settings})


@pytest.mark.parametrize(
    ("given", "place"),
    [
        ({"maximum": 3}, "a call"),
        ({"text_kwargs": {"maximum": 3}}, "text_kwargs"),
        ({"text_kwargs": {"maximum": 3}, "images_kwargs": {"size": (3, 3, 3)}}, "text_kwargs"),
        ({"images_kwargs": {"maximum": 3}}, "images_kwargs"),
        ({"common_kwargs": {"maximum": 3}}, "a call"),
    ],
)
def test_refuses_a_setting_that_nobody_knows(processor, given, place):
    with pytest.raises(TypeError, match=rf"settings of {place} must be among .*, got maximum\. Leave"):
        processor(text="no", **given)


@pytest.mark.parametrize(
    ("name", "value", "instead"),
    [
        ("is_split_into_words", True, "one string"),
        ("return_mm_token_type_ids", True, "No token stands for an image"),
        ("return_offsets_mapping", True, "Call processor.tokenizer"),
        ("return_overflowing_tokens", True, "Split long texts"),
        ("return_text_replacement_offsets", True, "No token stands for an image"),
        ("sanitize_control_tokens", True, "No token stands for an image"),
        ("stride", 2, "Split long texts"),
        ("text_pair", "no", "Join both"),
        ("text_pair_target", "no", "Join both"),
        ("text_target", "no", "a call of its own"),
    ],
)
def test_refuses_what_a_tokenizer_has_and_a_dual_tower_has_no_use_for(processor, name, value, instead):
    with pytest.raises(ValueError, match=rf"{name} must be left out, got {value!r}\. .*{instead}"):
        processor(text="no", **{name: value})
    assert set(processor(text="no", **{name: None})) == {"input_ids", "attention_mask"}


def test_refuses_texts_without_a_mask(processor):
    with pytest.raises(ValueError, match="return_attention_mask must be left out, got False"):
        processor(text="no", return_attention_mask=False)
    assert "attention_mask" in processor(text="no", return_attention_mask=True)


def test_refuses_to_cut_a_second_text(processor):
    with pytest.raises(ValueError, match="truncation must not be 'only_second'"):
        processor(text="no", truncation="only_second")


def test_refuses_the_layout_of_an_array_that_is_gone_by_then(picture_processor):
    with pytest.raises(ValueError, match="input_data_format must be left out, got 'channels_first'"):
        picture_processor(np.zeros((5, 7), np.uint8), input_data_format="channels_first")


def test_refuses_settings_of_pictures_for_scans(processor, volume_hu):
    with pytest.raises(ValueError, match=r"rescale_factor must be left out, got 0\.5: .* of pictures"):
        processor(volume_hu, spacings_mm=SPACING_MM, rescale_factor=0.5)
