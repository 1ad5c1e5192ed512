"""Voxels in files of their own, which the header of an NRRD or MetaImage scan names."""

import re
from collections.abc import Iterator
from pathlib import Path, PureWindowsPath

META_IMAGES = (".mha", ".mhd")
NRRD_IMAGES = (".nrrd", ".nhdr")
_LINE_BYTES = 2**20
_DATA_FIELD = re.compile(r"ElementDataFile\s*[=:\s]\s*(.*)")  # MetaIO takes a colon, too


def require_data_beside(path: Path) -> None:
    """Refuse a header that has the reader open a file outside its folder.

    Raises:
        ValueError: If it names one.
    """
    for number, name in enumerate(detached_names(path)):
        windows = PureWindowsPath(name)  # knows drives and both slashes
        if windows.anchor or ".." in windows.parts:
            raise ValueError(
                f"the data files of {path} must lie in its folder, got {windows.anchor or '..'!r} in the "
                f"name of file {number}. Put the file beside its header, and name it without a folder."
            )


def detached_names(path: Path) -> list[str]:
    """Return the data files that a MetaImage or NRRD header names; none where the voxels follow in it."""
    suffix = path.suffix.lower()
    if suffix not in META_IMAGES + NRRD_IMAGES:
        return []
    with path.open("rb") as file:
        lines = (line.decode("latin-1").strip() for line in iter(lambda: file.readline(_LINE_BYTES), b""))
        return _meta_image_data(lines) if suffix in META_IMAGES else _nrrd_data(lines)


def _meta_image_data(lines: Iterator[str]) -> list[str]:
    for line in lines:
        found = _DATA_FIELD.match(line)
        if found:
            value = found[1]
            if value.upper() == "LOCAL":
                return []
            return [name for name in lines if name] if value.upper().startswith("LIST") else [value]
    return []


def _nrrd_data(lines: Iterator[str]) -> list[str]:
    for line in lines:
        key, _, value = (part.strip() for part in line.partition(":"))
        if not line:
            return []  # the header ends here
        if key.lower().replace(" ", "") == "datafile":
            return [name for name in lines if name] if value.upper().startswith("LIST") else [value]
    return []
