"""Unpack a zip archive of DICOM files where it can do no harm, and read the scan."""

import stat
import tempfile
import zipfile
import zlib
from pathlib import Path, PureWindowsPath

from radtower.processing.reading.dicom_series import read_dicom_folder
from radtower.processing.reading.stored_scan import BYTES_PER_GB, StoredScan, truncated

MAX_MEMBERS = 100_000  # a study has a few thousand slices
CHUNK_BYTES = 1 << 20


def read_archive(path: Path, series_uid: str | None, memory_limit_gb: float) -> StoredScan:
    """Read one CT series from a zip archive; arguments as in ``read_dicom_folder``.

    Raises:
        ValueError: If a member would land outside the folder, is a link or encrypted, the unpacked size is
            above the limit or not what the archive declares, or the archive is damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive, tempfile.TemporaryDirectory(prefix="scan_") as folder:
            members = archive.infolist()
            _require_harmless(members, path, memory_limit_gb)
            for index, member in enumerate(members):
                if not member.is_dir():
                    # Names of our own: those of the archive are not needed, and two may fall together.
                    target_path = Path(folder, f"member_{index}")
                    with archive.open(member) as source, target_path.open("wb") as target:
                        while chunk := source.read(CHUNK_BYTES):
                            target.write(chunk)
            return read_dicom_folder(Path(folder), series_uid, memory_limit_gb, path)
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise truncated(path, str(error)) from error


def _require_harmless(members: list[zipfile.ZipInfo], path: Path, limit_gb: float) -> None:
    for index, member in enumerate(members):  # by number: a name may be that of the patient
        windows = PureWindowsPath(member.filename)  # knows drives and both slashes
        if windows.anchor or ".." in windows.parts:
            raise ValueError(
                f"every member of {path} must stay in its folder, got {windows.anchor or '..'!r} in the "
                f"name of member {index}. Do not unpack this archive; ask for another."
            )
        if stat.S_ISLNK(member.external_attr >> 16) or member.flag_bits & 1:
            raise ValueError(
                f"every member of {path} must be a plain file, got a link or an encrypted file as "
                f"member {index}. Unpack the archive and pass the folder."
            )
    declared_gb = sum(member.file_size for member in members) / BYTES_PER_GB
    if declared_gb > limit_gb or len(members) > MAX_MEMBERS:
        raise ValueError(
            f"{path} must unpack to at most {limit_gb:g} GB in {MAX_MEMBERS} files, got {declared_gb:.3g} GB "
            f"in {len(members)}. Unpack it and pass the folder of one series."
        )
