"""transformers' common tests of processors, on ours. ``conformance.py`` runs it."""

import unittest
from typing import Any
from unittest import mock

import numpy as np
from tests.test_image_processing_common import ImageProcessingTester, ImageProcessingTestMixin
from tests.test_processing_common import MODALITY_TEST_SPECS, ProcessorTesterMixin
from transformers import ViTImageProcessorPil

from hub_contract.common_tests.skipping import not_for_us
from hub_contract.stock_models import build_tokenizer
from radtower import CT3DImageProcessor, MedCLIPProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing

SPACING_MM = (3.0, 2.0, 2.0)
PICTURES_ONLY = (
    "a scan is no picture: one channel of Hounsfield units with a voxel size, never RGBA or Pillow"
)
NO_SPACING = (
    "an array alone says no voxel size; it is asked for (`spacings_mm`), not guessed; tests/processing/ does "
    "the same with it"
)
EVERY_PROCESSOR = {
    "test_init_arguments_not_in_processor_kwargs": (
        "every published `processor_config.json` has `max_length`, and a call may say another: the case for "
        "which the test calls itself too strict"
    ),
    "test_processor_text_has_no_visual": (
        "a dual tower pairs images and texts by row: leaving out the empty list that stands for no image "
        "would shift every pair after it in silence"
    ),
}


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
        "test_new_models_require_torchvision_backend": (
            "torchvision resamples in 2D; ours resamples in 3D with torch alone, which that backend is for"
        ),
    }
)
class CT3DImageProcessorTest(ImageProcessingTestMixin, unittest.TestCase):
    image_processor_tester_class = _VolumeTester
    test_cast_dtype = True


class _TwoParts(ProcessorTesterMixin):
    processor_class = MedCLIPProcessor

    @staticmethod
    def prepare_processor_dict() -> dict[str, Any]:
        # The length that the test gives its tokenizer: ours is that of the processor.
        return {"max_length": ProcessorTesterMixin.images_text_kwargs_max_length}

    @classmethod
    def _setup_tokenizer(cls) -> Any:
        return build_tokenizer()


@not_for_us(EVERY_PROCESSOR)
class MedCLIPProcessorOfPicturesTest(_TwoParts, unittest.TestCase):
    @classmethod
    def _setup_image_processor(cls) -> Any:
        return ViTImageProcessorPil(size={"height": 16, "width": 16})


@not_for_us(EVERY_PROCESSOR)
class MedCLIPProcessorTest(_TwoParts, unittest.TestCase):
    @classmethod
    def _setup_image_processor(cls) -> Any:
        return CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8))

    def setUp(self) -> None:
        # The tests see a setting at work by `rescale_factor`. That of scans: a window above all voxels.
        settings = {"init_time_kwargs": {"windows_hu": ((5000.0, 6000.0),)}}
        patch = mock.patch.dict(MODALITY_TEST_SPECS["images"], settings)
        patch.start()
        self.addCleanup(patch.stop)

    def prepare_images_inputs(self, batch_size: int | None = None, nested: bool = False) -> Any:
        return _make_volume() if batch_size is None else [_make_volume() for _ in range(batch_size)]
