import os
import shutil
from hashlib import sha256
from pathlib import Path

import pandas as pd
import pytest

from radtower.data.layouts.ct_rate import read_ct_rate, read_volume_names
from radtower.data.manifest import read_manifest, write_manifest
from radtower.labeling.findings import load_findings
from radtower.processing.scan_reference import ScanReference


def _digest(name):
    return sha256(name.encode()).hexdigest()[:12]


def _change(path, **columns):
    table = pd.read_csv(path, dtype=str, keep_default_na=False)
    table.assign(**columns).to_csv(path, index=False)


def test_reconstructions_studies_patients_and_splits_come_from_the_names(ct_rate):
    frame = read_ct_rate(ct_rate).manifest.frame
    assert frame["volume_id"].tolist() == [
        "train_1_a_1",
        "train_1_a_2",
        "train_2_a_1",
        "train_10_a_1",
        "valid_1_a_1",
        "valid_1_a_2",
    ]
    assert frame["study_id"].tolist()[:4] == ["train_1_a", "train_1_a", "train_2_a", "train_10_a"]
    assert frame["patient_id"].tolist()[:4] == ["train_1", "train_1", "train_2", "train_10"]
    assert frame["split"].tolist() == ["train"] * 4 + ["test"] * 2
    image = ct_rate / "dataset/train_fixed/train_1/train_1_a/train_1_a_2.nii.gz"
    assert frame["image_path"][1] == str(image)


def test_the_manifest_is_written_and_read_back_with_reports_and_labels(ct_rate):
    write_manifest(read_ct_rate(ct_rate).manifest, ct_rate / "manifest.csv")
    manifest = read_manifest(ct_rate / "manifest.csv", check_images=True)
    assert manifest.frame["impression"].tolist()[2:4] == ["Not given.", "Normal train_10_."]
    reports = manifest.frame["report"].tolist()
    assert reports[:4] == ["Clear lungs. Normal train_1_a."] * 2 + ["", "Clear lungs. Normal train_10_."]
    findings = load_findings("ct_rate_18")
    truth = manifest.truth(findings)
    assert truth.shape == (6, 18)
    assert truth[:, findings.keys.index("lung_nodule")].tolist() == [1, 1, 0, 1, 1, 1]
    assert truth.sum() == 5


def test_head_scans_are_excluded_and_counted(ct_rate, tmp_path):
    found = read_ct_rate(ct_rate)
    assert (found.num_excluded, found.num_not_downloaded) == (1, 0)
    assert found.exclusion_lists == ("no_chest_train.txt", "no_chest_valid.txt")
    (tmp_path / "more.txt").write_text("# seen by us\nvalid_1_a_2\n\ntrain_1_b_1.nii.gz\n")
    pd.DataFrame({"VolumeName": ["train_2_a_1.nii.gz", "train_9_z_1.nii.gz"]}).to_csv(tmp_path / "more.csv")
    more = read_ct_rate(ct_rate, exclude=[tmp_path / "more.txt", tmp_path / "more.csv"])
    assert more.num_excluded == 3
    assert more.manifest.frame["volume_id"].tolist() == [
        "train_1_a_1",
        "train_1_a_2",
        "train_10_a_1",
        "valid_1_a_1",
    ]


def test_a_list_that_excludes_everything_is_refused(ct_rate, tmp_path):
    names = [path.name for path in ct_rate.rglob("*.nii.gz")]
    (tmp_path / "all.txt").write_text("\n".join(names))
    with pytest.raises(ValueError, match="got 7 of 7 excluded"):
        read_ct_rate(ct_rate, exclude=[tmp_path / "all.txt"])


@pytest.mark.parametrize("entry", ["train_1_a", "1.2.3", "train_1_a_1.nii", "VolumeName"])
def test_an_entry_that_is_no_volume_is_refused_without_its_name(tmp_path, entry):
    (tmp_path / "list.txt").write_text(f"train_1_a_1\n{entry}\n")
    with pytest.raises(
        ValueError, match=f"entry of list.txt .* got entry 1 .sha256 {_digest(entry)}"
    ) as caught:
        read_volume_names(tmp_path / "list.txt")
    assert f" {entry}" not in str(caught.value).replace("train_1_a_1.nii.gz", "")


def test_version_1_hands_rescale_and_spacing_of_the_table_over(tmp_path, write_ct_rate):
    manifest = read_ct_rate(write_ct_rate(tmp_path, suffix="")).manifest
    scan = manifest.scans()["train_1_a_2"]
    path = tmp_path / "dataset/train/train_1/train_1_a/train_1_a_2.nii.gz"
    # XYSpacing of the second row is the text "[0.75, 0.6]".
    assert scan == ScanReference(str(path), rescale=(1.5, -8192.0), spacing_mm=(2.5, 0.6, 0.75))
    write_manifest(manifest, tmp_path / "manifest.csv")
    assert read_manifest(tmp_path / "manifest.csv").scans() == manifest.scans()


def test_version_2_hands_over_nothing_that_could_be_applied_twice(ct_rate):
    assert all(scan == ScanReference(scan.path) for scan in read_ct_rate(ct_rate).manifest.scans().values())


