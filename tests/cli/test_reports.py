"""``radtower reports`` and ``radtower label``: tables, pairs and silver labels."""

from pathlib import Path

import pandas as pd
import pytest

from radtower.data.reports.pairs import read_pairs
from radtower.data.reports.report_corpus import read_report_table
from radtower.labeling.findings import load_findings
from radtower.labeling.label_table import read_labels


def test_an_encoder_labels_a_table_and_an_empty_report_is_listed(radtower, labeler, tmp_path):
    (tmp_path / "reports.csv").write_text("no,text\n1,There is no nodule\n2,\n3,effusion\n")
    columns = ("--id-column", "no", "--text-column", "text")
    output = tmp_path / "labels.parquet"
    done = radtower("label", tmp_path / "reports.csv", "-o", output, "--model", labeler, *columns)
    assert done.code == 1
    assert "2 of 3 unique reports labeled in" in done.out
    assert "failed: 2: empty_report" in done.err
    table = read_labels(output)
    assert table.keys == ("lung_nodule", "pleural_effusion")
    assert table.frame["report_id"].tolist() == ["1", "2", "3"]
    assert set(table.frame["labeler"]) == {"encoder"}
    assert "There is no nodule" not in done.out + done.err


def test_an_endpoint_needs_its_address(radtower, manifest, tmp_path):
    done = radtower("label", manifest, "-o", tmp_path / "l.parquet", "--model", "m", "--backend", "endpoint")
    assert done.code == 2
    assert "--base-url must be given for an endpoint, got none" in done.err
    assert not (tmp_path / "l.parquet").exists()


def test_a_findings_set_that_lacks_the_labelers_findings_is_refused(radtower, labeler, manifest, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text("name: own\nfindings:\n- {key: mass, name: Mass, definition: A mass., prompts: [mass]}\n")
    done = radtower("label", manifest, "-o", tmp_path / "l.parquet", "--model", labeler, "--findings", own)
    assert done.code == 2
    assert "got ['lung_nodule', 'pleural_effusion']" in done.err


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
