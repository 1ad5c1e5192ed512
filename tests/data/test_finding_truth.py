import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radtower.data.finding_truth import NOT_GOLD, read_truth
from radtower.data.manifest import Manifest
from radtower.labeling.findings import load_findings
from radtower.labeling.findings_mapping import load_mapping
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.processing.report_text import report_sha256

CT_RATE = load_findings("ct_rate_18")
SMALL = CT_RATE.subset(["lung_nodule", "pleural_effusion"])
TO_RAD = load_mapping("ct_rate_18_to_rad_chestct_16")
REPORTS = ["nodule", "no nodule", "effusion", "nodule"]


def manifest(**columns):
    frame = pd.DataFrame(
        {
            "volume_id": ["a_1", "a_2", "b_1", "c_1"],
            "study_id": ["a", "a", "b", "c"],
            "patient_id": ["p", "p", "q", "r"],
            "report": [REPORTS[0], *REPORTS[:1], *REPORTS[1:3]],
            **columns,
        }
    )
    return Manifest(frame)


def test_columns_by_key_and_by_name_uncertain_is_masked_and_not_mentioned_absent():
    words = manifest(
        lung_nodule=["present", "absent", "uncertain", "not_mentioned"],
        **{"Pleural effusion": ["absent", None, "present", " "]},
    )
    truth = read_truth(words, SMALL)
    assert truth.labels.tolist() == [[1, 0], [0, -100], [-100, 1], [0, -100]]
    assert truth.keys == truth.labeled_keys == SMALL.keys
    assert (truth.left_out, truth.unlabeled) == ({}, {})
    numbers = manifest(lung_nodule=["1", "0", "-100", ""], pleural_effusion=[0.0, 1.0, np.nan, 1.0])
    assert read_truth(numbers, SMALL).labels.tolist() == [[1, 0], [0, 1], [-100, -100], [-100, 1]]


def test_a_finding_without_a_column_is_left_out_and_said():
    truth = read_truth(manifest(lung_nodule=[1, 0, 1, 0]), SMALL)
    assert truth.labels[:, 1].tolist() == [-100] * 4
    assert truth.left_out == {"pleural_effusion": "there is no column of labels"}
    assert truth.labeled_keys == ("lung_nodule",)


def test_a_table_of_the_source_is_mapped_by_or():
    columns = dict.fromkeys(CT_RATE.keys, 0)
    columns |= {
        "arterial_wall_calcification": [0, 1, 0, 0],
        "coronary_artery_wall_calcification": [0, 0, 1, None],
        "cardiomegaly": [1, 0, 0, 1],
    }
    truth = read_truth(manifest(**columns), TO_RAD)
    assert truth.keys == TO_RAD.target.keys
    assert truth.labels.shape == (4, 16)
    assert truth.labels[:, 1].tolist() == [0, 1, 1, -100]
    assert truth.labels[:, 2].tolist() == [1, 0, 0, 1]
    assert truth.left_out == {}
    words = dict.fromkeys(CT_RATE.keys, "absent")
    words |= {"coronary_artery_wall_calcification": ["present", "uncertain", "not_mentioned", "absent"]}
    assert read_truth(manifest(**words), TO_RAD).labels[:, 1].tolist() == [1, -100, 0, 0]


def test_a_source_that_is_missing_leaves_what_is_made_of_it_out():
    columns = {
        key: 1 for key in CT_RATE.keys if key not in ("medical_material", "arterial_wall_calcification")
    }
    truth = read_truth(manifest(**columns), TO_RAD)
    assert truth.left_out == {
        "medical_material": "there is no column of labels for medical_material",
        "arterial_wall_calcification": "there is no column of labels for arterial_wall_calcification",
    }
    assert (truth.labels[:, :2] == -100).all()
    assert (truth.labels[:, 2:] == 1).all()
    with_mask = manifest(**dict.fromkeys(columns, "uncertain"))
    assert (read_truth(with_mask, TO_RAD).labels == -100).all()


def test_a_table_of_the_target_is_taken_as_it_is():
    columns = {key: [0, 1, 0, 1] for key in TO_RAD.target.keys}
    truth = read_truth(manifest(**columns), TO_RAD)
    assert (truth.labels == np.array([[0.0], [1.0], [0.0], [1.0]])).all()


