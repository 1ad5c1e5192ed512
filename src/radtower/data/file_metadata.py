"""Text that hides in the headers of pictures and scans: find it, and take it out of pictures.

What a camera, a scanner or a program wrote there may name the patient. Nothing that RadTower writes has such
text, so any of it in a folder that is to leave the machine came from elsewhere.
"""

import gzip
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg")
SCAN_SUFFIXES = (".nii", ".nii.gz", ".nrrd", ".mha", ".mhd")

_PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
# What changes how the picture looks; everything else is about the picture.
_PNG_KEPT = frozenset(
    (b"IHDR", b"PLTE", b"IDAT", b"IEND", b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"sBIT", b"bKGD", b"pHYs")
)
_JPEG_MARKER, _JPEG_SCAN, _JPEG_APP0, _JPEG_APP14, _JPEG_COMMENT = 0xFF, 0xDA, 0xE0, 0xEE, 0xFE
_JPEG_APPS = range(0xE0, 0xF0)
_DICOM_MAGIC_AT = 128
_HEADER_BYTES = 1 << 20
# Text of a NIfTI-1 header (nifti1.h) and of a NIfTI-2 one (nifti2.h): name, first byte, bytes.
_NIFTI_1 = (
    ("data_type", 4, 10),
    ("db_name", 14, 18),
    ("descrip", 148, 80),
    ("aux_file", 228, 24),
    ("intent_name", 328, 16),
)
_NIFTI_2 = (("descrip", 240, 80), ("aux_file", 320, 24), ("intent_name", 508, 16))
_NIFTI_SIZES = {348: _NIFTI_1, 540: _NIFTI_2}
# Fields that describe the grid, in small letters; the rest is free text.
_META_IMAGE_FIELDS = frozenset(
    """objecttype ndims binarydata binarydatabyteordermsb elementbyteordermsb compresseddata
    compresseddatasize transformmatrix orientation rotation offset origin position centerofrotation
    anatomicalorientation elementspacing elementsize dimsize elementtype elementnumberofchannels headersize
    modality elementmin elementmax""".split()  # noqa: SIM905 -- a list of one word a line would fill a page
)
_NRRD_COMMENTS = ("# Complete NRRD file format specification at:", "# http://teem.sourceforge.net/nrrd/")
_NRRD_FREE_TEXT = ("content", "sample units", "labels", "units", "space units")
_PLAIN_UNITS = frozenset(("mm", '"mm"', '""', "none"))


def is_dicom(path: Path) -> bool:
    """Whether a file is DICOM by its content, or by its name where it lacks the preamble."""
    if path.suffix.lower() in (".dcm", ".dicom", ".ima") or path.name.upper() == "DICOMDIR":
        return True
    with path.open("rb") as file:
        return file.read(_DICOM_MAGIC_AT + 4)[_DICOM_MAGIC_AT:] == b"DICM"


def metadata_fields(path: Path) -> list[str]:
    """Return the names of header fields with text in a picture or a scan, never what they say.

    Args:
        path: PNG, JPEG, NIfTI, NRRD or MetaImage file.

    Raises:
        ValueError: If the file is damaged, or of another kind than its name says.
    """
    name = path.name.lower()
    try:
        if name.endswith(".png"):
            return [kind.decode("latin-1") for kind, _ in _png_chunks(path) if kind not in _PNG_KEPT]
        if name.endswith(PICTURE_SUFFIXES):
            return [f"segment {marker:X}" for marker, _ in _jpeg_segments(path) if _is_jpeg_text(marker)]
        if name.endswith((".nii", ".nii.gz")):
            return _nifti_fields(path)
        return _nrrd_fields(path) if name.endswith(".nrrd") else _meta_image_fields(path)
    except (OSError, struct.error, zlib.error, EOFError, IndexError) as error:
        raise ValueError(
            f"{path.name} must be a whole picture or scan of its kind, got {type(error).__name__} while its "
            "header was read. Leave it out."
        ) from None


