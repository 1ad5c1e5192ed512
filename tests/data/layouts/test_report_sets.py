"""Open-i and the hand-labeled CT reports: sections, labels, patients; on the real tables where they are."""

import os
from pathlib import Path

import pandas as pd
import pytest

from radtower.data.layouts.report_sets import read_ct_rate_reports, read_openi_reports
from radtower.data.reports.report_corpus import read_report_table, write_report_table
from radtower.labeling.findings import load_findings

NAMES = load_findings("ct_rate_18").names
OPENI = pd.DataFrame(
    {
        "uid": ["2", "4", "6"],
        "MeSH": "",
        "Problems": ["Cardiomegaly;Pulmonary  Artery;Cardiomegaly", "No Indexing", "normal"],
        "findings": ["Borderline  cardiomegaly. XXXX wires.", "", "Clear."],
        "impression": ["No acute findings.", "Normal.", None],
    }
)
TEXTS = [
    'Heart is normal. Size 3 mm. " Hiatal hernia " Nodule in both lungs."Emphysema? " ',
    "Lungs are clear. \u2022 Normal examination. \u2022 ,",
    "All findings and no impression.",
]


@pytest.fixture
def ct_files(tmp_path) -> tuple[Path, Path]:
    labels = {name: ["0", "1", "0"] for name in NAMES} | {"Cardiomegaly": ["1", "0", "0"]}
    reports = pd.DataFrame({"AccessionNo": ["train_1", "train_2", "train_3"], "report_text": TEXTS, **labels})
    names = pd.DataFrame(
        {"AccessionNo": reports["AccessionNo"], "NameinCTRATE": ["train_2_a", "not in CT-RATE", "train_2_b"]}
    )
    reports.to_csv(tmp_path / "train.csv", index=False)
    names.to_csv(tmp_path / "map.csv", index=False)
    return tmp_path / "train.csv", tmp_path / "map.csv"


def test_openi_terms_become_labels_and_unindexed_studies_unknown(tmp_path):
    OPENI.to_csv(tmp_path / "reports.csv", index=False)
    table = read_openi_reports(tmp_path / "reports.csv")
    assert table["study_id"].tolist() == ["openi_2", "openi_4", "openi_6"]
    assert table["patient_id"].tolist() == table["study_id"].tolist()
    assert table["findings"].tolist() == ["Borderline cardiomegaly. XXXX wires.", "", "Clear."]
    assert table["impression"].tolist() == ["No acute findings.", "Normal.", ""]
    assert table["report"][0] == "Borderline cardiomegaly. XXXX wires. No acute findings."
    labels = table[["cardiomegaly", "pulmonary_artery", "normal"]]
    assert labels.to_numpy().tolist() == [[1, 1, 0], [-100, -100, -100], [0, 0, 1]]
    assert "no_indexing" not in table


def test_ct_sections_begin_at_the_first_mark(ct_files):
    table = read_ct_rate_reports(*ct_files)
    assert table["findings"].tolist() == ["Heart is normal. Size 3 mm.", "Lungs are clear.", TEXTS[2]]
    assert table["impression"].tolist() == [
        "Hiatal hernia. Nodule in both lungs. Emphysema?",
        "Normal examination.",
        "",
    ]
    assert table["report"].tolist() == [text.strip() for text in TEXTS]
    assert table["cardiomegaly"].tolist() == [1, 0, 0]
    assert table["hiatal_hernia"].tolist() == [0, 1, 0]


def test_ct_reports_of_one_patient_share_a_split_whatever_the_accession_number(ct_files):
    table = read_ct_rate_reports(*ct_files)
    # The accession number train_2 is not the CT-RATE patient train_2.
    assert table["patient_id"].tolist() == ["train_2", "accession_train_2", "train_2"]
    assert table["split"][0] == table["split"][2]


def test_a_ct_report_without_a_name_is_refused(ct_files):
    names = pd.read_csv(ct_files[1]).iloc[:2]
    names.to_csv(ct_files[1], index=False)
    with pytest.raises(
        ValueError, match="volume_names must have a row for every scan on disk, got none for 1"
    ):
        read_ct_rate_reports(*ct_files)


@pytest.fixture
def real_data() -> Path:
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to a folder with real reports")
    return Path(os.environ["RADTOWER_REAL_DATA"])


def test_real_openi_reports(real_data, tmp_path):
    write_report_table(
        read_openi_reports(real_data / "openi_reports" / "reports.csv"), tmp_path / "t.parquet"
    )
    table = read_report_table(tmp_path / "t.parquet")
    assert len(table) == 1927
    assert len(table.with_both_sections()) == 1647
    assert table.frame["split"].value_counts().to_dict() == {"train": 1330, "test": 394, "validation": 203}
    assert table.frame["report"].str.contains("XXXX").sum() > 500
    assert (table.labels[:, table.label_names.index("normal")] == 1).sum() == 683
    reports = table.frame[table.frame["report"] != ""]
    assert len(reports) == 1927 - 11
    assert reports.groupby("report")["split"].nunique().max() == 1


def test_real_ct_reports(real_data, tmp_path):
    folder = real_data / "ctrate_reports"
    frame = read_ct_rate_reports(folder / "train.csv", folder / "map_train_classifier.csv")
    write_report_table(frame, tmp_path / "t.csv")
    table = read_report_table(tmp_path / "t.csv")
    assert len(table) == 800
    assert len(table.with_both_sections()) == 720
    assert table.label_names == load_findings("ct_rate_18").keys
    assert table.frame["split"].value_counts().to_dict() == {"train": 554, "test": 174, "validation": 72}
    assert table.frame["patient_id"].nunique() == 253 + 541
    assert table.frame["report"].duplicated().sum() == 13
    assert table.frame.groupby("report")["split"].nunique().max() == 1
