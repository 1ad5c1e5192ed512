import pytest
import torch

from radtower.processing.image_processing_ct3d import CT3DImageProcessor

SPACING_MM = (3.0, 2.0, 2.5)


@pytest.fixture
def processor() -> CT3DImageProcessor:
    return CT3DImageProcessor(spacing_mm=SPACING_MM, size=(4, 6, 5), cache_size=(6, 8, 7))


@pytest.fixture
def volume_hu() -> torch.Tensor:
    return torch.linspace(-1000, 400, 6 * 7 * 8).view(6, 7, 8)


@pytest.mark.parametrize(
    "settings",
    [
        {"spacing_mm": (2.0, 3.0, 1.5)},
        {"size": [5, 3, 7]},
        {"windows_hu": [[-160, 240], [-1000, 0]]},
        {"fill_hu": -900.0, "size": (9, 9, 11)},
        {"orientation": "RAS"},
        {"antialias": False, "spacing_mm": (6.0, 4.0, 5.0)},
        {"crop": "lung"},
    ],
)
@pytest.mark.filterwarnings("ignore:crop is 'lung'")
def test_a_setting_of_a_call_does_what_it_does_in_the_constructor_and_no_more(processor, volume_hu, settings):
    made_so = CT3DImageProcessor(**({"spacing_mm": SPACING_MM, "size": (4, 6, 5)} | settings))
    before = processor.to_dict()
    found = processor(volume_hu, spacings_mm=SPACING_MM, **settings)["pixel_values"]
    assert torch.equal(found, made_so(volume_hu, spacings_mm=SPACING_MM)["pixel_values"])
    assert processor.to_dict() == before


def test_a_setting_of_none_is_as_if_left_out(processor, volume_hu):
    found = processor(volume_hu, SPACING_MM, size=None, fill_hu=None)["pixel_values"]
    assert torch.equal(found, processor(volume_hu, SPACING_MM)["pixel_values"])


def test_files_are_read_by_the_reader_of_the_processor_whatever_the_settings_of_a_call(processor, volume_hu):
    class Volume:
        array_hu, spacing_mm, orientation = volume_hu, SPACING_MM, "LPS"

    processor.reader = lambda path: {"scan": Volume()}[path]
    expected = processor(volume_hu, SPACING_MM, size=(3, 3, 3))["pixel_values"]
    assert torch.equal(processor("scan", size=(3, 3, 3))["pixel_values"], expected)


def test_a_setting_of_a_call_is_checked_as_in_the_constructor(processor, volume_hu):
    with pytest.raises(ValueError, match=r"windows_hu must be \(low, high\) pairs .* got \(200, -1000\)"):
        processor(volume_hu, SPACING_MM, windows_hu=[(200, -1000)])


def test_refuses_settings_of_pictures_by_name(processor, volume_hu):
    with pytest.raises(ValueError, match=r"do_resize must be left out, got False: .* Scans have spacing_mm"):
        processor(volume_hu, SPACING_MM, do_resize=False)


def test_refuses_settings_that_nobody_knows(processor, volume_hu):
    with pytest.raises(TypeError, match=r"settings must be among spacing_mm, .*, got windows"):
        processor(volume_hu, SPACING_MM, windows=[(0, 1)])