def remove_picture_metadata(path: Path) -> None:
    """Rewrite a PNG or JPEG file without text, times, EXIF, color profile and what follows its end.

    Raises:
        ValueError: If it is no whole PNG or JPEG file.
    """
    if not metadata_fields(path):
        return
    if path.suffix.lower() == ".png":
        kept = [_PNG_SIGNATURE, *(data for kind, data in _png_chunks(path) if kind in _PNG_KEPT)]
    else:
        kept = [b"\xff\xd8", *(data for marker, data in _jpeg_segments(path) if not _is_jpeg_text(marker))]
    partial = path.with_name(f".{path.name}.partial")
    partial.write_bytes(b"".join(kept))
    partial.replace(path)  # not in place: the picture may be a hard link of one that is to stay as it is


def _png_chunks(path: Path) -> Iterator[tuple[bytes, bytes]]:
    """Kind and bytes of each chunk; bytes behind the last one are of the kind ``rest``."""
    content = path.read_bytes()
    if not content.startswith(_PNG_SIGNATURE):
        raise EOFError
    start, kind = len(_PNG_SIGNATURE), b""
    while kind != b"IEND":
        (length,) = struct.unpack_from(">I", content, start)
        kind, end = content[start + 4 : start + 8], start + 12 + length
        if end > len(content):
            raise EOFError
        yield kind, content[start:end]
        start = end
    if content[start:]:
        yield b"rest", content[start:]


def _jpeg_segments(path: Path) -> Iterator[tuple[int, bytes]]:
    """Marker and bytes of each segment in front of the picture, which comes last, with all that follows."""
    content = path.read_bytes()
    if not content.startswith(b"\xff\xd8\xff"):
        raise EOFError
    start = 2
    while True:
        if content[start] != _JPEG_MARKER:
            raise EOFError
        marker = content[start + 1]
        if marker == _JPEG_SCAN:
            end = content.rindex(b"\xff\xd9") + 2 if b"\xff\xd9" in content[start:] else len(content)
            yield marker, content[start:end]
            if content[end:]:
                yield _JPEG_COMMENT, content[end:]
            return
        (length,) = struct.unpack_from(">H", content, start + 2)
        yield marker, content[start : start + 2 + length]
        start += 2 + length


def _is_jpeg_text(marker: int) -> bool:
    """Whether a segment is EXIF, XMP, IPTC, a comment or the like; JFIF and Adobe's color rule are not."""
    return marker == _JPEG_COMMENT or (marker in _JPEG_APPS and marker not in (_JPEG_APP0, _JPEG_APP14))


def _nifti_fields(path: Path) -> list[str]:
    names = []
    if path.name.lower().endswith(".gz"):
        with path.open("rb") as file:
            flags = file.read(4)[3]
        names = ["file name of gzip"] if flags & 0x08 else []
        names += ["comment of gzip"] if flags & 0x10 else []
        with gzip.open(path) as stream:
            header = stream.read(_HEADER_BYTES)
    else:
        with path.open("rb") as stream:
            header = stream.read(_HEADER_BYTES)
    order = "<" if struct.unpack_from("<i", header)[0] in _NIFTI_SIZES else ">"
    (size,) = struct.unpack_from(f"{order}i", header)
    if size not in _NIFTI_SIZES or len(header) < size:
        raise EOFError
    for name, start, length in _NIFTI_SIZES[size]:
        if header[start : start + length].strip(b"\0 "):
            names.append(name)
    return names + (["extension"] if header[size : size + 1] > b"\0" else [])


def _nrrd_fields(path: Path) -> list[str]:
    with path.open("rb") as file:
        header = file.read(_HEADER_BYTES).partition(b"\n\n")[0].decode("latin-1")
    lines = header.splitlines()
    if not lines[0].startswith("NRRD"):
        raise EOFError
    names = []
    for line in lines[1:]:
        key, is_field, value = line.partition(":")
        if line.startswith("#"):
            names += [] if line.startswith(_NRRD_COMMENTS) else ["comment"]
        elif value.startswith("="):
            names.append("key and value")
        elif is_field and key in _NRRD_FREE_TEXT and set(value.split()) - _PLAIN_UNITS:
            names.append(key)
    return names


def _meta_image_fields(path: Path) -> list[str]:
    with path.open("rb") as file:
        header, is_whole, _ = file.read(_HEADER_BYTES).partition(b"ElementDataFile")  # the last field
    if not is_whole:
        raise EOFError
    keys = [line.partition("=")[0].strip() for line in header.decode("latin-1").splitlines()]
    # By number: the name of a field that is not known may say as much as its value.
    return [f"field {row}" for row, key in enumerate(keys) if key.lower() not in _META_IMAGE_FIELDS]
