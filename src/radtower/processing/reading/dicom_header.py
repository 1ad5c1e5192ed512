"""Read what the headers of DICOM slices and frames say about geometry, rescale and series.

Coordinates are DICOM's: LPS, millimeters. Nothing that identifies the patient is looked at.
"""

import re
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import SimpleITK as sitk

from radtower.processing.reading.functional_groups import (
    MEASURES_GROUP,
    ORIENTATION_GROUP,
    POSITION_GROUP,
    RESCALE_GROUP,
    group_value,
    read_functional_groups,
)
from radtower.processing.reading.sitk_image import bytes_of_pixel

UID_TAG, STUDY_TAG, CLASS_TAG = "0020|000e", "0020|000d", "0008|0016"
MODALITY_TAG, SAMPLES_TAG = "0008|0060", "0028|0002"
POSITION_TAG, ORIENTATION_TAG = "0020|0032", "0020|0037"
SLOPE_TAG, INTERCEPT_TAG = "0028|1053", "0028|1052"
IMAGE_TYPE_TAG, BODY_PART_TAG, KERNEL_TAG = "0008|0008", "0018|0015", "0018|1210"
CT_CLASS = "1.2.840.10008.5.1.4.1.1.2"  # SOP class of CT slices; the next two are Enhanced CT
MULTI_FRAME_CT_CLASSES = (f"{CT_CLASS}.1", f"{CT_CLASS}.2")
PROJECTION = re.compile(r"\bM(IN|AX)?[ _]?IP\b|\bPROJECTION")  # in ImageType: no slices of a body
META_BYTES = 144  # preamble, magic and the length of what follows of the file meta information
START_BYTES = 1024  # of a file; the SOP class is among them


@dataclass(frozen=True)
class SeriesHeader:
    """What tells one series from another, and nothing about the patient."""

    uid: str
    study_uid: str
    modality: str
    body_part: str
    kernel: str
    is_localizer: bool
    is_derived: bool = False  # reformatted or otherwise computed from other images
    is_projection: bool = False  # of maxima or minima


@dataclass(frozen=True, eq=False)
class DicomSlice:
    """What the header of one slice, or of one frame of a multi-frame file, says."""

    path: Path
    series: SeriesHeader
    num_samples: int  # per pixel: 1 for gray, 3 for color
    voxel_bytes: int
    grid: tuple[float, ...]  # columns, rows, in-plane spacing (x, y)
    position_mm: np.ndarray | None  # (3,); None when the header has no ImagePositionPatient
    directions: np.ndarray | None  # (2, 3) of a row and a column; None as above
    rescale: tuple[float, float] | None  # slope, intercept; None when the header has neither
    frame: int | None = None  # in the order of storage; None in a file of one slice
    num_frames: int = 1  # more where they are not taken apart, because the file is no Enhanced CT


def read_slices(path: Path) -> list[DicomSlice]:
    """Return the slices of one file: several for a multi-frame file, none if it is not a DICOM image.

    Raises:
        ValueError: If the file is a damaged CT, or an Enhanced CT without what its frames need.
    """
    reader = sitk.ImageFileReader()
    reader.SetImageIO("GDCMImageIO")
    reader.SetFileName(str(path))
    try:
        reader.ReadImageInformation()
    except RuntimeError:
        _require_not_damaged(path)
        return []
    only = _read_header(reader, path)
    num_frames = reader.GetSize()[2] if reader.GetDimension() > 2 else 1
    if num_frames == 1 or only.series.modality != "CT" or only.num_samples != 1:
        return [only]
    if _text(reader, CLASS_TAG) not in MULTI_FRAME_CT_CLASSES:
        return [replace(only, num_frames=num_frames)]  # refused only if it is chosen
    return _frames(only, num_frames)


