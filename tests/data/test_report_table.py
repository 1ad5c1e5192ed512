import pandas as pd
import pytest

from radtower.data.report_table import read_reports


def test_reads_csv_as_text(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text('id,text\n007,"No nodule, no effusion."\nNA,\n')
    assert read_reports(path, "id", "text") == [("007", "No nodule, no effusion."), ("NA", "")]


def test_reads_parquet_with_missing_texts_and_numeric_ids(tmp_path):
    pd.DataFrame({"id": [7, 8], "text": ["Normal.", None]}).to_parquet(tmp_path / "reports.parquet")
    assert read_reports(tmp_path / "reports.parquet", "id", "text") == [("7", "Normal."), ("8", "")]


def test_reads_as_many_rows_as_asked_for(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("id,text\na,x\nb,y\nb,z\n")
    assert read_reports(path, "id", "text", limit=2) == [("a", "x"), ("b", "y")]
    with pytest.raises(ValueError, match="id must be unique, got 1 repeats"):
        read_reports(path, "id", "text")


def test_names_the_columns_that_are_there(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("AccessionNo,text\na,x\n")
    with pytest.raises(ValueError, match=r"got no \['id'\] among \['AccessionNo', 'text'\]"):
        read_reports(path, "id", "text")


def test_refuses_another_format(tmp_path):
    with pytest.raises(ValueError, match=r"got '\.xlsx'"):
        read_reports(tmp_path / "reports.xlsx", "id", "text")
