"""The checksum file of an export: what ``sha256sum`` writes and reads."""

import re
from pathlib import Path

from radtower.data.folder_change import LocalFile
from radtower.data.release_check import RECORD_FILE

CHECKSUM_FILE = "checksums.sha256"
_LINE = re.compile(r"([0-9a-f]{64}) [ *](.+)")
# Not of the export: written by the push itself, whose folder may be downloaded and pushed again.
_UNLISTED = {CHECKSUM_FILE, RECORD_FILE, ".gitattributes"}


def write_checksums(folder: Path) -> Path:
    """Write the checksums of all files of an export, sorted by path; ``sha256sum --check`` reads them."""
    path = folder / CHECKSUM_FILE
    lines = [f"{LocalFile(folder / name).sha256}  {name}\n" for name in sorted(_files(folder) - _UNLISTED)]
    path.write_text("".join(lines), encoding="utf-8")
    return path


def verify_checksums(folder: Path) -> None:
    """Refuse an export that is not as it was written; one without a checksum file passes.

    Raises:
        FileNotFoundError: If a listed file is missing.
        ValueError: If a file has other contents or is not listed, or a line is none of ``sha256sum``.
    """
    if not (folder / CHECKSUM_FILE).is_file():
        return
    listed = _read(folder / CHECKSUM_FILE)
    there = _files(folder)
    for name in sorted(set(listed) - there):
        raise FileNotFoundError(
            f"an export must have all files that {CHECKSUM_FILE} lists, got none at {name}. Export it again."
        )
    for name in sorted(there - set(listed) - _UNLISTED):
        raise ValueError(
            f"an export must have no files but those that {CHECKSUM_FILE} lists, got {name}. Remove it, or "
            "export again."
        )
    for name, expected in listed.items():
        if LocalFile(folder / name).sha256 != expected:
            raise ValueError(
                f"an export must be as {CHECKSUM_FILE} says, got other contents in {name}. Export it again; "
                "to change the card, change it on the Hub."
            )


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def _read(path: Path) -> dict[str, str]:
    """Name -> SHA-256."""
    listed = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        match = _LINE.fullmatch(line)
        if not match:
            raise ValueError(
                f"each line of {CHECKSUM_FILE} must be one of sha256sum, got another in line {number}. "
                "Export again."
            )
        listed[match[2]] = match[1]
    return listed
