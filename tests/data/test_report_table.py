import gc
import json
import tracemalloc

import pandas as pd
import pytest

from radtower.data.report_table import ReportStream, read_reports

REPORTS = [("007", "No nodule, no effusion."), ("NA", "")]


def test_reads_csv_as_text(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text('id,text\n007,"No nodule, no effusion."\nNA,\n')
    assert read_reports(path, "id", "text") == REPORTS


def test_a_stream_can_be_read_again(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text('more,id,text\n1,007,"No nodule, no effusion."\n2,NA,\n')
    stream = ReportStream(path, "id", "text")
    assert list(stream) == list(stream) == REPORTS


def test_reads_json_lines(tmp_path):
    path = tmp_path / "reports.jsonl"
    rows = [{"id": "007", "text": REPORTS[0][1]}, {"text": None, "id": 8, "more": [1]}]
    path.write_text("\n\n".join(map(json.dumps, rows)) + "\n")
    assert read_reports(path, "id", "text") == [REPORTS[0], ("8", "")]


def test_reads_parquet_with_missing_texts_and_numeric_ids(tmp_path):
    pd.DataFrame({"id": [7, 8], "text": ["Normal.", None]}).to_parquet(tmp_path / "reports.parquet")
    assert read_reports(tmp_path / "reports.parquet", "id", "text") == [("7", "Normal."), ("8", "")]


@pytest.fixture
def data_set(tmp_path):
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.csv").write_text('id,text,more\n007,"No nodule, no effusion.",1\nNA,,2\n')
    (folder / "test.csv").write_text("id,text,more\n9,Normal.,3\n")
    return folder


def test_reads_a_split_of_a_data_set_as_text(data_set):
    assert read_reports(f"hf:{data_set}", "id", "text") == REPORTS
    assert read_reports(f"hf:{data_set}:test", "id", "text") == [("9", "Normal.")]
    assert read_reports(f"hf:{data_set}:default:test", "id", "text") == [("9", "Normal.")]


def test_reads_a_data_set_of_parquet(tmp_path):
    (tmp_path / "set").mkdir()
    pd.DataFrame({"id": [7, 8], "text": ["Normal.", None]}).to_parquet(tmp_path / "set" / "train.parquet")
    with pytest.raises(ValueError, match=r"got no \['note'\] among 2 columns"):
        ReportStream(f"hf:{tmp_path / 'set'}", "id", "note")
    assert read_reports(f"hf:{tmp_path / 'set'}", "id", "text") == [("7", "Normal."), ("8", "")]


def test_refuses_what_a_data_set_does_not_have(data_set):
    with pytest.raises(ValueError, match="Bad split: dev"):
        read_reports(f"hf:{data_set}:dev", "id", "text")
    with pytest.raises(ValueError, match="got 'hf:a:b:c:d'"):
        ReportStream("hf:a:b:c:d", "id", "text")
    with pytest.raises(FileNotFoundError, match="nowhere"):
        ReportStream(f"hf:{data_set}/nowhere", "id", "text")


def test_reads_as_many_rows_as_asked_for(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("id,text\na,x\nb,y\nb,z\n")
    assert read_reports(path, "id", "text", limit=2) == [("a", "x"), ("b", "y")]
    with pytest.raises(ValueError, match="id must be unique, got 1 repeats"):
        read_reports(path, "id", "text")


def test_a_missing_column_is_named(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("AccessionNo,text\na,x\n")
    with pytest.raises(ValueError, match=r"got no \['id'\] among 2 columns in row 0"):
        ReportStream(path, "id", "text")


def test_a_line_without_a_column_is_refused(tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text('{"id": 1, "text": "x"}\n{"id": 2}\n')
    with pytest.raises(ValueError, match=r"got no \['text'\] among 1 columns in row 1"):
        list(ReportStream(path, "id", "text"))


@pytest.mark.parametrize(
    ("line", "kind"), [("[1]", "a list in line 2"), ("secret", r"no JSON \(Expecting value\) in line 2")]
)
def test_a_line_that_is_no_object_is_refused_without_its_text(tmp_path, line, kind):
    path = tmp_path / "reports.jsonl"
    path.write_text(f'{{"id": 1, "text": "x"}}\n{line}\n')
    with pytest.raises(ValueError, match=f"every line of reports.jsonl must be .*, got {kind}") as caught:
        list(ReportStream(path, "id", "text"))
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize(("value", "kind"), [("", "none"), (None, "none"), (7.5, "a float")])
def test_a_row_without_an_id_is_refused(tmp_path, value, kind):
    path = tmp_path / "reports.jsonl"
    path.write_text(json.dumps({"id": 1, "text": "x"}) + "\n" + json.dumps({"id": value, "text": "x"}))
    with pytest.raises(ValueError, match=f"id must be text or a whole number, got {kind} in row 1"):
        list(ReportStream(path, "id", "text"))


def test_a_column_that_holds_no_texts_is_refused(tmp_path):
    pd.DataFrame({"id": ["a", "b"], "text": [0.5, 1.5]}).to_parquet(tmp_path / "reports.parquet")
    with pytest.raises(ValueError, match="text must be text, got a float in row 0"):
        list(ReportStream(tmp_path / "reports.parquet", "id", "text"))


def test_refuses_another_format(tmp_path):
    with pytest.raises(ValueError, match=r"got '\.xlsx'"):
        read_reports(tmp_path / "reports.xlsx", "id", "text")


def test_refuses_a_file_that_is_not_there(tmp_path):
    for name in ("reports.csv", "reports.jsonl", "reports.parquet"):
        with pytest.raises(FileNotFoundError, match=f"an existing file, got '.*{name}'. Correct the path"):
            ReportStream(tmp_path / name, "id", "text")


# datasets leaves its file to the garbage collector when it is not read to the end.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_data_set_of_csv_tells_its_columns_when_it_is_read(data_set):
    with pytest.raises(ValueError, match=r"got no \['note'\] among 3 columns in row 0"):
        list(ReportStream(f"hf:{data_set}", "id", "note"))
    gc.collect()


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_memory_does_not_grow_with_the_table(tmp_path, kind):
    peaks = []
    for num_rows in (2000, 20_000):
        frame = pd.DataFrame({"id": range(num_rows), "text": "No nodule. " * 20, "more": 1})
        path = tmp_path / f"{num_rows}.{kind}"
        if kind == "csv":
            frame.to_csv(path, index=False)
        elif kind == "jsonl":
            frame.to_json(path, orient="records", lines=True)
        else:
            frame.to_parquet(path, row_group_size=1000)
        tracemalloc.start()
        assert sum(1 for _ in ReportStream(path, "id", "text")) == num_rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0] < 3_000_000


def test_an_unquoted_comma_is_refused_before_a_row_is_read(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("id,text\ns0,Normal.\ns1,Small effusion, no nodule, large mass.\n")
    with pytest.raises(ValueError, match=r"its header, 2, got 4 in row 1 \(line 3\)\. .* double quotes"):
        ReportStream(path, "id", "text")


@pytest.mark.parametrize("row", ["s1,Small effusion, mass.", "s1,Small effusion\nmass."])
def test_the_csv_files_of_a_folder_are_checked_too(tmp_path, row):
    (tmp_path / "train.csv").write_text(f"id,text\n{row}\n")
    (tmp_path / "test.csv").write_text("id,text\ns2,Normal.\n")
    assert read_reports(f"hf:{tmp_path}:test", "id", "text") == [("s2", "Normal.")]
    with pytest.raises(
        ValueError, match=r"row of train\.csv must have .* its header, 2, got \d in row"
    ) as caught:
        ReportStream(f"hf:{tmp_path}", "id", "text")
    assert "mass" not in str(caught.value)


def test_a_folder_of_tables_with_tabs_is_read(tmp_path):
    (tmp_path / "train.tsv").write_text("id\ttext\ns1\tSmall effusion, no mass.\n")
    assert read_reports(f"hf:{tmp_path}", "id", "text") == [("s1", "Small effusion, no mass.")]


def test_a_table_without_a_header_does_not_show_its_first_report(tmp_path):
    path = tmp_path / "reports.csv"
    path.write_text("s1,Mr. Jones has a mass.\ns2,Normal.\n")
    with pytest.raises(ValueError, match=r"got no \['id', 'text'\] among 2 .* the first line") as caught:
        ReportStream(path, "id", "text")
    assert "Jones" not in str(caught.value)
    assert "s1" not in str(caught.value)


@pytest.mark.parametrize("column", ["id", "text"])
def test_half_a_character_is_refused_with_its_row_and_without_its_text(tmp_path, column):
    path = tmp_path / "reports.jsonl"
    whole = {"id": "a", "text": "A \U0001f600 mass."}  # which JSON writes as two halves
    path.write_text(json.dumps(whole) + "\n" + json.dumps({"id": "b", "text": "x"} | {column: "mass \ud83d"}))
    stream = iter(ReportStream(path, "id", "text"))
    assert next(stream) == ("a", whole["text"])
    message = (
        rf"{column} must be valid Unicode, got the lone surrogate U\+D83D at character 5 in row 1\. Write"
    )
    with pytest.raises(ValueError, match=message) as caught:
        next(stream)
    assert not isinstance(caught.value, UnicodeError)
    assert "mass" not in str(caught.value)


def test_a_line_that_is_a_text_is_not_shown(tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text('{"id": "a", "text": "x"}\n\n"Large mass."\n')
    with pytest.raises(ValueError, match=r"every line of reports\.jsonl .* got a str in line 3\.") as caught:
        list(ReportStream(path, "id", "text"))
    assert "mass" not in str(caught.value)


def test_a_line_separator_in_a_text_ends_no_line(tmp_path):
    path = tmp_path / "reports.jsonl"
    path.write_text('{"id": "a", "text": "No\u2028mass."}\n', encoding="utf-8")
    assert read_reports(path, "id", "text") == [("a", "No\u2028mass.")]
