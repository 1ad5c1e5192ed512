import pytest
import torch
from transformers import AutoProcessor

from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor


@pytest.fixture
def image_processor() -> CT3DImageProcessor:
    return CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(4, 6, 5))


@pytest.fixture
def processor(image_processor, tiny_tokenizer) -> MedCLIPProcessor:
    return MedCLIPProcessor(image_processor, tiny_tokenizer, max_length=6)


def test_prepares_scans_and_reports_together(processor, tiny_tokenizer):
    volume_hu = torch.full((4, 6, 5), -100.0)
    volume_hu[0] = -1000.0  # an array without air is refused
    inputs = processor([volume_hu, volume_hu], ["no nodule", "There is"], spacings_mm=[(3.0, 3.0, 3.0)] * 2)
    assert set(inputs) == {"pixel_values", "input_ids", "attention_mask"}
    # -100 HU lies three quarters into the window from -1000 to 200.
    torch.testing.assert_close(inputs["pixel_values"][:, :, 1:], torch.full((2, 1, 3, 6, 5), 0.5))
    assert inputs["pixel_values"][:, :, 0].unique().tolist() == [-1.0]
    expected = [tiny_tokenizer(text).input_ids for text in ("no nodule", "There is")]
    assert inputs["input_ids"].tolist() == expected
    assert inputs["attention_mask"].tolist() == [[1, 1, 1], [1, 1, 1]]


def test_the_voxel_size_reaches_the_image_processor(processor, image_processor):
    volume_hu = torch.linspace(-900, 100, 4 * 6 * 5).view(4, 6, 5)
    spacing_mm = (6.0, 1.5, 3.0)
    inputs = processor(volume_hu, spacings_mm=spacing_mm)
    assert set(inputs) == {"pixel_values"}
    assert torch.equal(
        inputs["pixel_values"], image_processor(volume_hu, spacings_mm=spacing_mm)["pixel_values"]
    )


def test_reports_are_padded_where_the_tokenizer_pads_and_masked_there(processor):
    inputs = processor(text=["no", "There is no nodule"])
    assert set(inputs) == {"input_ids", "attention_mask"}
    assert inputs["input_ids"][0, :3].tolist() == [0, 0, 0]
    assert inputs["attention_mask"].tolist() == [[0, 0, 0, 1, 1], [1, 1, 1, 1, 1]]


def test_a_single_report_is_a_batch_of_one(processor, tiny_tokenizer):
    assert processor(text="There is no")["input_ids"].tolist() == [tiny_tokenizer("There is no").input_ids]


def test_long_reports_are_cut_at_the_processors_length_or_the_callers(processor):
    report = "There is no nodule, no effusion. There is no nodule."
    assert processor(text=report)["input_ids"].shape == (1, 6)
    assert processor(text=report, max_length=4)["input_ids"].shape == (1, 4)


def test_the_instruction_is_wrapped_around_every_report(image_processor, tiny_tokenizer):
    processor = MedCLIPProcessor(image_processor, tiny_tokenizer, instruction="Describe {text} present")
    ids = processor(text=["no nodule", "{braces}"])["input_ids"]
    assert tiny_tokenizer.batch_decode(ids, skip_special_tokens=True) == [
        "Describe no nodule present",
        "Describe {braces} present",
    ]


def test_pads_with_the_end_token_where_the_tokenizer_has_no_pad_token(image_processor, tiny_tokenizer):
    tiny_tokenizer.pad_token = None
    processor = MedCLIPProcessor(image_processor, tiny_tokenizer)
    assert processor(text=["no", "There is"])["input_ids"][0, 0] == tiny_tokenizer.eos_token_id


def test_reloads_with_everything_it_was_told(image_processor, tiny_tokenizer, tmp_path):
    processor = MedCLIPProcessor(image_processor, tiny_tokenizer, max_length=9, instruction="Describe {text}")
    processor.save_pretrained(tmp_path)
    volume_hu = torch.linspace(-900, 100, 5 * 5 * 5).view(5, 5, 5)
    study = {"images": volume_hu, "text": "There is no nodule. " * 3, "spacings_mm": (2.0, 2.5, 3.5)}
    expected = processor(**study)
    assert expected["input_ids"].shape == (1, 9)
    for reloaded in (MedCLIPProcessor.from_pretrained(tmp_path), AutoProcessor.from_pretrained(tmp_path)):
        assert isinstance(reloaded, MedCLIPProcessor)
        assert (reloaded.max_length, reloaded.instruction) == (9, "Describe {text}")
        inputs = reloaded(**study)
        assert all(torch.equal(inputs[name], expected[name]) for name in expected)


def test_refuses_a_length_that_is_not_positive(image_processor, tiny_tokenizer):
    with pytest.raises(ValueError, match="max_length must be positive, got 0"):
        MedCLIPProcessor(image_processor, tiny_tokenizer, max_length=0)


def test_refuses_an_instruction_without_a_place_for_the_report(image_processor, tiny_tokenizer):
    with pytest.raises(ValueError, match=r"must contain \{text\}, got 'Describe the scan'"):
        MedCLIPProcessor(image_processor, tiny_tokenizer, instruction="Describe the scan")


def test_refuses_to_prepare_nothing(processor):
    with pytest.raises(ValueError, match="images or text must be given, got neither"):
        processor()


@pytest.mark.parametrize(("text", "positions"), [(["no", "", "is", "\n "], r"\[1, 3\]"), ("", r"\[0\]")])
def test_refuses_empty_reports(processor, text, positions):
    with pytest.raises(ValueError, match=f"nothing to read at positions {positions}"):
        processor(text=text)


def test_refuses_no_report(processor):
    with pytest.raises(ValueError, match="text must be at least one report, got none"):
        processor(text=[])


def test_returns_numpy_when_asked(tiny_medclip):
    inputs = tiny_medclip.processor(
        images=[torch.full((8, 8, 8), -400.0)],
        spacings_mm=[(3.0, 3.0, 3.0)],
        text="no effusion",
        return_tensors="np",
    )
    assert {type(value).__name__ for value in inputs.values()} == {"ndarray"}
    assert inputs["pixel_values"].mean() == pytest.approx(0.0, abs=1e-6)  # -400 is the middle of the window


def test_refuses_what_is_no_text_and_a_length_of_nothing(tiny_medclip):
    with pytest.raises(TypeError, match="strings, got bytes at position 0"):
        tiny_medclip.processor(text=[b"no effusion"])
    with pytest.raises(ValueError, match="max_length must be positive, got 0"):
        tiny_medclip.processor(text="no effusion", max_length=0)
