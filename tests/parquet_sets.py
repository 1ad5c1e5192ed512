"""Small data sets of images and reports as parquet, as they lie on the Hub."""

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import datasets
import numpy as np
from PIL import Image

from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, write_volume

SPACING_MM = (3.0, 3.0, 3.0)


def png(level: int, size: tuple[int, int] = (18, 22)) -> bytes:
    """An image of one gray level."""
    content = BytesIO()
    Image.fromarray(np.full(size, level, np.uint8)).save(content, "PNG")
    return content.getvalue()


def noisy_png(seed: int) -> bytes:
    """An image unlike that of any other seed."""
    content = BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (18, 22), dtype=np.uint8)).save(
        content, "PNG"
    )
    return content.getvalue()


def nifti(seed: int, size: tuple[int, int, int] = (8, 9, 10)) -> bytes:
    """A scan of noise in HU."""
    array = np.random.default_rng(seed).integers(-1000, 600, size).astype(np.int16)
    volume = Volume(array, SPACING_MM, affine_from_spacing(SPACING_MM), "LPS", VolumeSource("test", "none"))
    with TemporaryDirectory() as folder:
        write_volume(volume, Path(folder) / "scan.nii.gz")
        return (Path(folder) / "scan.nii.gz").read_bytes()


def write_set(
    folder: Path,
    images: Sequence[bytes | None],
    reports: Sequence[str | None],
    studies: Sequence[Any] | None = None,
    feature: Any = None,
    num_files: int = 1,
) -> Path:
    """Write rows to ``train-*.parquet``, one after the other through the files; gives the folder.

    Columns ``image`` (of feature ``Image``, if none is given), ``report`` and, where given, ``study_id``.
    """
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[Any]] = {
        "image": [{"bytes": content, "path": None} if content else None for content in images],
        "report": list(reports),
    }
    if studies is not None:
        columns["study_id"] = list(studies)
    kinds = {"image": feature or datasets.Image(), "report": datasets.Value("string")}
    if studies is not None:
        kinds["study_id"] = datasets.Value("string" if isinstance(studies[0], str) else "int64")
    for number in range(num_files):
        part = {name: cells[number::num_files] for name, cells in columns.items()}
        table = datasets.Dataset.from_dict(part, features=datasets.Features(kinds))
        table.to_parquet(folder / f"train-{number:05d}.parquet", batch_size=2)  # several row groups
    return folder
