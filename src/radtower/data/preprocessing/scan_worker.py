"""Read and resample one scan, and write it as a shard of its own: the unit of work of preprocessing."""

import time
import warnings
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
import torch

from radtower.data.preprocessing.provenance import kept_size, settings_hash, source_sha256, source_stamp
from radtower.data.preprocessing.shard_files import VolumeRow, write_shard
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.scan_reference import ScanReference
from radtower.processing.volume_io import read_volume


@dataclass(frozen=True)
class ScanJob:
    """One scan to prepare.

    Args:
        volume_id: Its key.
        scan: Where it is.
        known_sha256: Content that the cache holds already; None if it holds none.
    """

    volume_id: str
    scan: ScanReference
    known_sha256: str | None = None


@dataclass(frozen=True)
class ScanResult:
    """What became of a job.

    Args:
        written: The new file. None if there is none.
        failure: Why there is none. None if the content was known already.
        confirmed: Stamp and hash of a content that was known already.
    """

    written: Path | None = None
    failure: str | None = None
    confirmed: tuple[str, str] | None = None


@dataclass(frozen=True)
class ScanWorker:
    """Does jobs; can be sent to another process.

    Args:
        image_processor: Its ``resample`` is applied.
        folder: Where the files go.
        name: Begins the name of each file.
    """

    image_processor: CT3DImageProcessor
    folder: Path
    name: str

    def __call__(self, job: ScanJob) -> ScanResult:
        """Do one job; whatever is wrong with the scan becomes a failure and not an exception."""
        try:
            if not Path(job.scan.path).exists():
                read_volume(job.scan)  # says so better than the hash of nothing would
            # Stamped before it is read: a scan that changes meanwhile is done again next time.
            stamp = source_stamp(job.scan)
            sha256 = source_sha256(job.scan)
            if sha256 == job.known_sha256:
                return ScanResult(confirmed=(stamp, sha256))
            array, notes = self._resample(job.scan)
            row = VolumeRow(
                job.volume_id, settings_hash(self.image_processor), stamp, sha256, notes, time.time_ns()
            )
            path = self.folder / f"{self.name}-{uuid4().hex}.arrow"
            write_shard(path, [(row, array)])
        except (OSError, RuntimeError, TypeError, ValueError) as error:
            return ScanResult(failure=str(error))
        except Exception as error:  # damaged files raise what their decoder likes
            return ScanResult(failure=f"{type(error).__name__}: {error}")
        return ScanResult(path)

    def _resample(self, scan: ScanReference) -> tuple[np.ndarray, str]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            volume = read_volume(scan)
            resampled = self.image_processor.resample(volume, size=kept_size(self.image_processor))
        notes = [*volume.source.warnings, *(str(warning.message) for warning in caught)]
        # Scanners give whole HU, and no window is so narrow that half of one shows.
        return resampled.round_().to(torch.int16).numpy(), "\n".join(notes)
