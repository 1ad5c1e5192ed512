import json
from importlib.metadata import version

import numpy as np
import pytest
import SimpleITK as sitk

from radtower.data.volume_cache import open_volume_cache
from radtower.processing.image_processing_ct3d import CT3DImageProcessor


def test_doctor_says_what_a_scan_is(radtower, phantom_scan):
    done = radtower("doctor", phantom_scan, "--json")
    report = json.loads(done.out)
    assert done.code == 0
    assert (report["format"], report["orientation"]) == ("NIfTI", "LPS")
    assert len(report["spacing_mm"]) == 3
    assert report["hu_min"] < -900
    assert report["verdict"] in ("usable", "usable with warnings")
    table = radtower("doctor", phantom_scan).out
    assert " x ".join(f"{mm:.3g}" for mm in report["spacing_mm"]) + " mm" in table
    assert f"{report['hu_min']:.0f} to {report['hu_max']:.0f}" in table
    assert "LPS" in table
    assert report["verdict"] in table


def test_doctor_warns_of_a_scan_without_lungs(radtower, scans):
    report = json.loads(radtower("doctor", scans[0], "--json").out)
    assert report["spacing_mm"] == [3.0, 2.0, 2.5]
    assert report["shape"] == [8, 12, 10]
    assert report["verdict"] == "usable with warnings"
    assert report["warnings"]


def test_doctor_hands_over_what_a_table_states(radtower, tmp_path):
    array = np.random.default_rng(0).integers(-1000, 600, (8, 12, 10)).astype(np.int16)
    image = sitk.GetImageFromArray((array + 8192).astype(np.int16))
    sitk.WriteImage(image, str(tmp_path / "v1.nii.gz"))
    refused = radtower("doctor", tmp_path / "v1.nii.gz")
    assert refused.code == 2
    assert "none of them air" in refused.err
    arguments = ("--rescale", 1, -8192, "--spacing", 3.5, 2.5, 1.5, "--json")
    report = json.loads(radtower("doctor", tmp_path / "v1.nii.gz", *arguments).out)
    assert (report["hu_min"], report["hu_max"]) == (array.min(), array.max())
    assert report["spacing_mm"] == [3.5, 2.5, 1.5]
    assert report["rescale"] == "slope 1 and intercept -8192 of the table, applied once"
    first, second = report["warnings"][:2]
    assert first.startswith("the affine of the file is the identity")
    assert second.startswith("spacing (3.5, 2.5, 1.5) mm (Z, Y, X) of the table instead of")


def test_doctor_refuses_a_scan_above_the_memory_limit(radtower, scans):
    done = radtower("doctor", scans[0], "--memory-limit-gb", "1e-6")
    assert done.code == 2
    assert "memory limit of 1e-06 GB, got 1.92e-06 GB for 10 x 12 x 8 voxels" in done.err


def test_doctor_lists_the_series_of_a_folder_and_reads_the_named_one(radtower, tmp_path):
    for uid, gap_mm in (("1.2.3", 2.0), ("1.2.4", 2.0)):
        for z in range(4):
            plane = np.random.default_rng(z).integers(-1000, 600, (1, 8, 8)).astype(np.int16)
            image = sitk.GetImageFromArray(plane)
            image.SetOrigin((0.0, 0.0, gap_mm * z))
            image.SetMetaData("0008|0060", "CT")
            image.SetMetaData("0020|000d", "1.2")
            image.SetMetaData("0020|000e", uid)
            writer = sitk.ImageFileWriter()
            writer.KeepOriginalImageUIDOn()
            writer.SetFileName(str(tmp_path / f"{uid}_{z}.dcm"))
            writer.Execute(image)
    refused = radtower("doctor", tmp_path)
    assert refused.code == 2
    assert "1.2.3 (CT, 4 slices of 2.00 mm); 1.2.4 (CT, 4 slices of 2.00 mm)" in refused.err
    report = json.loads(radtower("doctor", tmp_path, "--series", "1.2.4", "--json").out)
    assert report["shape"] == [4, 8, 8]


def test_a_path_that_does_not_exist_is_one_line_and_exit_code_2(radtower, tmp_path):
    done = radtower("doctor", tmp_path / "nowhere.nii.gz")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: path must exist, got ")
    assert done.err.count("\n") == 1


def test_doctor_without_a_scan_lists_what_is_installed(radtower):
    versions = json.loads(radtower("doctor", "--json").out)
    assert versions["torch"] == version("torch")
    assert {"radtower", "transformers", "matplotlib", "aiohttp"} <= set(versions)
    assert version("transformers") in radtower("doctor").out


