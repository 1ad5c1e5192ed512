"""Scans resampled once, read back as memory-mapped HU volumes or as ``pixel_values``.

A cache keeps int16 HU with a margin around the crop; crop and windows are applied on reading. One made with
other settings is refused. Axes: C windows, Z Y X voxels.
"""

import hashlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from radtower.data.preprocessing.cache_folder import (
    MARKER_FILE,
    Part,
    StoredVolume,
    prepare_folder,
    preprocess_part,
    tidy,
    usable_volumes,
)
from radtower.data.preprocessing.provenance import kept_size, resampling_differences, settings_hash
from radtower.data.preprocessing.shard_files import map_volumes
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.scan_reference import ScanReference


class VolumeCache:
    """Resampled scans by volume id, and why others are missing.

    Args:
        volumes: Where each volume is.
        image_processor: Crops and windows what is read.
        failures: Reason by volume id, of those that could not be prepared; none of them in ``volumes``.
    """

    def __init__(
        self,
        volumes: Mapping[str, StoredVolume],
        image_processor: CT3DImageProcessor,
        failures: Mapping[str, str],
    ) -> None:
        self.volumes = dict(volumes)
        self.image_processor = image_processor
        self.failures = dict(failures)
        self._mapped: dict[Path, list[np.ndarray]] = {}

    def __len__(self) -> int:
        return len(self.volumes)

    def __contains__(self, volume_id: str) -> bool:
        return volume_id in self.volumes

    def __getitem__(self, volume_id: str) -> torch.Tensor:
        """Return ``pixel_values`` ``(C, *size)`` float32: the middle of the volume, windowed.

        Raises:
            KeyError: If the volume is not in the cache.
        """
        volume = self.mapped_hu(volume_id)
        size = self.image_processor.size
        starts = [(kept - cropped) // 2 for kept, cropped in zip(volume.shape, size, strict=True)]
        middle = tuple(slice(start, start + n) for start, n in zip(starts, size, strict=True))
        return self.image_processor.window(torch.from_numpy(volume[middle].copy()))

    def volume_hu(self, volume_id: str) -> torch.Tensor:
        """Return ``(Z, Y, X)`` int16 HU, the margin included; a copy of what is on disk.

        Raises:
            KeyError: If the volume is not in the cache.
        """
        return torch.from_numpy(self.mapped_hu(volume_id).copy())

    def mapped_hu(self, volume_id: str) -> np.ndarray:
        """Return ``(Z, Y, X)`` int16 HU, read-only and on disk until it is touched.

        Raises:
            KeyError: If the volume is not in the cache.
        """
        if volume_id not in self.volumes:
            known = "it could not be read" if volume_id in self.failures else "it was not in the manifest"
            raise KeyError(
                f"volume must be in the cache, got one (sha256 {_short_hash(volume_id)}) that is not: "
                f"{known}. Leave it out, or run radtower preprocess again."
            )
        stored = self.volumes[volume_id]
        if stored.path not in self._mapped:
            self._mapped[stored.path] = map_volumes(stored.path)
        return self._mapped[stored.path][stored.position]

    def is_readable(self, volume_ids: Iterable[str]) -> list[bool]:
        """Say which volumes are here and which failed when the cache was made.

        Raises:
            ValueError: If one is neither: preprocessing was not finished, or was given another manifest.
        """
        volume_ids = list(volume_ids)
        unknown = [v for v in volume_ids if v not in self.volumes and v not in self.failures]
        if unknown:
            raise ValueError(
                f"the cache must cover the manifest, got {len(unknown)} of {len(volume_ids)} volumes that "
                "were never prepared. Run radtower preprocess with this manifest, or let it finish."
            )
        return [volume_id in self.volumes for volume_id in volume_ids]

    def __getstate__(self) -> dict[str, Any]:
        """Leave out what is mapped: each process of a data loader maps for itself."""
        return {**self.__dict__, "_mapped": {}}


def build_volume_cache(
    scans: Mapping[str, str | Path | ScanReference],
    image_processor: CT3DImageProcessor,
    folder: str | Path,
    on_progress: Callable[[int], None] | None = None,
    num_workers: int = 0,
    scans_per_shard: int | None = None,
    should_replace: bool = False,
) -> VolumeCache:
    """Resample scans into ``folder``; what it already holds of them, from the same settings, is kept.

    A scan that cannot be read, or whose worker is killed, is recorded and left out; the others are finished.
    Killed itself, a run loses no more than the scans it was working on.

    Args:
        scans: Scan by volume id.
        image_processor: Its settings are saved in the cache.
        folder: Where the cache is or goes.
        on_progress: Called with the number of scans done.
        num_workers: Processes. 0 works in this one.
        scans_per_shard: Volumes per file. None makes files of half a gigabyte.
        should_replace: Drop volumes of other settings, instead of refusing the folder.

    Raises:
        BlockingIOError: If another process fills the same cache.
        FileExistsError: If ``folder`` holds something else than a cache, or volumes of other settings.
        ValueError: If no scan could be read.
    """
    folder = Path(folder)
    references = {
        volume_id: scan if isinstance(scan, ScanReference) else ScanReference(scan)
        for volume_id, scan in scans.items()
    }
    prepare_folder(folder, image_processor, should_replace)
    preprocess_part(
        references,
        image_processor,
        folder,
        part=Part(),
        num_workers=num_workers,
        scans_per_shard=scans_per_shard,
        on_progress=on_progress,
    )
    tidy(folder, image_processor, scans_per_shard)
    cache = open_volume_cache(folder, image_processor)
    if not any(volume_id in cache for volume_id in scans):
        reasons = [cache.failures[volume_id] for volume_id in scans]
        raise ValueError(
            f"at least one scan must be readable, got {len(reasons)} failures of {len(scans)}. "
            f"The first says: {reasons[0] if reasons else 'there were no scans'}"
        )
    return cache


def open_volume_cache(folder: str | Path, image_processor: CT3DImageProcessor | None = None) -> VolumeCache:
    """Open a cache, finished or not.

    Args:
        folder: What :func:`build_volume_cache` wrote.
        image_processor: The processor of the model that will read it: its crop and windows are applied. None
            takes the one that made the cache.

    Raises:
        FileNotFoundError: If there is no cache in ``folder``.
        ValueError: If ``image_processor`` would have resampled the scans differently.
    """
    folder = Path(folder)
    if not (folder / MARKER_FILE).exists():
        raise FileNotFoundError(f"folder must hold a cache, got {folder}. Run radtower preprocess first.")
    made_by = CT3DImageProcessor.from_pretrained(folder)
    if image_processor is not None:
        _require_same_resampling(image_processor, made_by, folder)
    volumes, failures = usable_volumes(folder, settings_hash(made_by))
    return VolumeCache(volumes, image_processor or made_by, failures)


def _require_same_resampling(wanted: CT3DImageProcessor, made_by: CT3DImageProcessor, folder: Path) -> None:
    differences = resampling_differences(made_by, wanted)
    margins = [kept - n for kept, n in zip(kept_size(made_by), wanted.size, strict=True)]
    if min(margins) < 0 or any(margin % 2 for margin in margins):
        differences.append(f"volumes of {kept_size(made_by)}, of which {wanted.size} is not the middle")
    if differences:
        raise ValueError(
            f"the cache must come from the settings of the processor, got {'; '.join(differences)} in "
            f"{folder}. Rebuild it with radtower preprocess, or load the processor it was made with."
        )


def _short_hash(volume_id: str) -> str:
    return hashlib.sha256(volume_id.encode()).hexdigest()[:12]
