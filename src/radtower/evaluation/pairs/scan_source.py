"""Where a tower finds the scans of a manifest: a cache, scan files, or image files."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radtower.data.images_2d import ImageFiles
from radtower.data.manifest import Manifest
from radtower.data.volume_cache import open_volume_cache
from radtower.evaluation.pairs.image_tower import ImageEncoder
from radtower.processing.image_io import read_image
from radtower.processing.volume_io import read_volume


def scan_source(
    model: ImageEncoder, manifest: Manifest, cache: str | Path | None = None
) -> Callable[[str], torch.Tensor]:
    """Return a function of a volume id that gives its ``pixel_values``, prepared as the model wants them.

    Args:
        model: Its processor prepares the scans.
        manifest: Says where they are.
        cache: Folder of ``radtower preprocess`` for a 3D tower. None reads the scan files, each time.

    Raises:
        ValueError: If the tower is 2D and there is a cache, or the cache was made with other settings or does
            not cover the manifest.
    """
    frame = manifest.frame
    if not model.processor.reads_volumes:
        if cache is not None:
            raise ValueError(
                f"cache must be left out for a tower of 2D images, got {cache}. It reads the image files."
            )
        return ImageFiles(dict(zip(frame["volume_id"], frame["image_path"], strict=True)), model.processor)
    return volume_source(model.processor.image_processor, manifest, cache)


def volume_source(
    image_processor: Any, manifest: Manifest, cache: str | Path | None = None
) -> Callable[[str], torch.Tensor]:
    """Return a function of a volume id that gives its ``pixel_values`` for a 3D tower.

    Args:
        image_processor: Prepares the scans.
        manifest: Says where they are.
        cache: Folder of ``radtower preprocess``. None reads the scan files, each time.

    Raises:
        ValueError: If the cache was made with other settings or does not cover the manifest.
    """
    if cache is not None:
        volumes = open_volume_cache(cache, image_processor)
        volumes.is_readable(manifest.frame["volume_id"])

        def from_cache(volume_id: str) -> torch.Tensor:
            if volume_id in volumes.failures and volume_id not in volumes:
                raise ValueError(volumes.failures[volume_id])
            return volumes[volume_id]

        return from_cache
    references = manifest.scans()

    def from_file(volume_id: str) -> torch.Tensor:
        pixels: torch.Tensor = image_processor(read_volume(references[volume_id]))["pixel_values"][0]
        return pixels

    return from_file


def picture_source(
    model: ImageEncoder, manifest: Manifest, cache: str | Path | None = None
) -> Callable[[str], np.ndarray]:
    """Return a function of a volume id that gives what a person looks at: the scan before its window.

    Args:
        model: A 3D tower has volumes, a 2D tower images.
        manifest: Says where they are.
        cache: Folder of ``radtower preprocess``, whose volumes are drawn as they were resampled.

    Returns:
        ``(Z, Y, X)`` in Hounsfield units, or an image ``(Y, X)`` or ``(Y, X, 3)``.
    """
    if not model.processor.reads_volumes:
        paths = dict(zip(manifest.frame["volume_id"], manifest.frame["image_path"], strict=True))

        def from_image(volume_id: str) -> np.ndarray:
            image = read_image(paths[volume_id])
            # Gray of any depth stays as it is; a palette, or transparency, becomes color.
            return np.asarray(image if image.mode in ("L", "I", "I;16", "F", "RGB") else image.convert("RGB"))

        return from_image
    if cache is not None:
        return open_volume_cache(cache, model.processor.image_processor).mapped_hu
    references = manifest.scans()
    return lambda volume_id: read_volume(references[volume_id]).array_hu