def test_preprocess_finishes_the_good_scans_and_lists_the_bad(radtower, manifest, processor_folder, tmp_path):
    command = ("preprocess", manifest, "-o", tmp_path / "cache", "--processor", processor_folder)
    done = radtower(*command, "--workers", 0)
    assert done.code == 1
    assert "2 of 3 scans in" in done.out
    failed = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert failed[0].startswith("failed: s2: ")
    assert "bad.nii.gz" in failed[0]
    cache = open_volume_cache(tmp_path / "cache")
    assert sorted(cache.volumes) == ["s1", "s3"]
    assert cache["s1"].shape == (1, 8, 8, 8)


def test_preprocess_needs_no_reports(radtower, manifest_without_reports, processor_folder, tmp_path):
    command = ("preprocess", manifest_without_reports, "--processor", processor_folder)
    for name, how in (("one", ("--workers", 0)), ("tasks", ("--executor", "local", "--workers", 1))):
        assert "2 of 3 scans in" in radtower(*command, "-o", tmp_path / name, *how).out


def test_preprocess_lists_a_scan_that_cannot_be_read_any_more(
    radtower, manifest, scans, processor_folder, tmp_path
):
    command = ("preprocess", manifest, "-o", tmp_path / "cache", "--processor", processor_folder)
    radtower(*command, "--workers", 0)
    scans[0].write_bytes(scans[0].read_bytes()[:100])
    done = radtower(*command, "--workers", 0)
    assert done.code == 1
    assert "1 of 3 scans in" in done.out
    failed = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert [line.split(": ")[1] for line in failed] == ["s1", "s2"]


def test_preprocess_replaces_volumes_of_other_settings_only_when_told_to(
    radtower, manifest, processor_folder, tmp_path
):
    command = ("preprocess", manifest, "-o", tmp_path / "cache", "--workers", 0, "--processor")
    radtower(*command, processor_folder)
    CT3DImageProcessor((4.0, 4.0, 4.0), (6, 6, 6)).save_pretrained(tmp_path / "other")
    refused = radtower(*command, tmp_path / "other")
    assert refused.code == 2
    assert "volumes of (8, 8, 8) instead of (6, 6, 6)" in refused.err
    assert open_volume_cache(tmp_path / "cache").volume_hu("s1").shape == (8, 8, 8)
    assert radtower(*command, tmp_path / "other", "--replace").code == 1  # of the damaged scan
    assert open_volume_cache(tmp_path / "cache").volume_hu("s1").shape == (6, 6, 6)


def test_preprocess_refuses_a_folder_without_a_processor(radtower, manifest, tmp_path):
    done = radtower("preprocess", manifest, "-o", tmp_path / "cache", "--processor", tmp_path / "typo")
    assert done.code == 2
    assert "processor must be a folder with preprocessor_config.json, got " in done.err
    assert "typo" in done.err
    assert not (tmp_path / "cache").exists()


def test_preprocess_leaves_a_folder_alone_that_is_no_cache(radtower, manifest, processor_folder, tmp_path):
    command = ("preprocess", manifest, "-o", tmp_path, "--processor", processor_folder)
    done = radtower(*command, "--workers", 0)
    assert done.code == 2
    assert "which is neither" in done.err
    assert manifest.exists()


@pytest.mark.slow
def test_preprocess_runs_in_tasks_and_goes_on_where_it_was(radtower, manifest, processor_folder, tmp_path):
    command = ("preprocess", manifest, "-o", tmp_path / "cache", "--processor", processor_folder)
    done = radtower(*command, "--executor", "local", "--tasks", 2, "--workers", 1)
    assert done.code == 1
    assert "2 of 3 scans in" in done.out
    assert "failed: s2: " in done.err
    shards = sorted((tmp_path / "cache" / "shards").iterdir())
    again = radtower(*command, "--workers", 2)
    assert (again.code, again.out) == (1, done.out)
    assert sorted((tmp_path / "cache" / "shards").iterdir()) == shards


def test_preprocess_refuses_slurm_without_a_partition(radtower, manifest, processor_folder, tmp_path):
    command = ("preprocess", manifest, "-o", tmp_path / "cache", "--processor", processor_folder)
    done = radtower(*command, "--executor", "slurm")
    assert done.code == 2
    assert "partition must be given for slurm, got None" in done.err


def test_preprocess_says_what_was_remarkable(radtower, manifest, processor_folder, tmp_path, monkeypatch):
    CT3DImageProcessor((3.0, 3.0, 3.0), (8, 8, 8), crop="lung").save_pretrained(processor_folder)
    command = ("preprocess", manifest, "-o", tmp_path / "cache", "--processor", processor_folder)
    err = radtower(*command, "--workers", 0).err
    noted = [line for line in err.splitlines() if line.startswith("noted: ")]
    assert [line.split(": ")[1] for line in noted] == ["s1", "s3"]
    assert "there is no lung in a volume of shape (8, 12, 10): it is centered on itself" in noted[0]
    monkeypatch.setattr("radtower.cli.data.MAX_NOTES", 1)
    assert "noted: 1 more, in the column notes" in radtower(*command, "--workers", 0).err