def _read_header(reader: sitk.ImageFileReader, path: Path) -> DicomSlice:
    directions = _numbers(_text(reader, ORIENTATION_TAG), 6)
    image_type = _text(reader, IMAGE_TYPE_TAG).upper()
    return DicomSlice(
        path=path,
        series=SeriesHeader(
            uid=_text(reader, UID_TAG),
            study_uid=_text(reader, STUDY_TAG),
            modality=_text(reader, MODALITY_TAG),
            body_part=_text(reader, BODY_PART_TAG).upper(),
            kernel=_text(reader, KERNEL_TAG),
            is_localizer="LOCALIZER" in image_type,
            is_derived="DERIVED" in image_type or "SECONDARY" in image_type,
            is_projection=PROJECTION.search(image_type) is not None,
        ),
        num_samples=int(_text(reader, SAMPLES_TAG) or 1),
        voxel_bytes=bytes_of_pixel(reader.GetPixelID()),
        grid=(*reader.GetSize()[:2], *reader.GetSpacing()[:2]),
        position_mm=_numbers(_text(reader, POSITION_TAG), 3),
        directions=None if directions is None else directions.reshape(2, 3),
        rescale=_rescale(_text(reader, SLOPE_TAG), _text(reader, INTERCEPT_TAG)),
    )


def _frames(file: DicomSlice, num_frames: int) -> list[DicomSlice]:
    shared, frames = read_functional_groups(file.path)
    if len(frames) != num_frames:
        raise ValueError(
            f"every frame must have its functional groups, got {len(frames)} for {num_frames} frames in "
            f"{file.path.name}. Export the scan again."
        )
    slices = []
    for index, own in enumerate(frames):

        def text(sequence: tuple[int, int], element: tuple[int, int], own: dict = own) -> str:
            return (group_value([own, shared], sequence, element) or b"").decode("ascii", "replace")

        directions = _numbers(text(ORIENTATION_GROUP, (0x0020, 0x0037)), 6)
        row_column_mm = _numbers(text(MEASURES_GROUP, (0x0028, 0x0030)), 2)
        if row_column_mm is None:
            raise ValueError(
                f"every frame must have PixelSpacing, got none in frame {index} of {file.path.name}. "
                "Export the scan again."
            )
        slices.append(
            replace(
                file,
                grid=(*file.grid[:2], *row_column_mm[::-1].tolist()),  # stated as (y, x)
                position_mm=_numbers(text(POSITION_GROUP, (0x0020, 0x0032)), 3),
                directions=None if directions is None else directions.reshape(2, 3),
                rescale=_rescale(
                    text(RESCALE_GROUP, (0x0028, 0x1053)), text(RESCALE_GROUP, (0x0028, 0x1052))
                ),
                frame=index,
            )
        )
    return slices


def _text(reader: sitk.ImageFileReader, tag: str) -> str:
    return reader.GetMetaData(tag).strip().strip("\0") if reader.HasMetaDataKey(tag) else ""


def _numbers(text: str, count: int) -> np.ndarray | None:
    try:
        values = np.array([float(part) for part in text.strip("\0 ").split("\\") if part.strip()])
    except ValueError:
        return None
    return values if len(values) == count and np.isfinite(values).all() else None


def _rescale(slope_text: str, intercept_text: str) -> tuple[float, float] | None:
    slope, intercept = _numbers(slope_text, 1), _numbers(intercept_text, 1)
    return None if slope is None or intercept is None else (float(slope[0]), float(intercept[0]))


def _require_not_damaged(path: Path) -> None:
    """Refuse a CT slice whose header or pixels are cut off: without it the stack may look complete."""
    with path.open("rb") as stream:
        start = stream.read(START_BYTES)
    classes = [f"{name}\0".encode() for name in (CT_CLASS, *MULTI_FRAME_CT_CLASSES)]
    is_cut = 132 <= len(start) < META_BYTES + int.from_bytes(start[META_BYTES - 4 : META_BYTES], "little")
    if start[128:132] == b"DICM" and (is_cut or any(name in start for name in classes)):
        raise ValueError(f"every slice must be whole, got a truncated file {path.name}. Copy it again.")
