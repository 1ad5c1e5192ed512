import os
import re

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
    assert source_stamp(after) != before[0]  # has to be read again, to find that it is the same
    assert source_sha256(after) == before[1]


@pytest.mark.parametrize(
    "told", [{"series_uid": "1.2.3"}, {"rescale": (1.0, -8192.0)}, {"spacing_mm": (1.0, 0.5, 0.5)}]
)
def test_what_a_table_says_belongs_to_the_source(series, told):
    plain, with_table = ScanReference(series), ScanReference(series, **told)
    assert source_stamp(plain) != source_stamp(with_table)
    assert source_sha256(plain) != source_sha256(with_table)


DETACHED = [
    ("scan.mhd", "NDims = 3\nElementDataFile = voxels.raw\n", "voxels.raw"),
    ("scan[1].mhd", "NDims = 3\nElementDataFile = scan[1].raw\n", "scan[1].raw"),
    ("scan.mha", "NDims = 3\nElementDataFile = v.raw\n", "v.raw"),
    ("scan.mhd", "NDims = 3\nElementDataFile = LIST\na.raw\nb.raw\n", "b.raw"),
    ("scan.mhd", "NDims = 3\nElementDataFile = [%02d.raw 1 2 1\n", "[02.raw"),
    ("scan.nrrd", "NRRD0004\ntype: short\ndata file: c.raw\n\n", "c.raw"),
    ("scan.NHDR", "NRRD0004\nDataFile: deep/c.raw\nkey:=value", "deep/c.raw"),
    ("scan.nhdr", "NRRD0004\ndata file: LIST\na.raw\nb.raw\n", "b.raw"),
    ("scan.nhdr", "NRRD0004\ndata file: ./s%03d.raw 1 20 1\n\n", "s002.raw"),
]


@pytest.mark.parametrize(("name", "header", "data"), DETACHED)
def test_a_detached_header_brings_its_voxels(tmp_path, name, header, data):
    (tmp_path / "deep").mkdir()
    for file in ("a.raw", data):
        (tmp_path / file).write_bytes(b"voxels")
    (tmp_path / name).write_text(header)
    scan = ScanReference(tmp_path / name)
    stamp, sha256 = source_stamp(scan), source_sha256(scan)
    (tmp_path / "stranger.txt").write_text("of another scan")
    assert (source_stamp(scan), source_sha256(scan)) == (stamp, sha256)
    (tmp_path / data).write_bytes(b"Voxels!")
    assert source_stamp(scan) != stamp
    assert source_sha256(scan) != sha256
    (tmp_path / data).unlink()
    with pytest.raises(FileNotFoundError, match=rf"must be beside its header, got no .*{re.escape(name)}"):
        source_sha256(scan)


@pytest.mark.parametrize(
    ("name", "header"),
    [
        ("scan.mha", b"NDims = 3\nElementDataFile = LOCAL\nElementDataFile = gone.raw\n"),
        ("scan.nrrd", b"NRRD0004\ntype: short\n\ndata file: gone.raw\n"),
        ("scan.mhd", b"\xff\xfe no header"),
        ("scan.nhdr", b"\xff\xfe no header"),
    ],
)
def test_voxels_in_the_same_file_are_not_taken_for_names(tmp_path, name, header):
    (tmp_path / name).write_bytes(header)
    before = source_sha256(ScanReference(tmp_path / name))
    (tmp_path / name).write_bytes(header + b"1")
    assert source_sha256(ScanReference(tmp_path / name)) != before


def test_a_scan_that_is_not_there_has_no_stamp(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.nii"):
        source_stamp(ScanReference(tmp_path / "gone.nii"))