def test_both_versions_need_a_choice(tmp_path, write_ct_rate):
    write_ct_rate(write_ct_rate(tmp_path, suffix=""), suffix="_fixed")
    with pytest.raises(ValueError, match=r"version must be chosen .* got v1 and v2"):
        read_ct_rate(tmp_path)
    for version, has_rescale in (("v1", True), ("v2", False)):
        frame = read_ct_rate(tmp_path, version).manifest.frame
        assert ("rescale_slope" in frame) == has_rescale


@pytest.mark.parametrize(("version", "found"), [(None, "neither"), ("v1", "v2")])
def test_a_tree_that_is_not_there_is_refused(ct_rate, tmp_path, version, found):
    root = tmp_path if version is None else ct_rate
    with pytest.raises(FileNotFoundError, match=f"got {found} in {root}"):
        read_ct_rate(root, version)


def test_a_download_in_part_is_counted(ct_rate):
    shutil.rmtree(ct_rate / "dataset/valid_fixed")
    shutil.rmtree(ct_rate / "dataset/train_fixed/train_10")
    found = read_ct_rate(ct_rate)
    assert found.num_not_downloaded == 1
    assert set(found.manifest.frame["split"]) == {"train"}


def test_folders_without_volumes_are_refused(ct_rate):
    for path in ct_rate.rglob("*.nii.gz"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="at least one volume, got none"):
        read_ct_rate(ct_rate)


@pytest.mark.parametrize(
    ("split", "wrong"),
    [
        ("train", "train_1/train_1_a/train_1_b_2.nii.gz"),
        ("train", "train_3/train_1_a/train_1_a_3.nii.gz"),
        ("train", "train_1/train_1_a/valid_1_a_1.nii.gz"),
        ("valid", "valid_1/valid_1_a/scan.nii.gz"),
        ("train", "valid_2/valid_2_a/valid_2_a_1.nii.gz"),
    ],
)
def test_a_volume_in_the_wrong_place_is_refused(ct_rate, split, wrong):
    path = ct_rate / "dataset" / f"{split}_fixed" / wrong
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()
    with pytest.raises(ValueError, match=f"got one .sha256 {_digest(path.name.removesuffix('.nii.gz'))}"):
        read_ct_rate(ct_rate)


def test_labels_that_say_minus_one_never_become_targets(ct_rate):
    _change(ct_rate / "dataset/multi_abnormality_labels/train_predicted_labels.csv", Emphysema="-1")
    manifest = read_ct_rate(ct_rate).manifest
    with pytest.raises(ValueError, match=r"got \[-1\.0\]"):
        manifest.truth(load_findings("ct_rate_18"))


def test_a_label_table_without_a_finding_is_refused(ct_rate):
    path = ct_rate / "dataset/multi_abnormality_labels/train_predicted_labels.csv"
    pd.read_csv(path).drop(columns="Emphysema").to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"train_predicted_labels.csv must have .* got no \['Emphysema'\]"):
        read_ct_rate(ct_rate)


@pytest.mark.parametrize("spacing", ["0.7", "[0.7]", "[0.7, x]", "", "__import__('os')"])
def test_a_spacing_that_is_no_pair_is_refused(tmp_path, write_ct_rate, spacing):
    write_ct_rate(tmp_path, suffix="")
    _change(tmp_path / "dataset/metadata/train_metadata.csv", XYSpacing=spacing)
    with pytest.raises(ValueError, match=r"XYSpacing must be two numbers in brackets, got .* for volume 0"):
        read_ct_rate(tmp_path)


def test_a_table_of_a_split_that_is_missing_is_refused(ct_rate):
    (ct_rate / "dataset/radiology_text_reports/validation_reports.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"validation_reports.csv must exist, got none at"):
        read_ct_rate(ct_rate)


def test_a_volume_without_a_row_is_refused_without_its_name(ct_rate):
    path = ct_rate / "dataset/radiology_text_reports/train_reports.csv"
    pd.read_csv(path).iloc[1:].to_csv(path, index=False)
    message = f"the report table must have .* got none for 1, such as sha256 {_digest('train_1_a_1')}"
    with pytest.raises(ValueError, match=message):
        read_ct_rate(ct_rate)


def test_a_repeated_row_is_refused(ct_rate):
    path = ct_rate / "dataset/radiology_text_reports/train_reports.csv"
    table = pd.read_csv(path)
    pd.concat([table, table.iloc[[2]]]).to_csv(path, index=False)
    with pytest.raises(
        ValueError, match=r"VolumeName must be filled and unique .* got 1 rows .* first row 5"
    ):
        read_ct_rate(ct_rate)


@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_real_label_tables_have_the_columns_and_names_that_we_read(ct_rate, split):
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("RADTOWER_REAL_DATA is not set")
    table = Path(os.environ["RADTOWER_REAL_DATA"]) / "ct_label_tables" / f"ctrate_{split}_labels.csv"
    for path in (ct_rate / "dataset" / f"{split}_fixed").glob("*_*/*/*"):
        path.unlink()
    volume = ct_rate / "dataset" / f"{split}_fixed" / f"{split}_1" / f"{split}_1_a" / f"{split}_1_a_1.nii.gz"
    volume.touch()
    shutil.copy(table, ct_rate / f"dataset/multi_abnormality_labels/{split}_predicted_labels.csv")
    found = read_ct_rate(ct_rate)
    assert found.num_not_downloaded == {"train": 47_148, "valid": 3_038}[split]
    frame = found.manifest.frame.set_index("volume_id")
    assert frame.loc[f"{split}_1_a_1", "lung_nodule"] == {"train": "0", "valid": "1"}[split]
