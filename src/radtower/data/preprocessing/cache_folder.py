"""The folder of a cache: which volumes it holds, which scans failed, and how it grows.

A worker writes one file per volume as soon as it is done; full sets of them are merged into shards. What is
written is never changed: a newer row replaces an older one, and ``tidy`` drops what was replaced. A failure
hides an older volume of its scan without dropping it: what comes back unchanged is not resampled again.
"""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable, Container, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from uuid import uuid4

import numpy as np

from radtower.data.preprocessing.cache_lock import filling, tidying
from radtower.data.preprocessing.provenance import (
    kept_size,
    resampling_differences,
    settings_hash,
    source_stamp,
)
from radtower.data.preprocessing.scan_worker import ScanJob, ScanResult, ScanWorker
from radtower.data.preprocessing.shard_files import (
    DamagedShardError,
    VolumeRow,
    map_volumes,
    read_rows,
    write_shard,
)
from radtower.data.preprocessing.worker_pool import LostItem, map_in_processes
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.scan_reference import ScanReference

MARKER_FILE = "volume_cache.json"
PROCESSOR_FILE = "preprocessor_config.json"
SHARD_FOLDER = "shards"
FAILURE_FOLDER = "failures"
DAMAGED_FOLDER = "damaged"
STAMP_FOLDER = "stamps"  # what is known besides the rows: stamps of contents that were found unchanged
SHARD_BYTES = 2**29  # half a gigabyte: few enough files for a whole data set, small enough to move
INT16 = np.iinfo(np.int16)


@dataclass(frozen=True)
class StoredVolume:
    """Where a volume is: the file, the position in it, and its row."""

    path: Path
    position: int
    row: VolumeRow


@dataclass(frozen=True)
class Part:
    """Which part of the scans a process works on, of how many; the one and only by default."""

    rank: int = 0
    world_size: int = 1

    def __str__(self) -> str:
        return f"{self.rank:05d}-of-{self.world_size:05d}"

    def holds(self, volume_id: str) -> bool:
        """Whether a volume belongs to this part, whatever else is in the manifest."""
        return int(_hash_of(volume_id), 16) % self.world_size == self.rank


def prepare_folder(folder: Path, image_processor: CT3DImageProcessor, should_replace: bool = False) -> None:
    """Make a new cache folder, or go on with one of these settings; damaged files are set aside.

    Args:
        folder: Where the cache is or goes.
        image_processor: Its settings are saved in the cache.
        should_replace: Turn a cache of other settings to these; its volumes count no more.

    Raises:
        FileExistsError: If ``folder`` holds something else than a cache, or volumes of other settings.
        ValueError: If the values do not fit into a cache.
    """
    low, high = image_processor.span_hu
    if low < INT16.min or high > INT16.max:
        raise ValueError(
            f"windows_hu must lie within {INT16.min} and {INT16.max} HU for a cache, got {low:g} to "
            f"{high:g}. Narrow the window."
        )
    if folder.exists() and not (folder / MARKER_FILE).is_file() and any(folder.iterdir()):
        raise FileExistsError(
            f"folder must be new, empty or an earlier cache, got {folder}, which is neither. Choose another."
        )
    if not should_replace:
        _require_no_other_volumes(folder, image_processor)
    (folder / SHARD_FOLDER).mkdir(parents=True, exist_ok=True)
    (folder / FAILURE_FOLDER).mkdir(exist_ok=True)
    (folder / STAMP_FOLDER).mkdir(exist_ok=True)
    _set_damaged_aside(folder)
    _write_atomically(folder / MARKER_FILE, json.dumps({"format": 1, "volumes": "int16 HU (Z, Y, X)"}))
    with TemporaryDirectory() as saved:
        image_processor.save_pretrained(saved)
        _write_atomically(folder / PROCESSOR_FILE, (Path(saved) / PROCESSOR_FILE).read_text(encoding="utf-8"))


def stored_volumes(folder: Path, settings: str) -> dict[str, StoredVolume]:
    """Return the volumes of these settings by id, the newest of each; also those that a failure hides."""
    newest: dict[str, StoredVolume] = {}
    for path, rows in _rows(folder).items():
        for position, row in enumerate(rows):
            known = newest.get(row.volume_id)
            is_newer = known is None or row.created_ns > known.row.created_ns
            if row.settings_hash == settings and is_newer:
                newest[row.volume_id] = StoredVolume(path, position, row)
    return newest


def _rows(folder: Path) -> dict[Path, list[VolumeRow]]:
    """Rows by file; a file that vanishes was merged into another meanwhile, so that we look again."""
    while True:
        paths = sorted(path for path in (folder / SHARD_FOLDER).glob("*.arrow") if path.exists())
        with suppress(FileNotFoundError):
            return {path: read_rows(path) for path in paths}


