"""What a cached volume was made from: the files of the scan, and the settings of the processor."""

import hashlib
import json
import re
from dataclasses import asdict
from glob import escape
from pathlib import Path
from typing import Any

from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.reading.detached_data import detached_names
from radtower.processing.scan_reference import ScanReference

CHUNK_BYTES = 2**20
PRINTF_FIELD = re.compile(r"%\d*d")


def processor_hash(image_processor: CT3DImageProcessor) -> str:
    """Twelve hex digits that change with any setting of the processor."""
    return _hash_of(json.loads(image_processor.to_json_string()))


def resampling_settings(image_processor: CT3DImageProcessor) -> dict[str, Any]:
    """Return the settings that decide the HU of a resampled volume, as JSON knows them.

    Windows count by their span only, to which intensities are clamped before resampling: other windows of
    the same span read the same volume. Size is left out: a smaller output is the middle of a larger one.
    """
    names = ("spacing_mm", "span_hu", "fill_hu", "orientation", "antialias", "crop")
    return {name: json.loads(json.dumps(getattr(image_processor, name))) for name in names}


def kept_size(image_processor: CT3DImageProcessor) -> tuple[int, int, int]:
    """Return the voxels (Z, Y, X) that a cache keeps of a scan."""
    return image_processor.cache_size or image_processor.size


def resampling_differences(made_by: CT3DImageProcessor, wanted: CT3DImageProcessor) -> list[str]:
    """Say which settings of the volumes that ``made_by`` wrote are not those of ``wanted``."""
    theirs, ours = resampling_settings(made_by), resampling_settings(wanted)
    return [
        f"{name} {theirs[name]!r} instead of {ours[name]!r}" for name in ours if ours[name] != theirs[name]
    ]


def settings_hash(image_processor: CT3DImageProcessor) -> str:
    """Twelve hex digits that change when a cached volume would."""
    return _hash_of([resampling_settings(image_processor), kept_size(image_processor)])


def source_stamp(scan: ScanReference) -> str:
    """Return what changes when a scan does, without reading it: paths, sizes and times of its files.

    The place counts, because two scans of one size and time can change places in a manifest; of a data set
    that has moved, the content decides.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    files = [
        (str(path.absolute()), path.stat().st_size, path.stat().st_mtime_ns)
        for _, path in _files_of(Path(scan.path))
    ]
    return _hash_of([str(Path(scan.path).absolute()), files, _told_by_table(scan)])


def source_sha256(scan: ScanReference) -> str:
    """Return the hash of the content of a scan, wherever it is, and of what a table says of it.

    Raises:
        FileNotFoundError: If a file is missing.
    """
    digest = hashlib.sha256(json.dumps(_told_by_table(scan), sort_keys=True).encode())
    for name, path in _files_of(Path(scan.path)):
        digest.update(f"\n{name}\n{path.stat().st_size}\n".encode())
        with path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                digest.update(chunk)
    return digest.hexdigest()


def _files_of(path: Path) -> list[tuple[str, Path]]:
    """Files of a scan with their name inside it; the name of a single file does not count."""
    if path.is_dir():
        return sorted((str(file.relative_to(path)), file) for file in path.rglob("*") if file.is_file())
    files = [("", path)]
    for name in detached_names(path):
        found = [path.parent / name]
        if PRINTF_FIELD.search(name):  # "slice%03d.raw 1 20 1"; a few files too many do no harm
            first = path.parent / name.split()[0]
            found = sorted(first.parent.glob(PRINTF_FIELD.sub("*", escape(first.name))))
        if not found or not all(file.is_file() for file in found):
            raise FileNotFoundError(
                f"data file must be beside its header, got no {name!r} for {path}. Put it back."
            )
        files += [(file.name, file) for file in found]
    return files


def _told_by_table(scan: ScanReference) -> dict[str, Any]:
    """Everything but the place, also what a table may come to say; what it does not say leaves no trace."""
    told = asdict(scan)
    return {name: value for name, value in told.items() if name != "path" and value is not None}


def _hash_of(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
