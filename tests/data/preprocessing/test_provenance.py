import os

import pytest

from radtower.data.preprocessing.provenance import (
    kept_size,
    processor_hash,
    resampling_settings,
    settings_hash,
    source_sha256,
    source_stamp,
)
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.scan_reference import ScanReference

CHANGES = [
    {"spacing_mm": (5.0, 3.0, 4.5)},
    {"size": (4, 6, 6)},
    {"cache_size": (6, 6, 5)},
    {"windows_hu": [[-1000, 200]]},
    {"fill_hu": -1001.0},
    {"orientation": "RAS"},
    {"antialias": False},
    {"crop": "lung"},
]


def _processor(**settings) -> CT3DImageProcessor:
    given = {"spacing_mm": (5.0, 3.0, 4.0), "size": (4, 6, 5), "windows_hu": [[-1000, 200], [-160, 240]]}
    return CT3DImageProcessor(**given | settings)


@pytest.mark.parametrize("setting", CHANGES)
def test_every_setting_changes_the_hash_of_the_processor_and_of_what_is_cached(setting):
    for hash_of in (processor_hash, settings_hash):
        assert hash_of(_processor(**setting)) != hash_of(_processor())
        assert len(hash_of(_processor(**setting))) == 12


def test_what_comes_after_the_cache_changes_the_hash_of_the_processor_only():
    with_margin = _processor(cache_size=(6, 6, 5))
    for setting in ({"windows_hu": [[-1000, 240], [0, 80]]}, {"size": (2, 4, 5)}):
        other = _processor(cache_size=(6, 6, 5), **setting)
        assert settings_hash(other) == settings_hash(with_margin)
        assert processor_hash(other) != processor_hash(with_margin)
    assert (kept_size(with_margin), kept_size(_processor())) == ((6, 6, 5), (4, 6, 5))
    assert resampling_settings(with_margin)["span_hu"] == [-1000.0, 240.0]


def test_the_hashes_are_the_same_after_saving_and_loading(tmp_path):
    processor = _processor(cache_size=(6, 6, 5))
    processor.save_pretrained(tmp_path)
    reloaded = CT3DImageProcessor.from_pretrained(tmp_path)
    assert processor_hash(reloaded) == processor_hash(processor)
    assert settings_hash(reloaded) == settings_hash(processor)


@pytest.fixture
def series(tmp_path):
    folder = tmp_path / "series" / "deep"
    folder.mkdir(parents=True)
    for name in ("1.dcm", "2.dcm"):
        (folder / name).write_bytes(name.encode() * 100)
    return tmp_path / "series"


def test_the_stamp_follows_sizes_and_times_and_the_hash_the_content(series):
    scan = ScanReference(series)
    stamp, sha256 = source_stamp(scan), source_sha256(scan)
    file = series / "deep" / "2.dcm"
    os.utime(file, ns=(5, 5))
    assert source_stamp(scan) != stamp
    assert source_sha256(scan) == sha256
    stamp = source_stamp(scan)
    file.write_bytes(b"2.dcX" * 100)
    os.utime(file, ns=(5, 5))
    assert source_stamp(scan) == stamp  # what a stamp cannot see
    assert source_sha256(scan) != sha256
    file.rename(series / "deep" / "3.dcm")
    assert source_stamp(scan) != stamp


def test_a_data_set_may_move(series, tmp_path):
    before = source_stamp(ScanReference(series)), source_sha256(ScanReference(series))
    series.rename(tmp_path / "moved")
    after = ScanReference(tmp_path / "moved")
    assert (source_stamp(after), source_sha256(after)) == before


@pytest.mark.parametrize(
    "told", [{"series_uid": "1.2.3"}, {"rescale": (1.0, -8192.0)}, {"spacing_mm": (1.0, 0.5, 0.5)}]
)
def test_what_a_table_says_belongs_to_the_source(series, told):
    plain, with_table = ScanReference(series), ScanReference(series, **told)
    assert source_stamp(plain) != source_stamp(with_table)
    assert source_sha256(plain) != source_sha256(with_table)


def test_a_detached_header_brings_its_voxels(tmp_path):
    (tmp_path / "scan.mhd").write_text("header")
    (tmp_path / "scan.raw").write_bytes(b"voxels")
    before = source_sha256(ScanReference(tmp_path / "scan.mhd"))
    (tmp_path / "scan.raw").write_bytes(b"Voxels")
    assert source_sha256(ScanReference(tmp_path / "scan.mhd")) != before


def test_a_scan_that_is_not_there_has_no_stamp(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nii"):
        source_stamp(ScanReference(tmp_path / "gone.nii"))
