"""Image files of a manifest -> what a 2D tower reads: chest radiographs, slices, figures.

Axes: C channels, Y rows, X columns.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pandas as pd
import torch

from radtower.data.preprocessing.worker_pool import available_cores
from radtower.processing.image_io import read_image
from radtower.processing.image_processing_2d import to_8_bit
from radtower.processing.processing_medclip import MedCLIPProcessor


class ImageFiles:
    """Images of studies, read and prepared each time they are asked for.

    Args:
        paths: Image file by volume id.
        processor: Of the dual tower, with a 2D image processor; or what prepares a list of images as it does.
    """

    def __init__(self, paths: Mapping[str, str], processor: Callable[..., Any]) -> None:
        self.paths = dict(paths)
        self.processor = processor

    def __call__(self, volume_id: str) -> torch.Tensor:
        """Give the ``pixel_values`` of a study: ``(C, Y, X)`` float32, as the image processor scales them."""
        pixels: torch.Tensor = self.processor(images=[read_image(self.paths[volume_id])])["pixel_values"][0]
        return pixels

    def refused(self, num_threads: int | None = None) -> dict[str, str]:
        """Read every image once, and give the reason for each that cannot be used, by volume id.

        Hours into a training is too late.

        Args:
            num_threads: None takes one per core that this process may use.
        """
        workers = num_threads or available_cores()
        with ThreadPoolExecutor(workers) as pool:
            reasons = pool.map(_reason_against, self.paths.values())
            return {volume_id: why for volume_id, why in zip(self.paths, reasons, strict=True) if why}


def usable_images(
    studies: pd.DataFrame, processor: MedCLIPProcessor, on_note: Callable[[str], None]
) -> tuple[ImageFiles, pd.DataFrame]:
    """Read every image once, and leave the studies out whose image cannot be used.

    Args:
        studies: Rows of a manifest.
        processor: Of the dual tower.
        on_note: Takes a line for all that are left out, and one for each.

    Returns:
        The images, and the rows that are left.

    Raises:
        ValueError: If none is left.
    """
    images = ImageFiles(dict(zip(studies["volume_id"], studies["image_path"], strict=True)), processor)
    refused = images.refused()
    if len(refused) == len(studies):
        raise ValueError(
            f"at least one image must be usable, got {len(refused)} that are not. The first says: "
            f"{next(iter(refused.values()))}"
        )
    if refused:
        on_note(f"{len(refused)} of {len(studies)} images are left out:")
    for reason in refused.values():
        on_note(f"  {reason}")
    return images, studies[~studies["volume_id"].isin(refused)]


def _reason_against(path: str) -> str | None:
    try:
        to_8_bit(read_image(path))
    except (OSError, ValueError) as error:
        message = str(error)
        return message if path in message else f"{path}: {message}"
    return None
