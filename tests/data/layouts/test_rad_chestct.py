from hashlib import sha256

import numpy as np
import pandas as pd
import pytest

from radtower.data.layouts.rad_chestct import MAPPING, read_rad_chestct
from radtower.data.manifest import read_manifest, write_manifest
from radtower.labeling.findings_mapping import load_mapping
from radtower.processing.scan_reference import ScanReference

SCANS = {
    "trn00001": ("mrn00001", "imgtrain_extra", "imgtrain"),
    "trn00002": ("mrn00001", "imgtrain_notetrain", "imgtrain"),
    "val00003": ("mrn00002", "imgvalid", "imgvalid_a"),
    "tst00004": ("mrn00003", "imgtest", "imgtest_b"),
}
LOCATIONS = ("right_lung", "heart", "other_location")
ABNORMALITIES = load_mapping(MAPPING).source.names
FINDINGS = load_mapping(MAPPING).target.subset(load_mapping(MAPPING).mapped_keys)


def write_summary(root, scans):
    rows = [(scan, *row) for scan, row in scans.items()]
    columns = ["NoteAcc_DEID", "MRN_DEID", "Set_Assigned", "Subset_Assigned"]
    pd.DataFrame(rows, columns=columns).to_csv(root / "Summary_3630.csv", index=False)


@pytest.fixture
def root(tmp_path):
    """The tables beside the scans, one of which is in a folder of its own."""
    (tmp_path / "imgtest").mkdir()
    for scan in SCANS:
        path = tmp_path / ("imgtest" if scan.startswith("tst") else "") / f"{scan}.npz"
        np.savez_compressed(path, ct=np.zeros((2, 3, 4), np.int16))
    write_summary(tmp_path, {**SCANS, "trn00009": ("mrn00009", "imgtrain", "imgtrain")})
    abnormalities = [*sorted(ABNORMALITIES), "nodulegr1cm", "hernia_of_something"]
    columns = [f"{name}*{location}" for name in abnormalities for location in LOCATIONS]
    for split, prefix in (("imgtrain", "trn"), ("imgvalid", "val"), ("imgtest", "tst")):
        scans = [scan for scan in SCANS if scan.startswith(prefix)]
        table = pd.DataFrame(0, index=scans, columns=columns)
        table["nodulegr1cm*right_lung"] = 1  # not a column of any finding
        if split == "imgtrain":
            table.loc["trn00001", "calcification*heart"] = 1
            table.loc["trn00002", "nodule*other_location"] = 1
        table.to_csv(tmp_path / f"{split}_Abnormality_and_Location_Labels.csv", index_label="NoteAcc_DEID")
    return tmp_path


def test_ids_splits_and_paths(root):
    found = read_rad_chestct(root)
    frame = found.manifest.frame.set_index("volume_id")
    assert frame["study_id"].tolist() == frame.index.tolist()
    assert frame["patient_id"]["trn00002"] == "mrn00001"
    assert frame["split"].to_dict() == {
        "trn00001": "train",
        "trn00002": "train",
        "val00003": "validation",
        "tst00004": "test",
    }
    assert frame["image_path"]["tst00004"] == str(root / "imgtest" / "tst00004.npz")
    assert (found.num_not_downloaded, found.num_excluded) == (1, 0)


def test_the_spacing_of_the_data_set_goes_to_the_reader(root):
    assert read_rad_chestct(root).manifest.scans()["trn00001"] == ScanReference(
        str(root / "trn00001.npz"), spacing_mm=(0.8, 0.8, 0.8)
    )


def test_a_finding_is_present_where_any_location_is_and_calcification_serves_two(root):
    write_manifest(read_rad_chestct(root).manifest, root / "manifest.csv")
    manifest = read_manifest(root / "manifest.csv")
    truth = pd.DataFrame(manifest.truth(FINDINGS), index=manifest.frame["volume_id"], columns=FINDINGS.keys)
    present = {(scan, key) for scan, row in truth.iterrows() for key in truth if row[key] == 1}
    assert present == {
        ("trn00001", "arterial_wall_calcification"),
        ("trn00001", "coronary_artery_wall_calcification"),
        ("trn00002", "lung_nodule"),
    }
    assert truth.isin([0, 1]).to_numpy().all()
    assert manifest.frame["report"].tolist() == [""] * 4


def test_a_finding_without_a_counterpart_gets_no_column(root):
    frame = read_rad_chestct(root).manifest.frame
    assert set(FINDINGS.keys) < set(frame)
    assert len(FINDINGS.keys) == 16
    assert not {"medical_material", "mosaic_attenuation_pattern"} & set(frame)


@pytest.mark.parametrize(
    ("first", "second"), [("imgtrain", "imgtest_a"), ("extra", "trainset"), ("imgtraining", "x")]
)
def test_a_split_that_is_unknown_or_contradictory_is_refused_without_the_id(root, first, second):
    write_summary(root, {**SCANS, "trn00002": ("mrn00001", first, second)})
    digest = sha256(b"trn00002").hexdigest()[:12]
    with pytest.raises(ValueError, match=rf"got \['{first}', '{second}'\] for sha256 {digest}") as caught:
        read_rad_chestct(root)
    assert "mrn00001" not in str(caught.value)


def test_a_patient_in_two_official_splits_is_refused_on_reading(root):
    write_summary(root, {**SCANS, "tst00004": ("mrn00001", "imgtest", "imgtest")})
    write_manifest(read_rad_chestct(root).manifest, root / "manifest.csv")
    with pytest.raises(ValueError, match="a patient must be in one split, got 1"):
        read_manifest(root / "manifest.csv")


def test_a_scan_of_another_split_than_its_labels_is_refused(root):
    write_summary(root, {**SCANS, "trn00002": ("mrn00001", "imgvalid", "imgvalid")})
    with pytest.raises(
        ValueError, match=r"imgvalid_Abnormality.* must have a row for every scan .* got none for 1"
    ):
        read_rad_chestct(root)


def test_a_scan_without_a_summary_is_refused(root):
    write_summary(root, {scan: row for scan, row in SCANS.items() if scan != "val00003"})
    with pytest.raises(ValueError, match=r"Summary_3630.csv must have a row .* got none for 1"):
        read_rad_chestct(root)


def test_a_label_table_without_an_abnormality_is_refused(root):
    path = root / "imgtrain_Abnormality_and_Location_Labels.csv"
    table = pd.read_csv(path)
    table.drop(columns=[name for name in table if name.startswith("fibrosis*")]).to_csv(path, index=False)
    with pytest.raises(ValueError, match=r"got none for \['fibrosis'\]"):
        read_rad_chestct(root)


def test_a_missing_label_table_is_refused(root):
    (root / "imgtest_Abnormality_and_Location_Labels.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"imgtest_Abnormality_and_Location_Labels.csv must exist"):
        read_rad_chestct(root)


@pytest.mark.parametrize("name", ["imgtest/trn00001.npz", "weights.npz"])
def test_a_second_or_a_foreign_npz_is_refused(root, name):
    (root / name).touch()
    digest = sha256((root / name).stem.encode()).hexdigest()[:12]
    with pytest.raises(ValueError, match=f"every npz must be one scan, .*sha256 {digest}"):
        read_rad_chestct(root)


def test_a_folder_without_scans_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=f"got none in {tmp_path}"):
        read_rad_chestct(tmp_path)
