import json
from importlib.metadata import version

from radtower.data.volume_cache import open_volume_cache


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


def test_a_path_that_does_not_exist_is_one_line_and_exit_code_2(radtower, tmp_path):
    done = radtower("doctor", tmp_path / "nowhere.nii.gz")
    assert done.code == 2
    assert done.out == ""
    assert done.err.startswith("error: path must exist, got ")
    assert done.err.count("\n") == 1


def test_doctor_without_a_scan_lists_what_is_installed(radtower):
    versions = json.loads(radtower("doctor", "--json").out)
    assert versions["torch"] == version("torch")
    assert {"radtower", "transformers", "matplotlib", "openai"} <= set(versions)
    assert version("transformers") in radtower("doctor").out


def test_preprocess_finishes_the_good_scans_and_lists_the_bad(radtower, manifest, processor_folder, tmp_path):
    done = radtower("preprocess", manifest, "-o", tmp_path / "cache", "--processor", processor_folder)
    assert done.code == 1
    assert "2 of 3 scans in" in done.out
    failed = [line for line in done.err.splitlines() if line.startswith("failed: ")]
    assert len(failed) == 1
    assert failed[0].startswith("failed: s2: ")
    assert "bad.nii.gz" in failed[0]
    cache = open_volume_cache(tmp_path / "cache")
    assert list(cache.row_by_study) == ["s1", "s3"]
    assert cache["s1"].shape == (1, 8, 8, 8)


def test_preprocess_leaves_a_folder_alone_that_is_no_cache(radtower, manifest, processor_folder, tmp_path):
    done = radtower("preprocess", manifest, "-o", tmp_path, "--processor", processor_folder)
    assert done.code == 2
    assert "which is neither" in done.err
    assert manifest.exists()
