"""Read the functional groups of a multi-frame DICOM file, which SimpleITK does not hand over.

They hold the position, orientation, spacing and rescale of every frame. GDCM applies the rescale of the first
frame to all and takes the order of storage for the order in space. Source: DICOM PS3.5 section 7 (encoding),
PS3.3 C.7.6.16 (functional groups). Nothing else of the file is kept, nothing of the patient is looked at.
"""

import struct
from pathlib import Path
from typing import BinaryIO

Tag = tuple[int, int]
Item = dict[Tag, "bytes | list[Item]"]

PREAMBLE_BYTES, MAGIC = 128, b"DICM"
SHARED_GROUPS, FRAME_GROUPS, PIXEL_DATA = (0x5200, 0x9229), (0x5200, 0x9230), (0x7FE0, 0x0010)
TRANSFER_SYNTAX, META_GROUP = (0x0002, 0x0010), 0x0002
IMPLICIT_LITTLE_ENDIAN = b"1.2.840.10008.1.2"
UNSUPPORTED = (b"1.2.840.10008.1.2.2", b"1.2.840.10008.1.2.1.99")  # big endian, deflated
ITEM, ITEM_END, SEQUENCE_END = (0xFFFE, 0xE000), (0xFFFE, 0xE00D), (0xFFFE, 0xE0DD)
UNDEFINED = 0xFFFFFFFF
# Implicit files do not say which elements are sequences.
POSITION_GROUP, ORIENTATION_GROUP = (0x0020, 0x9113), (0x0020, 0x9116)
MEASURES_GROUP, RESCALE_GROUP = (0x0028, 0x9110), (0x0028, 0x9145)
SEQUENCES = (SHARED_GROUPS, FRAME_GROUPS, POSITION_GROUP, ORIENTATION_GROUP, MEASURES_GROUP, RESCALE_GROUP)
LONG_VRS = frozenset(
    (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"SV", b"UC", b"UN", b"UR", b"UT", b"UV")
)


def is_dicom(path: Path) -> bool:
    """Return whether the file begins as DICOM files do."""
    with path.open("rb") as stream:
        return stream.read(PREAMBLE_BYTES + len(MAGIC))[PREAMBLE_BYTES:] == MAGIC


def read_functional_groups(path: Path) -> tuple[Item, list[Item]]:
    """Return the groups that all frames share, and those of each frame, in the order of storage.

    Raises:
        ValueError: If the file has none, is cut off before the pixels, or is big endian or deflated.
    """
    try:
        with path.open("rb") as stream:
            found = _read_groups(stream, path)
    except (struct.error, EOFError) as error:
        raise ValueError(
            f"path must be a whole DICOM file, got the end of {path.name} within its header. Copy it again."
        ) from error
    shared, frames = found.get(SHARED_GROUPS, []), found.get(FRAME_GROUPS, [])
    if not isinstance(frames, list) or not frames:
        raise ValueError(
            f"a multi-frame file must state the position of each frame, got no functional groups in "
            f"{path.name}. Export the scan as Enhanced CT or as single slices."
        )
    return (shared[0] if isinstance(shared, list) and shared else {}), frames


def group_value(groups: list[Item], sequence: Tag, tag: Tag) -> bytes | None:
    """Return the value of ``tag`` in the first of ``groups`` that has it in ``sequence``, or None."""
    for group in groups:
        items = group.get(sequence)
        value = items[0].get(tag) if isinstance(items, list) and items else None
        if isinstance(value, bytes):
            return value
    return None


def _read_groups(stream: BinaryIO, path: Path) -> Item:
    stream.seek(PREAMBLE_BYTES + len(MAGIC))
    found: Item = {}
    syntax = b""
    while True:
        place = stream.tell()
        group, element = struct.unpack("<HH", _exactly(stream, 4))
        if group != META_GROUP and syntax in UNSUPPORTED:
            raise ValueError(
                f"a multi-frame file must be little endian and not deflated, got transfer syntax "
                f"{syntax.decode()} in {path.name}. Convert it with gdcmconv or dcmconv."
            )
        is_implicit = group != META_GROUP and syntax == IMPLICIT_LITTLE_ENDIAN
        if (group, element) == PIXEL_DATA:
            return found
        stream.seek(place)
        tag, value = _read_element(stream, is_implicit, (SHARED_GROUPS, FRAME_GROUPS, TRANSFER_SYNTAX))
        if tag == TRANSFER_SYNTAX and isinstance(value, bytes):
            syntax = value.strip(b"\0 ")
        elif value is not None:
            found[tag] = value


def _read_element(
    stream: BinaryIO, is_implicit: bool, wanted: tuple[Tag, ...] | None
) -> tuple[Tag, "bytes | list[Item] | None"]:
    """Return tag and value; the value is None where ``wanted`` (None: all) leaves the tag out."""
    group, element = struct.unpack("<HH", _exactly(stream, 4))
    tag = (group, element)
    kind = b""
    if is_implicit or group == ITEM[0]:
        (length,) = struct.unpack("<I", _exactly(stream, 4))
    else:
        kind = _exactly(stream, 2)
        if kind in LONG_VRS:
            _, length = struct.unpack("<HI", _exactly(stream, 6))
        else:
            (length,) = struct.unpack("<H", _exactly(stream, 2))
    is_wanted = wanted is None or tag in wanted
    is_sequence = kind == b"SQ" or length == UNDEFINED or (is_implicit and tag in SEQUENCES)
    if is_sequence:
        # A sequence of unknown VR is encoded implicitly, whatever the file is: PS3.5 section 6.2.2.
        items = _read_items(stream, is_implicit or kind == b"UN", length)
        return tag, items if is_wanted else None
    if is_wanted:
        return tag, _exactly(stream, length)
    stream.seek(length, 1)
    return tag, None


def _read_items(stream: BinaryIO, is_implicit: bool, length: int) -> list[Item]:
    items: list[Item] = []
    end = None if length == UNDEFINED else stream.tell() + length
    while end is None or stream.tell() < end:
        group, element, item_length = struct.unpack("<HHI", _exactly(stream, 8))
        if (group, element) == SEQUENCE_END:
            break
        item_end = None if item_length == UNDEFINED else stream.tell() + item_length
        item: Item = {}
        while item_end is None or stream.tell() < item_end:
            tag, value = _read_element(stream, is_implicit, None)
            if tag == ITEM_END:
                break
            if value is not None:
                item[tag] = value
        items.append(item)
    return items


def _exactly(stream: BinaryIO, count: int) -> bytes:
    content = stream.read(count)
    if len(content) < count:
        raise EOFError
    return content
