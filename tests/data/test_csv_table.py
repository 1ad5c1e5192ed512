import os
from pathlib import Path

import pandas as pd
import pytest

import radtower
from radtower.data.csv_table import check_csv_fields, csv_columns, read_csv_table, stream_csv_table
from radtower.data.layouts.report_sets import read_openi_reports
from radtower.data.manifest import read_manifest
from radtower.data.reports.pairs import read_pairs
from radtower.data.reports.report_corpus import read_report_table

PACKAGE = Path(radtower.__file__).parent


def test_cells_stay_text_and_only_the_empty_one_is_missing(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("\ufeffid,text,label\n007,NA,1\nnan,,1.50\n", encoding="utf-8")
    table = read_csv_table(path)
    assert table["id"].tolist() == ["007", "nan"]
    assert table["label"].tolist() == ["1", "1.50"]
    assert table["text"].isna().tolist() == [False, True]
    assert table["text"][0] == "NA"
    pd.testing.assert_frame_equal(read_csv_table(path, ["label", "elsewhere", "id"]), table[["id", "label"]])
    assert csv_columns(path) == ["id", "text", "label"]
    chunks = list(stream_csv_table(path, ["id", "text"], 1))
    assert [len(chunk) for chunk in chunks] == [1, 1]
    pd.testing.assert_frame_equal(pd.concat(chunks), table[["id", "text"]])


def test_no_other_module_reads_csv_with_pandas():
    modules = [path for path in PACKAGE.rglob("*.py") if "pd.read_csv(" in path.read_text(encoding="utf-8")]
    assert modules == [PACKAGE / "data" / "csv_table.py"]


@pytest.mark.parametrize("read", [read_csv_table, csv_columns])
def test_a_missing_table_is_refused(tmp_path, read):
    with pytest.raises(FileNotFoundError, match=r"none\.csv"):
        read(tmp_path / "none.csv")


@pytest.mark.parametrize(
    ("read", "header", "row"),
    [
        (read_csv_table, "study_id,report", "s1,Clear"),
        (csv_columns, "study_id,report", "s1,Clear"),
        (read_manifest, "study_id,patient_id,image_path,split,report", "s1,p1,a.nii,train,Clear"),
        (read_report_table, "study_id,patient_id,split,report", "s1,p1,train,Clear"),
        (
            read_pairs,
            "query,negatives,negative_kinds,source,instruction,label_key,study_id,split,positive",
            "a,[],[],c/t,,,s1,train,Clear",
        ),
        (read_openi_reports, "uid,Problems,impression,findings", "1,normal,None,Clear"),
    ],
)
def test_every_reader_refuses_an_unquoted_comma(tmp_path, read, header, row):
    path = tmp_path / "table.csv"
    path.write_text(f"{header}\n{row}\n")
    assert len(read(path))
    path.write_text(f"{header}\n{row}, large mass.\n")
    with pytest.raises(
        ValueError, match=r"every row of table\.csv .* as its header, .* in double quotes"
    ) as caught:
        read(path)
    assert "mass" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "id,text\n",
        'id,text\n\ns1,"Small effusion, no nodule."\n \ns2,"Two\nlines, one ""field"""\r\ns3,\n',
        "\ufeff\nid,text\ns1,x\n",
        'id\n\n""\n \t\ns1\n',
    ],
)
def test_rows_with_the_fields_of_the_header_pass(tmp_path, text):
    path = tmp_path / "table.csv"
    path.write_bytes(text.encode())
    check_csv_fields(path)


def test_bytes_that_are_no_utf_8_are_left_to_the_reader(tmp_path):
    path = tmp_path / "table.csv"
    path.write_bytes(b"id,text\ns1,\xe9\n")
    check_csv_fields(path)


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ("s1,Small effusion, no nodule, large mass.\n", "4 in row 0 (line 2)"),
        ('s1,"Two\nlines"\n\ns2,secret, mass\n', "3 in row 1 (line 5)"),
        ("s1,x,\n", "3 in row 0 (line 2)"),
    ],
)
def test_a_row_with_more_fields_is_refused_without_its_text(tmp_path, rows, place):
    path = tmp_path / "table.csv"
    path.write_text("id,text\n" + rows)
    with pytest.raises(ValueError, match=r"as its header, 2, got .* Put text .* in double quotes") as caught:
        check_csv_fields(path)
    assert f"every row of table.csv must have as many fields as its header, 2, got {place}." in str(
        caught.value
    )
    assert "mass" not in str(caught.value)


@pytest.mark.parametrize(
    ("rows", "place"),
    [
        ("s1,Small\nmass,0\n", "2 in row 0 (line 2)"),
        ('s0,"Two\nlines",1\ns1,Clear,0\n\nmass\n', "1 in row 2 (line 6)"),
        ("s0,Clear,1\r\ns1,mass\rmass,0\r\n", "2 in row 1 (line 3)"),
        ('s0,Clear,1\ns1,"mass,0\ns2,mass,1\n', "2 in row 1 (line 3)"),
        ("s0,Clear,1\n\u00a0\n", "1 in row 1 (line 3)"),
        ('s0,Clear,1\n""\n', "1 in row 1 (line 3)"),
    ],
)
def test_a_row_with_fewer_fields_is_refused_without_its_text(tmp_path, rows, place):
    path = tmp_path / "table.csv"
    path.write_bytes(f"id,text,label\n{rows}".encode())
    with pytest.raises(
        ValueError, match=r"as its header, 3, got .* a line break in double quotes, close"
    ) as caught:
        read_csv_table(path)
    assert f"every row of table.csv must have as many fields as its header, 3, got {place}." in str(
        caught.value
    )
    assert "mass" not in str(caught.value)


def test_a_quote_that_is_never_closed_is_refused_without_its_text(tmp_path):
    path = tmp_path / "table.csv"
    path.write_text('id,text\ns0,x\ns1,"' + "mass\n" * 30_000)
    with pytest.raises(ValueError, match=r"table.csv must .* a longer one in row 1\. Close") as caught:
        check_csv_fields(path)
    assert "mass" not in str(caught.value)


def test_real_tables_pass():
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to a folder with real tables")
    paths = sorted(Path(os.environ["RADTOWER_REAL_DATA"]).glob("*/*.csv"))
    assert len(paths) == 7
    for path in paths:
        check_csv_fields(path)
