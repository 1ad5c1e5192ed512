"""transformers' common tests of processors, on ours. ``conformance.py`` runs it."""

import unittest
from typing import Any

import numpy as np
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import ProcessorTesterMixin
from transformers import ViTImageProcessorPil

from hub_contract.common_tests.skipping import not_for_us
from hub_contract.stock_models import build_tokenizer
from radtower import CT3DImageProcessor, MedCLIPProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing

SPACING_MM = (3.0, 2.0, 2.0)
PICTURES_ONLY = "a scan is no picture: one channel of Hounsfield units with a voxel size"
NO_SPACING = "an array alone says no voxel size; it is asked for, not guessed"
OWN_SETTINGS = (
    "`max_length` and `instruction` belong to the processor; texts are always padded to the longest and cut, "
    "and settings of the parts in a call (`padding`, `images_kwargs`) are refused"
)
EVERY_PROCESSOR = dict.fromkeys(
    [
        "test_call_arguments_default_none",
        "test_call_arguments_not_in_attributes",
        "test_call_arguments_not_in_processor_kwargs",
        "test_doubly_passed_kwargs_0_images",
        "test_flat_kwarg_applied_when_modality_dict_lacks_it",
        "test_init_arguments_not_in_processor_kwargs",
        "test_kwargs_overrides_default_subprocessor_kwargs_0_images",
        "test_overlapping_text_image_kwargs_handling_0_images",
        "test_processor_text_has_no_visual",
        "test_structured_kwargs_nested_from_dict_0_images",
        "test_subprocessor_defaults_preserved_by_kwargs_0_images",
        "test_unstructured_kwargs_0_images",
        "test_unstructured_kwargs_batched_0_images",
    ],
    OWN_SETTINGS,
)


def _make_volume() -> Volume:
    array = np.random.default_rng(0).integers(-1000, 600, (9, 11, 10)).astype(np.int16)
    return Volume(array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("test", "none"))


class _VolumeTester(ImageProcessingTester):
    """Scans in place of pictures."""

    def __init__(self, parent: Any, **kwargs: Any) -> None:
        super().__init__(parent, num_channels=1, spacing_mm=[3.0, 3.0, 3.0], size=[8, 8, 8], **kwargs)

    def _get_image_processing_classes(self) -> dict[str, type]:
        return {"pil": CT3DImageProcessor}

    def prepare_image_inputs(self, batch_size: int | None = None, **kwargs: Any) -> list[Volume]:
        return [_make_volume() for _ in range(self.batch_size if batch_size is None else batch_size)]

    def expected_output_image_shape(self, images: Any) -> tuple[int, ...]:
        return (1, 8, 8, 8)


@not_for_us(
    {
        "test_call_pil": PICTURES_ONLY,
        "test_call_numpy_4_channels": PICTURES_ONLY,
        "test_call_numpy": NO_SPACING,
        "test_call_pytorch": NO_SPACING,
        "test_new_models_require_torchvision_backend": "nothing here needs torchvision",
        "test_valid_kwargs_set": (
            "wants the settings under the name CT3DImageProcessorKwargs; ours are CT3DImagesKwargs, which "
            "published code carries"
        ),
    }
)
class CT3DImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = _VolumeTester
    test_cast_dtype = True


@not_for_us(EVERY_PROCESSOR)
class MedCLIPProcessorOfPicturesTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MedCLIPProcessor

    @classmethod
    def _setup_image_processor(cls) -> Any:
        return ViTImageProcessorPil(size={"height": 16, "width": 16})

    @classmethod
    def _setup_tokenizer(cls) -> Any:
        return build_tokenizer()


@not_for_us(EVERY_PROCESSOR)
class MedCLIPProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = MedCLIPProcessor

    @classmethod
    def _setup_image_processor(cls) -> Any:
        return CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8))

    @classmethod
    def _setup_tokenizer(cls) -> Any:
        return build_tokenizer()

    def prepare_images_inputs(self, batch_size: int | None = None, nested: bool = False) -> Any:
        return _make_volume() if batch_size is None else [_make_volume() for _ in range(batch_size)]
