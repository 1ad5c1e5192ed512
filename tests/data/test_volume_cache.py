import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from radtower.data.volume_cache import build_volume_cache, open_volume_cache, processor_hash
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.volume_io import Volume, VolumeSource, affine_from_spacing, read_volume, write_volume

SPACING_MM = (4.0, 2.0, 3.0)
PATIENT = "Doe-John-1958"


def _processor(**settings) -> CT3DImageProcessor:
    given = {"spacing_mm": (5.0, 3.0, 4.0), "size": (4, 6, 5), "windows_hu": [[-1000, 200], [-160, 240]]}
    return CT3DImageProcessor(**given | settings)


def _write_scan(path: Path, seed: int) -> Path:
    array = np.random.default_rng(seed).integers(-1000, 800, (7, 9, 8)).astype(np.int16)
    affine = affine_from_spacing(SPACING_MM)
    write_volume(Volume(array, SPACING_MM, affine, "LPS", VolumeSource("test", "none")), path)
    return path


@pytest.fixture
def scans(tmp_path) -> dict[str, Path]:
    broken = tmp_path / "broken.nii.gz"
    broken.write_bytes(b"this is no scan")
    return {
        "first": _write_scan(tmp_path / "a.nii.gz", 1),
        PATIENT: broken,
        "gone": tmp_path / "gone.nii.gz",
        "last": _write_scan(tmp_path / "b.nii.gz", 2),
    }


def test_holds_what_the_processor_returns_in_half_precision(scans, tmp_path):
    done = []
    cache = build_volume_cache(scans, _processor(), tmp_path / "cache", done.append)
    assert done == [1, 2, 3, 4]
    for study_id in ("first", "last"):
        expected = _processor()(read_volume(scans[study_id]))["pixel_values"][0]
        assert cache[study_id].dtype == torch.float32
        assert cache[study_id].shape == (2, 4, 6, 5)
        assert torch.equal(cache[study_id], expected.half().float())
    assert not torch.equal(cache["first"], cache["last"])
    assert cache.pixel_values.dtype == np.float16
    assert isinstance(cache.pixel_values, np.memmap)


def test_a_scan_that_cannot_be_read_is_recorded_and_the_others_are_finished(scans, tmp_path):
    built = build_volume_cache(scans, _processor(), tmp_path / "cache")
    opened = open_volume_cache(tmp_path / "cache", _processor())
    for cache in (built, opened):
        assert cache.row_by_study == {"first": 0, "last": 1}
        assert list(cache.failures) == [PATIENT, "gone"]
        assert "broken.nii.gz" in cache.failures[PATIENT]
        assert "gone.nii.gz" in cache.failures["gone"]
    assert torch.equal(opened["last"], built["last"])


def test_an_error_names_the_hash_of_a_study_and_never_its_id(scans, tmp_path):
    cache = build_volume_cache(scans, _processor(), tmp_path / "cache")
    short_hash = hashlib.sha256(PATIENT.encode()).hexdigest()[:12]
    with pytest.raises(KeyError, match=rf"sha256 {short_hash}\) that is not: it could not be read") as failed:
        cache[PATIENT]
    assert PATIENT not in str(failed.value)
    with pytest.raises(KeyError, match="it was not in the manifest") as unknown:
        cache["Doe-Jane"]
    assert "Jane" not in str(unknown.value)


def test_refuses_a_list_of_scans_that_all_fail_and_keeps_the_older_cache(scans, tmp_path):
    build_volume_cache(scans, _processor(), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"got 1 failures of 1\. The first says: .*broken\.nii\.gz"):
        build_volume_cache({"x": scans[PATIENT]}, _processor(), tmp_path / "cache")
    assert list(open_volume_cache(tmp_path / "cache").row_by_study) == ["first", "last"]
    with pytest.raises(ValueError, match=r"got 0 failures of 0.*there were no scans"):
        build_volume_cache({}, _processor(), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_replaces_an_older_cache_and_nothing_else(scans, tmp_path):
    build_volume_cache(scans, _processor(), tmp_path / "cache")
    build_volume_cache({"only": scans["last"]}, _processor(size=(2, 3, 4)), tmp_path / "cache")
    assert open_volume_cache(tmp_path / "cache")["only"].shape == (2, 2, 3, 4)
    precious = tmp_path / "thesis" / "chapter.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(FileExistsError, match=r"got .*thesis, which is neither"):
        build_volume_cache(scans, _processor(), tmp_path / "thesis")
    assert precious.read_text() == "years of work"
    (tmp_path / "empty").mkdir()
    build_volume_cache({"only": scans["last"]}, _processor(), tmp_path / "empty")


def test_refuses_another_processor_and_names_both(scans, tmp_path):
    build_volume_cache({"first": scans["first"]}, _processor(), tmp_path / "cache")
    other = _processor(fill_hu=-900.0)
    wanted, found = processor_hash(other), processor_hash(_processor())
    assert wanted != found
    with pytest.raises(ValueError, match=rf"same processor settings {wanted}, got {found} in .*cache"):
        open_volume_cache(tmp_path / "cache", other)
    assert open_volume_cache(tmp_path / "cache").image_processor.fill_hu == -1000.0


@pytest.mark.parametrize(
    "setting",
    [
        {"spacing_mm": (5.0, 3.0, 4.5)},
        {"size": (4, 6, 6)},
        {"windows_hu": [[-1000, 200]]},
        {"fill_hu": -1001.0},
        {"orientation": "RAS"},
    ],
)
def test_every_setting_changes_the_hash(setting):
    assert processor_hash(_processor(**setting)) != processor_hash(_processor())
    assert len(processor_hash(_processor(**setting))) == 12


def test_the_hash_is_the_same_after_saving_and_loading(tmp_path):
    _processor().save_pretrained(tmp_path)
    assert processor_hash(CT3DImageProcessor.from_pretrained(tmp_path)) == processor_hash(_processor())


def test_a_cache_that_was_never_finished_is_not_opened(scans, tmp_path):
    class Killed(BaseException):
        pass

    def stop(done):
        if done == 2:
            raise Killed

    with pytest.raises(Killed):
        build_volume_cache(scans, _processor(), tmp_path / "cache", stop)
    for folder in (tmp_path / "cache", tmp_path / "cache.partial"):
        with pytest.raises(FileNotFoundError, match=rf"got .*{folder.name}\. Run radtower preprocess first"):
            open_volume_cache(folder)
    build_volume_cache(scans, _processor(), tmp_path / "cache")
    assert not (tmp_path / "cache.partial").exists()
    assert json.loads((tmp_path / "cache" / "index.json").read_text())["rows"] == {"first": 0, "last": 1}
