import numpy as np
import pyarrow as pa
import pytest
import torch
from datasets import Dataset, concatenate_datasets, load_dataset

from radtower.data.preprocessing.shard_files import (
    DamagedShardError,
    VolumeRow,
    map_volumes,
    read_rows,
    write_shard,
)

SHAPE = (3, 5, 4)


def _row(volume_id, **values) -> VolumeRow:
    given = {
        "settings_hash": "s",
        "source_stamp": "t",
        "source_sha256": "h",
        "notes": "",
        "created_ns": 2**60,
    }
    return VolumeRow(volume_id=volume_id, **given | values)


@pytest.fixture
def volumes():
    rng = np.random.default_rng(0)
    arrays = rng.integers(-1000, 3000, (4, *SHAPE)).astype(np.int16)
    return [(_row(f"v{n}", notes=f"a\nb{n}"), array) for n, array in enumerate(arrays)]


@pytest.fixture
def shard(volumes, tmp_path):
    write_shard(tmp_path / "a.arrow", iter(volumes))
    return tmp_path / "a.arrow"


def test_returns_rows_and_volumes_as_they_were_written(volumes, shard):
    assert read_rows(shard) == [row for row, _ in volumes]
    for mapped, (_, array) in zip(map_volumes(shard), volumes, strict=True):
        assert mapped.dtype == np.int16
        np.testing.assert_array_equal(mapped, array)
    assert [path.name for path in shard.parent.iterdir()] == ["a.arrow"]


def test_reads_nothing_into_memory(tmp_path):
    array = np.zeros((64, 128, 128), dtype=np.int16)
    write_shard(tmp_path / "big.arrow", [(_row("v"), array)] * 2)
    before = pa.total_allocated_bytes()
    mapped = map_volumes(tmp_path / "big.arrow")
    assert [volume.shape for volume in mapped] == [array.shape] * 2
    assert not mapped[0].flags.owndata
    dataset = Dataset.from_file(str(tmp_path / "big.arrow"))
    assert len(dataset) == 2
    assert pa.total_allocated_bytes() - before < array.nbytes / 100


def test_takes_arrays_that_are_not_contiguous(tmp_path):
    array = np.arange(120, dtype=np.int16).reshape(3, 5, 8)[::-1, :, ::2]
    write_shard(tmp_path / "a.arrow", [(_row("v"), array)])
    np.testing.assert_array_equal(map_volumes(tmp_path / "a.arrow")[0], array)


def test_a_write_that_fails_leaves_no_shard(volumes, tmp_path):
    def broken():
        yield volumes[0]
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_shard(tmp_path / "a.arrow", broken())
    assert not (tmp_path / "a.arrow").exists()


@pytest.mark.parametrize("kept", [0.0, 0.1, 0.5, 0.97])
def test_a_shard_that_is_not_whole_is_named(shard, kept):
    content = shard.read_bytes()
    shard.write_bytes(content[: int(kept * len(content))])
    for read in (read_rows, map_volumes):
        with pytest.raises(DamagedShardError, match=r"whole Arrow stream, got .*a\.arrow: "):
            read(shard)
    shard.unlink()
    with pytest.raises(FileNotFoundError, match=r"a\.arrow"):
        read_rows(shard)


def test_datasets_maps_shards_with_their_shape(volumes, shard, tmp_path):
    write_shard(tmp_path / "b.arrow", volumes[:1])
    dataset = concatenate_datasets(
        [Dataset.from_file(str(tmp_path / name)) for name in ("a.arrow", "b.arrow")]
    )
    assert dataset.features["volume_hu"].shape == SHAPE
    assert dataset["volume_id"][:] == ["v0", "v1", "v2", "v3", "v0"]
    for index in (2, 4):
        expected = volumes[index % 4][1]
        with_numpy = dataset.with_format("numpy", dtype=np.int16)[index]["volume_hu"]
        assert with_numpy.dtype == np.int16
        np.testing.assert_array_equal(with_numpy, expected)
        with_torch = dataset.with_format("torch", dtype=torch.int16)[index]["volume_hu"]
        assert torch.equal(with_torch, torch.from_numpy(expected.copy()))


def test_datasets_loads_a_shard_by_its_format(volumes, shard, tmp_path):
    dataset = load_dataset("arrow", data_files=[str(shard)], split="train", cache_dir=str(tmp_path / "hf"))
    np.testing.assert_array_equal(dataset.with_format("numpy")[3]["volume_hu"], volumes[3][1])
