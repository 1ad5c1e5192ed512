"""Shards: Arrow stream files of resampled volumes that ``datasets`` and this package map into memory.

One record batch per volume: an int16 ``Array3D`` (Z, Y, X) in HU, and beside it what the volume was made
from. A file appears whole or not at all, and says everything about itself, so that no index has to agree
with it and processes that write different files cannot disturb each other.
"""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Array3D, Features, Value

VOLUME_COLUMN = "volume_hu"


class DamagedShardError(ValueError):
    """A file that is not whole, such as after a copy that was broken off."""


@dataclass(frozen=True)
class VolumeRow:
    """What is known of one stored volume.

    Args:
        volume_id: Key of the manifest.
        settings_hash: Settings it was resampled with.
        source_stamp: Sizes and times of its files; equal means unchanged.
        source_sha256: Their content; decides where the stamp differs.
        notes: What the reader and the processor had to say, one per line.
        created_ns: When it was written, nanoseconds since 1970; of two rows, the newer counts.
    """

    volume_id: str
    settings_hash: str
    source_stamp: str
    source_sha256: str
    notes: str
    created_ns: int


def write_shard(path: Path, volumes: Iterable[tuple[VolumeRow, np.ndarray]]) -> None:
    """Write volumes to a new file, one at a time; the file appears when it is complete.

    Args:
        path: Ends in ``.arrow``.
        volumes: Rows with their ``(Z, Y, X)`` int16 array, all of one shape; at least one.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    writer: pa.RecordBatchStreamWriter | None = None
    with partial.open("wb") as file:
        for row, array in volumes:
            schema = _schema((array.shape[0], array.shape[1], array.shape[2]))
            if writer is None:
                writer = pa.ipc.new_stream(file, schema)
            volume_type = schema.field(VOLUME_COLUMN).type
            columns = {name: pa.array([value]) for name, value in asdict(row).items()}
            columns[VOLUME_COLUMN] = pa.ExtensionArray.from_storage(volume_type, _nested(array))
            writer.write_batch(
                pa.record_batch(
                    [
                        columns[name].cast(schema.field(name).type)
                        if name != VOLUME_COLUMN
                        else columns[name]
                        for name in schema.names
                    ],
                    schema=schema,
                )
            )
        if writer is not None:
            writer.close()
        file.flush()
        os.fsync(file.fileno())  # else a crash of the machine can leave the name without the content
    partial.replace(path)


def read_rows(path: Path) -> list[VolumeRow]:
    """Return what a shard says of its volumes; touches the small columns only.

    Raises:
        DamagedShardError: If the file is not whole.
    """
    names = [field.name for field in fields(VolumeRow)]
    return [VolumeRow(**{name: batch.column(name)[0].as_py() for name in names}) for batch in _batches(path)]


def map_volumes(path: Path) -> list[np.ndarray]:
    """Return the ``(Z, Y, X)`` int16 volumes of a shard, read-only and on disk until they are touched.

    Raises:
        DamagedShardError: If the file is not whole.
    """
    return [_array_of(batch.column(VOLUME_COLUMN)) for batch in _batches(path)]


def _batches(path: Path) -> list[pa.RecordBatch]:
    try:
        return list(pa.ipc.open_stream(pa.memory_map(str(path))))
    except FileNotFoundError:
        raise
    except (pa.ArrowInvalid, OSError) as error:
        raise DamagedShardError(
            f"shard must be a whole Arrow stream, got {path}: {error}. Run radtower preprocess again: it "
            "sets the file aside and makes its volumes again."
        ) from error


def _schema(shape: tuple[int, int, int]) -> pa.Schema:
    """Schema with the metadata by which ``datasets`` knows the shape."""
    columns = {field.name: Value("int64" if field.type is int else "string") for field in fields(VolumeRow)}
    return Features({**columns, VOLUME_COLUMN: Array3D(shape, "int16")}).arrow_schema


def _nested(array: np.ndarray) -> pa.ListArray:
    """One volume as a list of lists of lists, which is how ``Array3D`` is stored; voxels are not copied."""
    values = pa.array(np.ascontiguousarray(array).ravel())
    depth, height, width = array.shape
    for length, count in ((width, depth * height), (height, depth), (depth, 1)):
        offsets = np.arange(count + 1, dtype=np.int32) * length
        values = pa.ListArray.from_arrays(pa.array(offsets), values)
    return values


def _array_of(column: pa.Array) -> np.ndarray:
    volume = column.storage if isinstance(column, pa.ExtensionArray) else column
    slices = volume.flatten()
    lines = slices.flatten()
    voxels = lines.flatten().to_numpy(zero_copy_only=True)
    return voxels.reshape(len(slices), len(lines) // len(slices), -1)
