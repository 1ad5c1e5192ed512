"""Preprocess every scan of a study list once, and read the result back as memory-mapped tensors.

One float16 array per cache, beside the processor that made it: reading with another one is refused.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.scan_reference import ScanReference

ARRAY_FILE = "pixel_values.npy"
INDEX_FILE = "index.json"


@dataclass(frozen=True)
class VolumeCache:
    """Preprocessed scans by study id, and why the others are missing.

    Args:
        pixel_values: ``(N, C, Z, Y, X)`` float16 in [-1, 1], on disk until indexed.
        row_by_study: Row of each study that could be read.
        image_processor: The processor that made them.
        failures: Reason by study, of those that could not.
    """

    pixel_values: np.ndarray
    row_by_study: dict[str, int]
    image_processor: CT3DImageProcessor
    failures: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, study_id: str) -> torch.Tensor:
        """Return ``(C, Z, Y, X)`` float32.

        Raises:
            KeyError: If the study is not in the cache.
        """
        if study_id not in self.row_by_study:
            known = "it could not be read" if study_id in self.failures else "it was not in the manifest"
            raise KeyError(
                f"study must be in the cache, got one (sha256 {_short_hash(study_id)}) that is not: {known}. "
                "Leave it out, or rebuild the cache."
            )
        return torch.from_numpy(self.pixel_values[self.row_by_study[study_id]].astype(np.float32))


def build_volume_cache(
    scans: Mapping[str, str | Path | ScanReference],
    image_processor: CT3DImageProcessor,
    folder: str | Path,
    on_progress: Callable[[int], None] | None = None,
) -> VolumeCache:
    """Preprocess scans into ``folder``, which appears only when it is complete.

    A scan that cannot be read is recorded and left out; the others are finished.

    Args:
        scans: Path of the scan by study id.
        image_processor: Its settings are saved in the cache.
        folder: Where the cache goes; an older cache there is replaced, anything else is left alone.
        on_progress: Called with the number of scans done.

    Raises:
        FileExistsError: If ``folder`` holds something else than a cache.
        ValueError: If no scan could be read.
    """
    folder = Path(folder)
    if folder.exists() and not (folder / INDEX_FILE).is_file() and any(folder.iterdir()):
        raise FileExistsError(
            f"folder must be new, empty or an earlier cache, got {folder}, which is neither. Choose another."
        )
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    rows: dict[str, int] = {}
    failures: dict[str, str] = {}
    array: np.memmap | None = None
    for done, (study_id, path) in enumerate(scans.items(), start=1):
        try:
            volume = image_processor.preprocess(path)["pixel_values"][0].numpy().astype(np.float16)
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            failures[study_id] = str(error)
        else:
            if array is None:
                shape = (len(scans), *volume.shape)
                array = np.lib.format.open_memmap(partial / ARRAY_FILE, "w+", dtype=np.float16, shape=shape)
            array[len(rows)] = volume
            rows[study_id] = len(rows)
        if on_progress is not None:
            on_progress(done)
    if array is None:
        raise ValueError(
            f"at least one scan must be readable, got {len(failures)} failures of {len(scans)}. "
            f"The first says: {next(iter(failures.values()), 'there were no scans')}"
        )
    array.flush()
    image_processor.save_pretrained(partial)
    index = {"rows": rows, "failures": failures}
    (partial / INDEX_FILE).write_text(json.dumps(index, indent=1), encoding="utf-8")
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return open_volume_cache(folder, image_processor)


def open_volume_cache(folder: str | Path, image_processor: CT3DImageProcessor | None = None) -> VolumeCache:
    """Open a cache.

    Args:
        folder: What :func:`build_volume_cache` wrote.
        image_processor: The processor of the model that will read it. None trusts the cache's own.

    Raises:
        FileNotFoundError: If there is no complete cache in ``folder``.
        ValueError: If ``image_processor`` has other settings than the one that made the cache.
    """
    folder = Path(folder)
    if not (folder / INDEX_FILE).exists():
        raise FileNotFoundError(f"folder must hold a cache, got {folder}. Run radtower preprocess first.")
    made_by = CT3DImageProcessor.from_pretrained(folder)
    wanted, found = (None if p is None else processor_hash(p) for p in (image_processor, made_by))
    if wanted not in (None, found):
        raise ValueError(
            f"the cache must come from the same processor settings {wanted}, got {found} in {folder}. "
            "Rebuild it with radtower preprocess, or load the processor it was made with."
        )
    index = json.loads((folder / INDEX_FILE).read_text(encoding="utf-8"))
    array = np.load(folder / ARRAY_FILE, mmap_mode="r")
    return VolumeCache(array, index["rows"], made_by, index["failures"])


def processor_hash(image_processor: CT3DImageProcessor) -> str:
    """Twelve hex digits that change with any setting of the processor."""
    settings = json.loads(image_processor.to_json_string())
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:12]


def _short_hash(study_id: str) -> str:
    return hashlib.sha256(study_id.encode()).hexdigest()[:12]