def _set_damaged_aside(folder: Path) -> None:
    for path in sorted((folder / SHARD_FOLDER).glob("*.arrow")):
        try:
            read_rows(path)
        except FileNotFoundError:
            continue  # merged into another meanwhile
        except DamagedShardError as error:
            (folder / DAMAGED_FOLDER).mkdir(exist_ok=True)
            path.replace(folder / DAMAGED_FOLDER / path.name)
            warnings.warn(f"{error} Now in {folder / DAMAGED_FOLDER}.", stacklevel=3)


def usable_volumes(folder: Path, settings: str) -> tuple[dict[str, StoredVolume], dict[str, str]]:
    """Return the volumes of these settings, and why the scans of others could not be prepared, by id.

    Of a volume and a failure the newer counts: a scan that was changed and cannot be read any more is a
    failure, although its earlier volume is still stored.
    """
    volumes, failures = stored_volumes(folder, settings), {}
    for path in sorted((folder / FAILURE_FOLDER).glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        known = volumes.get(record["volume_id"])
        is_newer = known is None or record["created_ns"] > known.row.created_ns
        if record["settings_hash"] == settings and is_newer:
            failures[record["volume_id"]] = record["reason"]
    return {volume_id: stored for volume_id, stored in volumes.items() if volume_id not in failures}, failures


def preprocess_part(
    scans: Mapping[str, ScanReference],
    image_processor: CT3DImageProcessor,
    folder: Path,
    *,
    part: Part,
    num_workers: int = 0,
    scans_per_shard: int | None = None,
    on_progress: Callable[[int], None] | None = None,
) -> None:
    """Prepare the scans of one part that the folder does not hold yet; one process does it at a time.

    Args:
        scans: All scans, by volume id.
        image_processor: As given to :func:`prepare_folder`.
        folder: The cache.
        part: Which scans are ours.
        num_workers: Processes; 0 works in this one, where being killed ends the run.
        scans_per_shard: None makes shards of half a gigabyte.
        on_progress: Called with the number of our scans that are done, those found done included.

    Raises:
        BlockingIOError: If another process is at work on the same part.
    """
    with filling(folder, str(part)):
        _fill(scans, image_processor, folder, part, num_workers, scans_per_shard, on_progress)


def _fill(
    scans: Mapping[str, ScanReference],
    image_processor: CT3DImageProcessor,
    folder: Path,
    part: Part,
    num_workers: int,
    scans_per_shard: int | None,
    on_progress: Callable[[int], None] | None,
) -> None:
    settings = settings_hash(image_processor)
    ours = {volume_id: scan for volume_id, scan in scans.items() if part.holds(volume_id)}
    stored, usable = stored_volumes(folder, settings), set(usable_volumes(folder, settings)[0])
    jobs = _open_jobs(ours, stored, usable, confirmed_stamps(folder))
    num_done = len(ours) - len(jobs)
    if on_progress is not None and num_done:
        on_progress(num_done)
    shards = folder / SHARD_FOLDER
    per_shard = scans_per_shard or _scans_per_shard(image_processor)
    singles = _merge_full(sorted(shards.glob(f"volume-{part}-*.arrow")), part, per_shard)
    worker = ScanWorker(image_processor, shards, f"volume-{part}")
    confirmed: dict[str, str] = {}
    for job, result in _done(worker, jobs, num_workers):
        reason = result.reason() if isinstance(result, LostItem) else result.failure
        _record(folder, settings, job.volume_id, reason)
        if isinstance(result, ScanResult) and result.written is not None:
            singles = _merge_full([*singles, result.written], part, per_shard)
        if isinstance(result, ScanResult) and result.confirmed is not None:
            confirmed |= [result.confirmed]
        num_done += 1
        if on_progress is not None:
            on_progress(num_done)
    if singles:
        _merge(singles, part)
    if confirmed:
        _write_atomically(folder / STAMP_FOLDER / f"{part}-{uuid4().hex}.json", json.dumps(confirmed))


def confirmed_stamps(folder: Path) -> dict[str, str]:
    """Return the content hash by stamp, of scans found unchanged after they were touched or moved."""
    stamps: dict[str, str] = {}
    for path in (folder / STAMP_FOLDER).glob("*.json"):
        stamps |= json.loads(path.read_text(encoding="utf-8"))
    return stamps


def tidy(folder: Path, image_processor: CT3DImageProcessor, scans_per_shard: int | None = None) -> None:
    """Drop what was replaced and fill up the shards, unless another process fills a part: it does so later.

    Args:
        folder: The cache.
        image_processor: Volumes of other settings are dropped.
        scans_per_shard: None makes shards of half a gigabyte.
    """
    with tidying(folder) as is_alone:
        if is_alone:
            _tidy(folder, image_processor, scans_per_shard)


def _tidy(folder: Path, image_processor: CT3DImageProcessor, scans_per_shard: int | None) -> None:
    shards = folder / SHARD_FOLDER
    for leftover in shards.glob(".*.partial"):
        leftover.unlink()
    per_shard = scans_per_shard or _scans_per_shard(image_processor)
    live: dict[Path, list[int]] = {path: [] for path in sorted(shards.glob("*.arrow"))}
    for stored in stored_volumes(folder, settings_hash(image_processor)).values():
        live[stored.path].append(stored.position)
    full = {path for path, kept in live.items() if len(kept) == len(read_rows(path)) >= per_shard}
    rest = [path for path in live if path not in full]
    if len(rest) == 1 and len(live[rest[0]]) == len(read_rows(rest[0])):
        return  # the last shard, not full yet
    volumes = [(path, position) for path in rest for position in sorted(live[path])]
    for start in range(0, len(volumes), per_shard):
        chosen = volumes[start : start + per_shard]
        write_shard(shards / f"shard-{Part()}-{uuid4().hex}.arrow", _read(chosen))
    for path in rest:
        path.unlink()


def _require_no_other_volumes(folder: Path, image_processor: CT3DImageProcessor) -> None:
    """A forgotten setting must not cost days of work: what is done already is only dropped when told to."""
    num_files = len(list((folder / SHARD_FOLDER).glob("*.arrow")))
    if not num_files:
        return
    made_by = CT3DImageProcessor.from_pretrained(folder)
    differences = resampling_differences(made_by, image_processor)
    if kept_size(made_by) != kept_size(image_processor):
        differences.append(f"volumes of {kept_size(made_by)} instead of {kept_size(image_processor)}")
    if differences:
        raise FileExistsError(
            f"folder must hold no volumes of other settings, got {num_files} files with "
            f"{'; '.join(differences)} in {folder}. Give the processor of the cache (--processor), choose "
            "another folder, or have them all made again (--replace)."
        )


def _open_jobs(
    scans: Mapping[str, ScanReference],
    stored: Mapping[str, StoredVolume],
    usable: Container[str],
    confirmed: Mapping[str, str],
) -> list[ScanJob]:
    jobs = []
    for volume_id, scan in scans.items():
        known = stored[volume_id].row if volume_id in stored else None
        is_unchanged = False
        if known is not None and volume_id in usable:
            with suppress(OSError):  # the worker will say what is wrong with it
                stamp = source_stamp(scan)
                is_unchanged = stamp == known.source_stamp or confirmed.get(stamp) == known.source_sha256
        if not is_unchanged:
            jobs.append(ScanJob(volume_id, scan, None if known is None else known.source_sha256))
    return jobs


def _done(
    worker: ScanWorker, jobs: list[ScanJob], num_workers: int
) -> Iterable[tuple[ScanJob, ScanResult | LostItem]]:
    if num_workers == 0:
        return ((job, worker(job)) for job in jobs)
    return map_in_processes(worker, jobs, num_workers)


def _record(folder: Path, settings: str, volume_id: str, reason: str | None) -> None:
    path = folder / FAILURE_FOLDER / f"{_hash_of(volume_id)}.json"
    if reason is None:
        path.unlink(missing_ok=True)
    else:
        content = {
            "volume_id": volume_id,
            "settings_hash": settings,
            "reason": reason,
            "created_ns": time.time_ns(),
        }
        _write_atomically(path, json.dumps(content))


def _merge_full(singles: list[Path], part: Part, per_shard: int) -> list[Path]:
    """Merge as many whole shards as there are; return the files that are left."""
    while len(singles) >= per_shard:
        _merge(singles[:per_shard], part)
        singles = singles[per_shard:]
    return singles


def _merge(paths: list[Path], part: Part) -> None:
    merged = paths[0].with_name(f"shard-{part}-{uuid4().hex}.arrow")
    write_shard(merged, _read((path, position) for path in paths for position in range(len(read_rows(path)))))
    for path in paths:
        path.unlink()


def _read(volumes: Iterable[tuple[Path, int]]) -> Iterator[tuple[VolumeRow, np.ndarray]]:
    """Open one file after the other, so that merging needs the memory of one volume."""
    opened: Path | None = None
    for path, position in volumes:
        if path != opened:
            rows, arrays, opened = read_rows(path), map_volumes(path), path
        yield rows[position], arrays[position]


def _scans_per_shard(image_processor: CT3DImageProcessor) -> int:
    z, y, x = kept_size(image_processor)
    return max(1, SHARD_BYTES // (z * y * x * INT16.bits // 8))


def _write_atomically(path: Path, text: str) -> None:
    partial = path.with_name(f".{path.name}.{os.getpid()}.{uuid4().hex}.partial")
    partial.write_text(text, encoding="utf-8")
    partial.replace(path)


def _hash_of(volume_id: str) -> str:
    return hashlib.sha256(volume_id.encode()).hexdigest()[:16]
