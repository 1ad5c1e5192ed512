import hashlib
import json
import os
import pickle
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch

from radtower.data.preprocessing.shard_files import read_rows
from radtower.data.volume_cache import VolumeCache, build_volume_cache, open_volume_cache
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.scan_reference import ScanReference
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


@pytest.fixture
def many(tmp_path) -> dict[str, Path]:
    return {f"scan-{seed}": _write_scan(tmp_path / f"{seed}.nii.gz", seed) for seed in range(7)}


def _created(folder: Path) -> dict[str, int]:
    """When each stored volume was made; a volume that is kept keeps its time."""
    rows = [row for path in (folder / "shards").glob("*.arrow") for row in read_rows(path)]
    assert len(rows) == len({row.volume_id for row in rows})
    return {row.volume_id: row.created_ns for row in rows}


def _rows_per_shard(folder: Path) -> list[int]:
    return sorted(len(read_rows(path)) for path in (folder / "shards").iterdir())


def test_holds_the_resampled_volume_in_whole_hounsfield_units(scans, tmp_path):
    done = []
    processor = _processor(cache_size=(6, 8, 5))
    cache = build_volume_cache(scans, processor, tmp_path / "cache", done.append)
    assert done == [1, 2, 3, 4]
    for volume_id in ("first", "last"):
        expected = processor.resample(read_volume(scans[volume_id]), size=(6, 8, 5)).round()
        assert cache.volume_hu(volume_id).dtype == torch.int16
        assert torch.equal(cache.volume_hu(volume_id).float(), expected)
        assert torch.equal(cache[volume_id], processor.window(expected[1:5, 1:7]))
        pixel_values = processor(read_volume(scans[volume_id]))["pixel_values"][0]
        # Half a unit of the narrower window, which spans 400 of them.
        torch.testing.assert_close(cache[volume_id], pixel_values, atol=0.5 / 200 + 1e-6, rtol=0)
    assert not torch.equal(cache["first"], cache["last"])
    assert (len(cache), "first" in cache, "gone" in cache) == (2, True, False)


def test_volumes_are_mapped_and_not_read(many, tmp_path):
    cache = build_volume_cache(many, _processor(), tmp_path / "cache")
    volume = cache.mapped_hu("scan-3")
    assert not volume.flags.owndata
    assert not volume.flags.writeable
    assert cache.mapped_hu("scan-3") is volume
    copied = pickle.loads(pickle.dumps(cache))  # as for a process of a data loader
    assert torch.equal(copied["scan-3"], cache["scan-3"])


def test_a_scan_that_cannot_be_read_is_recorded_and_the_others_are_finished(scans, tmp_path):
    built = build_volume_cache(scans, _processor(), tmp_path / "cache")
    opened = open_volume_cache(tmp_path / "cache", _processor())
    for cache in (built, opened):
        assert sorted(cache.volumes) == ["first", "last"]
        assert sorted(cache.failures) == sorted([PATIENT, "gone"])
        assert "broken.nii.gz" in cache.failures[PATIENT]
        assert re.match(r"path must exist, got .*gone\.nii\.gz", cache.failures["gone"])
    assert torch.equal(opened["last"], built["last"])


def test_an_error_names_the_hash_of_a_volume_and_never_its_id(scans, tmp_path):
    cache = build_volume_cache(scans, _processor(), tmp_path / "cache")
    short_hash = hashlib.sha256(PATIENT.encode()).hexdigest()[:12]
    with pytest.raises(KeyError, match=rf"sha256 {short_hash}\) that is not: it could not be read") as failed:
        cache[PATIENT]
    assert PATIENT not in str(failed.value)
    with pytest.raises(KeyError, match="it was not in the manifest") as unknown:
        cache["Doe-Jane"]
    assert "Jane" not in str(unknown.value)


def test_says_what_is_readable_and_refuses_a_manifest_that_it_does_not_cover(scans, tmp_path):
    cache = build_volume_cache(scans, _processor(), tmp_path / "cache")
    assert cache.is_readable([PATIENT, "last", "gone", "first"]) == [False, True, False, True]
    with pytest.raises(ValueError, match="got 2 of 3 volumes that were never prepared") as refused:
        cache.is_readable(["first", "Doe-Jane", "x"])
    assert "Jane" not in str(refused.value)


