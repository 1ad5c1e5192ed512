"""``radtower reports``: tables of reports, and pairs."""

from pathlib import Path

import pandas as pd
import pytest

from radtower.data.reports.pairs import read_pairs
from radtower.data.reports.report_corpus import read_report_table
from radtower.labeling.findings import load_findings


@pytest.fixture
def openi_file(tmp_path) -> Path:
    frame = pd.DataFrame(
        {
            "uid": [str(row) for row in range(40)],
            "Problems": ["Cardiomegaly", "normal"] * 20,
            "findings": [f"Mild cardiomegaly, case {row}." for row in range(40)],
            "impression": ["1. Cardiomegaly.", "No acute disease."] * 20,
        }
    )
    frame.to_csv(tmp_path / "reports.csv", index=False)
    return tmp_path / "reports.csv"


def test_open_i_becomes_a_table_and_pairs(radtower, openi_file, tmp_path):
    done = radtower("reports", "openi", openi_file, "-o", tmp_path / "table.parquet")
    assert done.code == 0, done.err
    printed = done.out
    assert "2 label columns" in printed
    table = read_report_table(tmp_path / "table.parquet")
    assert len(table) == 40
    assert str((table.frame["split"] == "train").sum()) in printed
    done = radtower("reports", "pairs", tmp_path / "table.parquet", "-o", tmp_path / "pairs.jsonl")
    assert "open_i/findings_impression" in done.out
    # All 40 reports have a grade, and no impression has one.
    assert "Negatives of 80 pairs: " in done.out
    assert "severity 40 (in 40 pairs)" in done.out
    pairs = read_pairs(tmp_path / "pairs.jsonl")
    assert len(pairs) == 80
    chosen = ("--task", "findings_impression", "--negatives", 1, "--label-keys", "text", "--seed", 3)
    radtower("reports", "pairs", tmp_path / "table.parquet", "-o", tmp_path / "pairs.csv", *chosen)
    pairs = read_pairs(tmp_path / "pairs.csv")
    assert len(pairs) == 40
    assert pairs["negatives"].map(len).max() == 1
    assert pairs["label_key"].nunique() == 2
    assert pairs["label_key"].str.startswith("text:").sum() == 20


def test_ct_reports_become_a_table(radtower, tmp_path):
    names = load_findings("ct_rate_18").names
    frame = pd.DataFrame({"AccessionNo": ["a", "b"], "report_text": ['Clear. " Normal', "Clear."]})
    frame.assign(**dict.fromkeys(names, 0)).to_csv(tmp_path / "train.csv", index=False)
    frame.assign(NameinCTRATE="train_7_a").to_csv(tmp_path / "map.csv", index=False)
    done = radtower(
        *("reports", "ct-rate", tmp_path / "train.csv", "--volume-names", tmp_path / "map.csv"),
        *("-o", tmp_path / "table.csv"),
    )
    assert "18 label columns" in done.out
    table = read_report_table(tmp_path / "table.csv")
    assert table.frame["impression"].tolist() == ["Normal.", ""]
    assert table.frame["patient_id"].tolist() == ["train_7", "train_7"]
