"""PNG, JPEG and TIFF files -> one Pillow image, or a reason why not."""

import os
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

# A digital radiograph has up to 4,000 x 5,000 pixels; a mammogram and a scanned film twice that.
MAX_PIXELS = 80_000_000
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "WEBP", "GIF", "JPEG2000", "PPM")


def read_image(path: str | os.PathLike[str] | Mapping[str, Any]) -> Image.Image:
    """Read all pixels of an image file, upright as its EXIF tag says, in the depth of the file.

    Args:
        path: Of the file; or ``{"path", "bytes"}`` of ``datasets.Image``, the path where there are no bytes.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no image of a known format, has several frames or more than 80 million pixels, or
            ends too early; or if a mapping has neither bytes nor a path.
    """
    path, source = _source_of(path)
    try:
        with Image.open(source, formats=FORMATS) as image:
            _require_one_frame(image, path)
            image.load()
            return ImageOps.exif_transpose(image)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise _too_large(path, "even more") from error
    except Image.UnidentifiedImageError as error:
        raise ValueError(
            f"an image must be one of {', '.join(FORMATS)}, got another file at {path}. Convert it to PNG, "
            "DICOM with its window."
        ) from error
    except (OSError, SyntaxError) as error:  # how Pillow says that chunks are damaged
        raise ValueError(f"an image must be whole, got {path}: {error}. Copy the file again.") from error


def _source_of(image: str | os.PathLike[str] | Mapping[str, Any]) -> tuple[Path | str, Path | BytesIO]:
    """What to call an image in a message, and what to open."""
    if isinstance(image, Mapping):
        if image.get("bytes") is not None:
            return "the bytes of a row", BytesIO(image["bytes"])
        if image.get("path") is None:
            raise ValueError(
                f"an image must have bytes or a path, got neither in {sorted(image)}. Fill in one of them."
            )
        path = Path(image["path"])
    else:
        path = Path(image)
    if not path.is_file():
        raise FileNotFoundError(f"an image must be a file, got none at {path}. Correct the path.")
    return path, path


def _require_one_frame(image: Image.Image, path: Path | str) -> None:
    num_frames = getattr(image, "n_frames", 1)
    if num_frames > 1:
        raise ValueError(
            f"an image must have one frame, got {num_frames} in {path}. Save the one that the report is of."
        )
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(path, f"{image.width} x {image.height}")


def _too_large(path: Path | str, found: str) -> ValueError:
    return ValueError(
        f"an image must have at most {MAX_PIXELS:,} pixels, got {found} in {path}. Make it smaller."
    )