@pytest.mark.parametrize(
    ("id_column", "ids"),
    [("VolumeName", ["b_1.nii.gz", "a_1.nii.gz", "z_1.nii.gz"]), ("volume_id", ["b_1", " a_1", "z_1"])],
)
def test_a_table_of_volumes(tmp_path, id_column, ids):
    path = tmp_path / "valid_predicted_labels.csv"
    pd.DataFrame({id_column: ids, "Lung nodule": [1, 0, 1], "Pleural effusion": [0, 1, 1]}).to_csv(
        path, index=False
    )
    truth = read_truth(manifest(), SMALL, path)
    assert truth.labels.tolist() == [[0, 1], [-100, -100], [1, 0], [-100, -100]]
    assert truth.unlabeled == dict.fromkeys(["a_2", "c_1"], f"it is not in {path.name}")
    assert truth.source == f"{path.name}, {NOT_GOLD}"


def test_ct_rates_columns_are_known_whatever_the_file_is_called(tmp_path):
    table = pd.DataFrame({"VolumeName": ["a_1"], "Lung nodule": [1], "Pleural effusion": [0]})
    table.to_csv(tmp_path / "labels.csv", index=False)
    assert read_truth(manifest(), SMALL, tmp_path / "labels.csv").source == f"labels.csv, {NOT_GOLD}"
    table.drop(columns="Pleural effusion").to_csv(tmp_path / "labels.csv", index=False)
    assert read_truth(manifest(), SMALL, tmp_path / "labels.csv").source == "labels.csv"


def test_a_table_of_studies_and_a_column_of_the_users(tmp_path):
    table = pd.DataFrame({"study_id": ["c", "a"], "lung_nodule": [1, 0], "pleural_effusion": [1, 1]})
    table.to_parquet(tmp_path / "t.parquet")
    truth = read_truth(manifest(), SMALL, tmp_path / "t.parquet")
    assert truth.labels.tolist() == [[0, 1], [0, 1], [-100, -100], [1, 1]]
    assert truth.source == "t.parquet"
    table.assign(scan=["c_1", "b_1"]).to_csv(tmp_path / "t.csv", index=False)
    truth = read_truth(manifest(), SMALL, tmp_path / "t.csv", "scan")
    assert truth.labels.tolist() == [[-100, -100], [-100, -100], [0, 1], [1, 1]]


def label_row(report, error=None, keys=SMALL.keys, findings_set="ct_rate_18", **status):
    said = {key: None if error else status.get(key, "not_mentioned") for key in keys}
    return LabelRow(
        report_id=report, report_sha256=report_sha256(report), status=said, score=dict.fromkeys(keys),
        evidence=dict.fromkeys(keys), labeler="encoder", model_id="/somewhere/m", prompt_version=None,
        findings_set=findings_set, error=error,
    )  # fmt: skip


def test_a_label_table_is_looked_up_by_report(tmp_path):
    rows = [
        label_row("effusion", error="reply: nothing"),
        label_row("nodule", lung_nodule="present", pleural_effusion="uncertain"),
    ]
    write_labels(rows, tmp_path / "labels.parquet")
    truth = read_truth(manifest(), SMALL, tmp_path / "labels.parquet")
    assert truth.labels.tolist() == [[1, -100], [1, -100], [-100, -100], [-100, -100]]
    assert truth.unlabeled == {
        "b_1": "its report is not in labels.parquet",
        "c_1": "its report could not be labeled in labels.parquet",
    }
    assert truth.source == "labels.parquet by encoder m; not mentioned is absent, uncertain is masked"


@pytest.mark.parametrize("findings_set", ["ct_rate_18", "rad_chestct_16"])
def test_a_label_table_is_mapped_where_it_is_of_the_source(tmp_path, findings_set):
    keys = CT_RATE.keys if findings_set == "ct_rate_18" else TO_RAD.target.keys
    coronary = {"coronary_artery_wall_calcification": "present"}
    rows = [label_row("nodule", keys=keys, findings_set=findings_set, **coronary)]
    write_labels(rows, tmp_path / "labels.parquet")
    truth = read_truth(manifest(), TO_RAD, tmp_path / "labels.parquet")
    assert truth.labels[0, 1] == (findings_set == "ct_rate_18")
    assert truth.left_out == {}


