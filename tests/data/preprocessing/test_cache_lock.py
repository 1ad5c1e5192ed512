import errno
import fcntl

import numpy as np
import pytest

from radtower.data.preprocessing.cache_folder import Part, prepare_folder, tidy
from radtower.data.preprocessing.cache_lock import filling, tidying
from radtower.data.preprocessing.provenance import settings_hash
from radtower.data.preprocessing.shard_files import VolumeRow, write_shard
from radtower.data.volume_cache import build_volume_cache
from radtower.processing.image_processing_ct3d import CT3DImageProcessor


def test_one_process_fills_a_part_and_others_fill_others(tmp_path):
    with (
        filling(tmp_path, "a"),
        filling(tmp_path, "b"),
        pytest.raises(BlockingIOError, match=r"got another at work on a in .*Wait"),
        filling(tmp_path, "a"),
    ):
        pytest.fail("two processes fill one part")
    with filling(tmp_path, "a"):
        pass


def test_a_cache_is_tidied_while_nobody_fills_it(tmp_path):
    with filling(tmp_path, "a"), tidying(tmp_path) as is_alone:
        assert not is_alone
    with tidying(tmp_path) as is_alone:
        assert is_alone


def test_a_second_run_is_refused(tmp_path):
    processor = CT3DImageProcessor((5.0, 3.0, 4.0), (4, 6, 5))
    prepare_folder(tmp_path / "cache", processor)
    refused = pytest.raises(BlockingIOError, match=r"at work on 00000-of-00001 in .*cache")
    with filling(tmp_path / "cache", str(Part())), refused:
        build_volume_cache({"x": tmp_path / "x.nii"}, processor, tmp_path / "cache")


def test_files_of_a_part_that_is_being_filled_are_left_alone(tmp_path):
    processor = CT3DImageProcessor((5.0, 3.0, 4.0), (4, 6, 5))
    prepare_folder(tmp_path / "cache", processor)
    shards = tmp_path / "cache" / "shards"
    for name in ("a", "b"):
        row = VolumeRow(name, settings_hash(processor), "t", "h", "", 1)
        write_shard(shards / f"{name}.arrow", [(row, np.zeros((4, 6, 5), dtype=np.int16))])
    (shards / ".c.arrow.partial").write_bytes(b"being written")
    before = sorted(shards.iterdir())
    with filling(tmp_path / "cache", "another"):
        tidy(tmp_path / "cache", processor)
    assert sorted(shards.iterdir()) == before
    tidy(tmp_path / "cache", processor)
    assert len(list(shards.iterdir())) == 1


def test_a_file_system_without_locks_is_said_and_used(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(code, "from the file system")

    monkeypatch.setattr(fcntl, "flock", flock)
    code = errno.ENOSYS
    with pytest.warns(UserWarning, match=r"locks is on a file system without locks"), filling(tmp_path, "a"):
        pass
    code = errno.EIO
    with pytest.raises(OSError, match="from the file system"), filling(tmp_path, "a"):
        pass
