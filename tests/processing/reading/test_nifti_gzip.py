"""The own inflate of NIfTI: every form of gzip that writers make, and damage that must not pass."""

import gzip

import numpy as np
import pytest
import SimpleITK as sitk

from radtower.processing.reading import nifti
from radtower.processing.volume_io import read_volume


@pytest.fixture
def scan(tmp_path):
    """The bytes of an uncompressed file, its values, and a place for compressed ones."""
    array = np.random.default_rng(0).integers(-1024, 900, (7, 31, 29)).astype(np.int16)
    sitk.WriteImage(sitk.GetImageFromArray(array), str(tmp_path / "plain.nii"))
    return (tmp_path / "plain.nii").read_bytes(), array, tmp_path / "scan.nii.gz"


def _members(plain: bytes) -> bytes:
    return b"".join(gzip.compress(plain[start : start + 5000]) for start in range(0, len(plain), 5000))


@pytest.mark.parametrize(
    "compress",
    [
        gzip.compress,
        _members,
        lambda plain: gzip.compress(plain) + bytes(512),
        lambda plain: gzip.compress(plain, compresslevel=0),
        lambda plain: gzip.compress(b"") + gzip.compress(plain),
    ],
    ids=["one member", "several members", "padded to a block", "stored", "an empty member first"],
)
@pytest.mark.parametrize("chunk_bytes", [7, 1 << 18])
def test_reads_every_form_of_gzip(scan, monkeypatch, compress, chunk_bytes):
    plain, array, path = scan
    path.write_bytes(compress(plain))
    monkeypatch.setattr(nifti, "CHUNK_BYTES", chunk_bytes)
    volume = read_volume(path)
    assert np.array_equal(volume.array_hu, array)  # SimpleITK's own orientation is LPS


def test_a_wrong_checksum_is_refused(scan):
    plain, _array, path = scan
    packed = bytearray(gzip.compress(plain))
    packed[-6] ^= 1  # within the CRC-32, before the length
    path.write_bytes(packed)
    with pytest.raises(ValueError, match=r"got Error -6 Incorrect checksum found in"):
        read_volume(path)


def test_a_file_that_lacks_only_the_checksum_is_refused(scan):
    plain, _array, path = scan
    path.write_bytes(gzip.compress(plain)[:-8])
    with pytest.raises(ValueError, match="got Compressed file ended before the end of its data"):
        read_volume(path)


@pytest.mark.parametrize("odd_voxel", [None, 0, 3000, 7 * 31 * 29 - 1])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_floats_stay_what_they_are_and_whole_ones_become_int16(tmp_path, monkeypatch, odd_voxel, dtype):
    monkeypatch.setattr(nifti, "CHUNK_BYTES", 1 << 10)
    array = np.random.default_rng(0).integers(-1024, 900, (7, 31, 29)).astype(dtype)
    if odd_voxel is not None:
        array.flat[odd_voxel] = 12.25
    path = tmp_path / "scan.nii.gz"
    sitk.WriteImage(sitk.GetImageFromArray(array), str(path))
    volume = read_volume(path)
    assert volume.array_hu.dtype == (np.int16 if odd_voxel is None else np.float32)
    assert np.array_equal(volume.array_hu, array)