def test_a_label_table_of_keys_that_both_sets_have_goes_by_its_name(tmp_path):
    keys = ("arterial_wall_calcification", "cardiomegaly")
    for findings_set, left_out in (("ct_rate_18", True), ("rad_chestct_16", False)):
        present = {"arterial_wall_calcification": "present"}
        write_labels(
            [label_row("nodule", keys=keys, findings_set=findings_set, **present)], tmp_path / "l.parquet"
        )
        truth = read_truth(manifest(), TO_RAD, tmp_path / "l.parquet")
        # Of the 18, the arterial calcification alone does not say what the joint one is.
        assert ("arterial_wall_calcification" in truth.left_out) == left_out
        assert truth.labels[0, 1] == (-100 if left_out else 1)
        assert truth.labels[0, 2] == 0


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, "a column of at least one finding, got none of lung_nodule, pleural_effusion"),
        ({"lung_nodule": [1, 0, 0.5, 0.25]}, "0 or 1 to be measured against, got 2 between them"),
        ({"lung_nodule": [1, 0, -1, 0]}, r"in \[0, 1\] or -100, got \[-1"),
        ({"lung_nodule": [1, 0, "yes", 0]}, "got 1 other cells"),
        ({"lung_nodule": 1, "Lung nodule": 1}, r"got one by key and one by name for \['lung_nodule'\]"),
    ],
)
def test_labels_that_are_none_are_refused(columns, message):
    with pytest.raises(ValueError, match=message):
        read_truth(manifest(**columns), SMALL)


@pytest.mark.parametrize(
    ("table", "id_column", "message"),
    [
        (
            {"id": ["a_1"], "lung_nodule": [1]},
            None,
            "labels t.csv must have the column one of volume_id, VolumeName, .* among 2 columns",
        ),
        ({"volume_id": ["a_1"], "lung_nodule": [1]}, "scan", "the column 'scan', got none"),
        (
            {"volume_id": ["a_1", "a_1"], "lung_nodule": [1, 1]},
            None,
            "volume_id must be unique .* got 1 cells",
        ),
        ({"volume_id": ["z"], "lung_nodule": [1]}, None, "must have a volume of the manifest, got none of 4"),
        ({"study_id": ["z"], "lung_nodule": [1]}, None, "must have a study of the manifest, got none of 4"),
        ({"volume_id": [], "lung_nodule": []}, None, "labels t.csv must have rows, got none"),
        ({"volume_id": ["a_1"], "other": [1]}, None, "a column of at least one finding"),
    ],
)
def test_tables_that_do_not_fit_are_refused(tmp_path, table, id_column, message):
    pd.DataFrame(table).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=message):
        read_truth(manifest(), SMALL, tmp_path / "t.csv", id_column)


def test_other_formats_and_tables_of_other_reports_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"end in .csv or .parquet, got 't.xlsx'"):
        read_truth(manifest(), SMALL, tmp_path / "t.xlsx")
    write_labels([label_row("another")], tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match="must have a report of the manifest, got none of 4"):
        read_truth(manifest(), SMALL, tmp_path / "labels.parquet")
    write_labels([label_row("nodule", keys=("hernia",))], tmp_path / "labels.parquet")
    with pytest.raises(KeyError, match=r"keys must be in .*, got \['hernia'\]"):
        read_truth(manifest(), SMALL, tmp_path / "labels.parquet")


def _volumes(ids):
    """A manifest of CT-RATE's names: study and patient are in them."""
    frame = {"volume_id": ids, "study_id": ids.str.rsplit("_", n=1).str[0], "patient_id": ids, "report": ""}
    return Manifest(pd.DataFrame(frame))


def test_the_published_tables_have_their_known_prevalence():
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to a folder with the label tables of CT-RATE and RAD-ChestCT")
    folder = Path(os.environ["RADTOWER_REAL_DATA"]) / "ct_label_tables"
    path = folder / "ctrate_valid_labels.csv"
    ids = pd.read_csv(path)["VolumeName"].str.removesuffix(".nii.gz")
    truth = read_truth(_volumes(ids), CT_RATE, path)
    assert (truth.labels.shape, truth.unlabeled, truth.left_out) == ((3039, 18), {}, {})
    assert truth.source.endswith(NOT_GOLD)
    percent = (100 * truth.labels.mean(axis=0)).round(1)
    assert percent[[0, 1, 4, 9, 17]].tolist() == pytest.approx([10.3, 28.5, 25.2, 44.8, 8.2])
    both = np.maximum(truth.labels[:, 1], truth.labels[:, 4])
    np.testing.assert_array_equal(read_truth(_volumes(ids), TO_RAD, path).labels[:, 1], both)
    path = folder / "rad_chestct_labels.csv"
    ids = pd.read_csv(path)["NoteAcc_DEID"]
    truth = read_truth(_volumes(ids), load_mapping("ct_rate_18_to_rad_chestct_15"), path)
    assert truth.labels.shape == (3630, 15)
    assert (100 * truth.labels[:, -1].mean()).round(1) == pytest.approx(70.6)
    sixteen = read_truth(_volumes(ids), TO_RAD, path)
    assert set(sixteen.left_out) == {"medical_material", "lymphadenopathy"}