def test_what_is_done_is_kept_and_what_failed_is_tried_again(scans, tmp_path):
    build_volume_cache(scans, _processor(), tmp_path / "cache")
    before = _created(tmp_path / "cache")
    _write_scan(scans["gone"], 3)
    done = []
    cache = build_volume_cache(scans, _processor(), tmp_path / "cache", done.append)
    assert done == [2, 3, 4]
    after = _created(tmp_path / "cache")
    assert {name: after[name] for name in before} == before
    assert sorted(after) == ["first", "gone", "last"]
    assert list(cache.failures) == [PATIENT]
    assert [path.name for path in (tmp_path / "cache" / "failures").iterdir()] == [
        hashlib.sha256(PATIENT.encode()).hexdigest()[:16] + ".json"
    ]


def test_a_changed_scan_is_done_again_and_a_touched_one_is_not(many, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(many, _processor(), folder, scans_per_shard=3)
    before = _created(folder)
    _write_scan(many["scan-2"], 100)
    os.utime(many["scan-4"], ns=(1, 1))
    cache = build_volume_cache(many, _processor(), folder, scans_per_shard=3)
    after = _created(folder)
    assert [name for name in before if after[name] != before[name]] == ["scan-2"]
    expected = _processor().resample(read_volume(many["scan-2"])).round()
    assert torch.equal(cache.volume_hu("scan-2").float(), expected)
    assert _rows_per_shard(folder) == [1, 3, 3]


@pytest.mark.parametrize("damage", ["truncated", "deleted", "other path"])
def test_a_scan_that_cannot_be_read_any_more_is_a_failure_and_comes_back_with_its_content(
    many, tmp_path, damage
):
    folder = tmp_path / "cache"
    expected = build_volume_cache(many, _processor(), folder).volume_hu("scan-2")
    before = _created(folder)
    content, scans = many["scan-2"].read_bytes(), dict(many)
    if damage == "truncated":
        many["scan-2"].write_bytes(content[:100])
    elif damage == "deleted":
        many["scan-2"].unlink()
    else:
        scans["scan-2"] = tmp_path / "nowhere.nii.gz"
    for cache in (build_volume_cache(scans, _processor(), folder), open_volume_cache(folder, _processor())):
        assert list(cache.failures) == ["scan-2"]
        assert sorted(cache.volumes) == sorted(set(many) - {"scan-2"})
        assert cache.is_readable(["scan-1", "scan-2"]) == [True, False]
        with pytest.raises(KeyError, match="it could not be read"):
            cache.volume_hu("scan-2")
    many["scan-2"].write_bytes(content)
    cache = build_volume_cache(many, _processor(), folder)
    assert cache.failures == {}
    assert torch.equal(cache.volume_hu("scan-2"), expected)
    assert _created(folder) == before  # nothing was resampled again


def test_of_a_failure_and_a_volume_the_newer_counts(scans, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(scans, _processor(), folder)
    (failure,) = [path for path in (folder / "failures").iterdir() if "gone" in path.read_text()]
    content = failure.read_text()
    _write_scan(scans["gone"], 3)
    build_volume_cache(scans, _processor(), folder)
    failure.write_text(content)  # as if the run had been killed before it removed the failure
    cache = open_volume_cache(folder)
    assert list(cache.failures) == [PATIENT]
    assert "gone" in cache


def test_scans_that_change_places_are_done_again_although_sizes_and_times_agree(tmp_path):
    folder, scans = tmp_path / "cache", {}
    for seed in range(3):
        scans[f"scan-{seed}"] = path = tmp_path / f"{seed}.nii"
        _write_scan(path, seed)
        os.utime(path, ns=(1, 1))
    expected = build_volume_cache(scans, _processor(), folder).volume_hu("scan-1")
    before = _created(folder)
    scans = scans | {"scan-0": scans["scan-1"], "scan-1": scans["scan-0"]}
    cache = build_volume_cache(scans, _processor(), folder)
    assert torch.equal(cache.volume_hu("scan-0"), expected)
    assert [name for name, time_ns in _created(folder).items() if time_ns != before[name]] == [
        "scan-0",
        "scan-1",
    ]


def test_touched_and_moved_scans_are_read_once_to_find_them_unchanged(many, tmp_path):
    folder, done = tmp_path / "cache", []
    build_volume_cache(many, _processor(), folder)
    before = _created(folder)
    os.utime(many["scan-4"], ns=(1, 1))
    moved = many | {"scan-5": many["scan-5"].rename(tmp_path / "moved.nii.gz")}
    for _ in range(2):
        build_volume_cache(moved, _processor(), folder, done.append)
    assert done == [5, 6, 7, 7]  # the second time, all seven are known without being read
    assert _created(folder) == before
    _write_scan(many["scan-4"], 100)
    os.utime(many["scan-4"], ns=(2, 2))
    build_volume_cache(moved, _processor(), folder)
    assert [name for name, time_ns in _created(folder).items() if time_ns != before[name]] == ["scan-4"]


def test_a_damaged_shard_is_set_aside_and_its_volumes_are_made_again(many, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(many, _processor(), folder, scans_per_shard=3)
    before = _created(folder)
    damaged = max((folder / "shards").iterdir(), key=lambda path: len(read_rows(path)))
    lost = [row.volume_id for row in read_rows(damaged)]
    damaged.write_bytes(damaged.read_bytes()[:2000])
    with pytest.raises(ValueError, match=rf"got .*{damaged.name}: .* Run radtower preprocess again"):
        open_volume_cache(folder)
    with pytest.warns(UserWarning, match=rf"{damaged.name}: .* Now in .*damaged"):
        cache = build_volume_cache(many, _processor(), folder, scans_per_shard=3)
    after = _created(folder)
    assert sorted(name for name in before if after[name] != before[name]) == sorted(lost)
    assert (sorted(cache.volumes), cache.failures) == (sorted(many), {})
    assert [path.name for path in (folder / "damaged").iterdir()] == [damaged.name]


def test_what_a_table_says_of_a_scan_counts_as_its_source(many, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(many, _processor(), folder)
    before = _created(folder)
    scans = dict(many) | {"scan-1": ScanReference(many["scan-1"], spacing_mm=(8.0, 4.0, 6.0))}
    cache = build_volume_cache(scans, _processor(), folder)
    assert [name for name, time_ns in _created(folder).items() if time_ns != before[name]] == ["scan-1"]
    expected = _processor().resample(read_volume(scans["scan-1"])).round()
    assert torch.equal(cache.volume_hu("scan-1").float(), expected)


def test_a_cache_of_other_settings_is_left_alone_unless_it_is_to_be_replaced(many, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(many, _processor(), folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    differences = (
        r"fill_hu -1000\.0 instead of -900\.0; volumes of \(4, 6, 5\) instead of \(2, 6, 5\) in .*cache"
    )
    with pytest.raises(FileExistsError, match=f"got 1 files with {differences}"):
        build_volume_cache(many, _processor(fill_hu=-900.0, size=(2, 6, 5)), folder)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_other_settings_make_every_volume_again(many, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(many, _processor(), folder, scans_per_shard=3)
    before = _created(folder)
    cache = build_volume_cache(
        many, _processor(size=(2, 3, 4)), folder, scans_per_shard=3, should_replace=True
    )
    assert cache["scan-0"].shape == (2, 2, 3, 4)
    assert not set(_created(folder).values()) & set(before.values())
    assert _rows_per_shard(folder) == [1, 3, 3]


def test_other_windows_of_the_same_span_read_the_same_volumes(many, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(many, _processor(), folder)
    before = _created(folder)
    other = _processor(windows_hu=[[-1000, 240], [-600, -200], [0, 100]])
    cache = open_volume_cache(folder, other)
    assert torch.equal(cache["scan-5"], other.window(cache.volume_hu("scan-5")))
    assert cache["scan-5"].shape == (3, 4, 6, 5)
    build_volume_cache(many, other, folder)
    assert _created(folder) == before
    assert open_volume_cache(folder).image_processor.windows_hu == other.windows_hu


def test_a_smaller_crop_reads_the_middle_of_the_same_volumes(many, tmp_path):
    cache = build_volume_cache(many, _processor(), tmp_path / "cache")
    smaller = _processor(size=(2, 6, 3))
    opened = open_volume_cache(tmp_path / "cache", smaller)
    assert torch.equal(opened["scan-5"], cache["scan-5"][:, 1:3, :, 1:4])


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"spacing_mm": (5.0, 3.0, 4.5)}, r"spacing_mm \[5\.0, 3\.0, 4\.0\] instead of \[5\.0, 3\.0, 4\.5\]"),
        ({"windows_hu": [[-1000, 200]]}, r"span_hu \[-1000\.0, 240\.0\] instead of \[-1000\.0, 200\.0\]"),
        ({"fill_hu": -900.0}, r"fill_hu -1000\.0 instead of -900\.0"),
        ({"orientation": "RAS"}, "orientation 'LPS' instead of 'RAS'"),
        ({"antialias": False}, "antialias True instead of False"),
        ({"crop": "lung"}, "crop 'center' instead of 'lung'"),
        ({"size": (4, 5, 5)}, r"volumes of \(4, 6, 5\), of which \(4, 5, 5\) is not the middle"),
        ({"size": (6, 6, 5)}, r"volumes of \(4, 6, 5\), of which \(6, 6, 5\) is not the middle"),
    ],
)
def test_refuses_a_processor_that_would_resample_differently(many, tmp_path, setting, message):
    build_volume_cache({"scan-0": many["scan-0"]}, _processor(), tmp_path / "cache")
    with pytest.raises(ValueError, match=message + r".* in .*cache\. Rebuild"):
        open_volume_cache(tmp_path / "cache", _processor(**setting))


def test_refuses_a_list_of_scans_that_all_fail(scans, tmp_path):
    with pytest.raises(ValueError, match=r"got 1 failures of 1\. The first says: .*broken\.nii\.gz"):
        build_volume_cache({"x": scans[PATIENT]}, _processor(), tmp_path / "cache")
    with pytest.raises(ValueError, match=r"got 0 failures of 0.*there were no scans"):
        build_volume_cache({}, _processor(), tmp_path / "none")


def test_grows_an_earlier_cache_and_leaves_everything_else_alone(scans, tmp_path):
    build_volume_cache({"first": scans["first"]}, _processor(), tmp_path / "cache")
    cache = build_volume_cache({"last": scans["last"]}, _processor(), tmp_path / "cache")
    assert sorted(cache.volumes) == ["first", "last"]
    precious = tmp_path / "thesis" / "chapter.txt"
    precious.parent.mkdir()
    precious.write_text("years of work")
    with pytest.raises(FileExistsError, match=r"got .*thesis, which is neither"):
        build_volume_cache(scans, _processor(), tmp_path / "thesis")
    assert [path.name for path in precious.parent.iterdir()] == ["chapter.txt"]
    (tmp_path / "empty").mkdir()
    build_volume_cache({"only": scans["last"]}, _processor(), tmp_path / "empty")


def test_refuses_a_window_that_int16_cannot_hold(scans, tmp_path):
    with pytest.raises(ValueError, match=r"within -32768 and 32767 HU for a cache, got -1000 to 40000"):
        build_volume_cache(scans, _processor(windows_hu=[[-1000, 40_000]]), tmp_path / "cache")
    assert not (tmp_path / "cache").exists()


def test_a_folder_without_a_cache_is_not_opened(tmp_path):
    _processor().save_pretrained(tmp_path / "model")
    with pytest.raises(FileNotFoundError, match=r"got .*model\. Run radtower preprocess first"):
        open_volume_cache(tmp_path / "model")


def test_what_the_reader_and_the_processor_say_is_kept_with_the_volume(scans, tmp_path):
    processor = _processor(crop="lung", cache_size=(6, 8, 5))
    cache = build_volume_cache({"first": scans["first"]}, processor, tmp_path / "cache")
    assert "no lung in a volume of shape (7, 9, 8)" in cache.volumes["first"].row.notes


@pytest.mark.slow
def test_workers_give_the_same_cache(many, scans, tmp_path):
    done = []
    given = many | {PATIENT: scans[PATIENT]}
    alone = build_volume_cache(given, _processor(), tmp_path / "alone")
    shared = build_volume_cache(
        given, _processor(), tmp_path / "shared", done.append, num_workers=2, scans_per_shard=2
    )
    assert done == list(range(1, 9))
    assert alone.failures == shared.failures
    assert list(shared.failures) == [PATIENT]
    for volume_id in many:
        assert torch.equal(alone.volume_hu(volume_id), shared.volume_hu(volume_id))
    assert _rows_per_shard(tmp_path / "shared") == [1, 2, 2, 2]


class _Hungry(CT3DImageProcessor):
    """Ends like a process that takes too much memory, when the scan has 13 slices."""

    def resample(self, study, spacing_mm=None, size=None):
        if len(study.array_hu) == 13:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().resample(study, spacing_mm, size)


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_its_scan_only(many, tmp_path):
    array = np.random.default_rng(0).integers(-1000, 800, (13, 9, 8)).astype(np.int16)
    affine = affine_from_spacing(SPACING_MM)
    volume = Volume(array, SPACING_MM, affine, "LPS", VolumeSource("test", "none"))
    write_volume(volume, tmp_path / "huge.nii.gz")
    scans = {"huge": tmp_path / "huge.nii.gz"} | many
    cache = build_volume_cache(scans, _Hungry((5.0, 3.0, 4.0), (4, 6, 5)), tmp_path / "cache", num_workers=2)
    assert sorted(cache.volumes) == sorted(many)
    assert list(cache.failures) == ["huge"]
    assert "killed (SIGKILL)" in cache.failures["huge"]


KILLED_RUN = """
import sys, time
from radtower.data.volume_cache import build_volume_cache
from radtower.processing.image_processing_ct3d import CT3DImageProcessor

def on_progress(done):
    print(done, flush=True)
    time.sleep(0.2)  # long enough to be killed in between

if __name__ == "__main__":
    scans = dict(line.split("=") for line in sys.argv[2:])
    processor = CT3DImageProcessor((5.0, 3.0, 4.0), (4, 6, 5), [[-1000, 200], [-160, 240]])
    build_volume_cache(scans, processor, sys.argv[1], on_progress, int(sys.stdin.readline()), 3)
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_run_that_was_killed_repeats_nothing_that_was_finished(many, tmp_path, num_workers):
    folder = tmp_path / "cache"
    arguments = [f"{volume_id}={path}" for volume_id, path in many.items()]
    command = [sys.executable, "-c", KILLED_RUN, str(folder), *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        process.stdin.write(f"{num_workers}\n")
        process.stdin.flush()
        while process.stdout.readline() != "5\n":
            assert process.poll() is None
        process.send_signal(signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    time.sleep(num_workers)  # its workers finish what they hold
    before = _created(folder)
    assert 5 <= len(before) <= 7
    missing = 7 - len(before)
    if missing:
        with pytest.raises(ValueError, match=f"got {missing} of 7 volumes that were never prepared"):
            open_volume_cache(folder).is_readable(many)
    done = []
    cache = build_volume_cache(many, _processor(), folder, done.append, scans_per_shard=3)
    assert done[0] == len(before)
    after = _created(folder)
    assert {name: after[name] for name in before} == before
    assert sorted(cache.volumes) == sorted(many)
    assert _rows_per_shard(folder) == [1, 3, 3]


def test_files_that_were_never_finished_are_removed(many, tmp_path):
    folder = tmp_path / "cache"
    build_volume_cache(many, _processor(), folder)
    (folder / "shards" / ".volume-x.arrow.1.partial").write_bytes(b"half")
    cache = build_volume_cache(many, _processor(), folder)
    assert len(cache) == 7
    assert [path.suffix for path in (folder / "shards").iterdir()] == [".arrow"]


def test_a_failure_with_other_settings_is_not_reported(scans, tmp_path):
    build_volume_cache(scans, _processor(), tmp_path / "cache")
    cache = build_volume_cache(
        {"last": scans["last"]}, _processor(fill_hu=-900.0), tmp_path / "cache", should_replace=True
    )
    assert cache.failures == {}
    assert isinstance(cache, VolumeCache)
    assert json.loads((tmp_path / "cache" / "volume_cache.json").read_text())["format"] == 1
