import json

import pandas as pd
import pytest

from radtower.hub_cards.labels.volume_rows import rows_of_labels, rows_of_table
from radtower.labeling.label_table import LabelTable, read_labels
from radtower.processing.report_text import report_sha256


@pytest.fixture
def labels(labels_path) -> LabelTable:
    return read_labels(labels_path)


def _rows(labels, frame, tmp_path, **options):
    frame.to_csv(tmp_path / "table.csv", index=False)
    return rows_of_table(labels, tmp_path / "table.csv", **options)


def test_every_volume_of_a_report_gets_its_label_row(labels, manifest_path):
    rows = rows_of_table(labels, manifest_path)
    assert list(rows.frame.columns) == ["VolumeName", "split", "label_row", "report"]
    assert rows.frame.iloc[:, :3].to_numpy().tolist() == [
        ["v1a", "train", 0],
        ["v1b", "train", 0],
        ["v2", "validation", 1],
        ["v5", "validation", 0],
        ["v4", "test", 3],
    ]
    assert rows.frame["report"][2] == "Perhaps an effusion."
    assert (rows.num_without_labels, rows.num_unused_labels, rows.joined_by) == (1, 1, "report")
    assert rows.num_in_several_splits == 1


def test_without_a_table_each_unique_report_is_a_training_row(labels):
    rows = rows_of_labels(labels)
    assert rows.frame["VolumeName"].tolist() == ["s1", "s2", "s3", "s4"]
    assert rows.frame["label_row"].tolist() == [0, 1, 2, 3]
    assert set(rows.frame["split"]) == {"train"}
    assert (rows.num_without_labels, rows.num_unused_labels, rows.joined_by) == (0, 0, "report_id")


def test_sections_are_joined_where_there_is_no_report_column(labels, tmp_path):
    frame = pd.DataFrame(
        {
            "study_id": ["x", "y"],
            "findings": ["A small nodule.", ""],
            "impression": ["No effusion.", "Illegible."],
        }
    )
    rows = _rows(labels, frame, tmp_path)
    assert rows.frame["label_row"].tolist() == [0, 3]
    assert rows.joined_by == "findings and impression"


def test_the_text_column_can_be_named(labels, tmp_path):
    frame = pd.DataFrame({"report_id": ["x"], "text": ["Illegible."], "report": ["Not this."]})
    rows = _rows(labels, frame, tmp_path, text_column="text")
    assert (rows.frame["label_row"].tolist(), rows.joined_by) == ([3], "text")


def test_hashes_lead_to_the_labels_where_there_is_no_text(labels, tmp_path):
    frame = pd.DataFrame({"study_id": ["x"], "report_sha256": [report_sha256("Perhaps an effusion.")]})
    rows = _rows(labels, frame, tmp_path)
    assert (rows.frame["label_row"].tolist(), rows.joined_by) == ([1], "report_sha256")
    assert rows.frame["report"].tolist() == [""]


def test_ids_lead_to_the_labels_where_there_is_neither(labels, tmp_path, manifest_frame):
    rows = _rows(labels, manifest_frame.drop(columns="report"), tmp_path)
    # s5 has the text of s1, which only the text could tell.
    assert rows.frame["VolumeName"].tolist() == ["v1a", "v1b", "v2", "v4"]
    assert rows.frame["label_row"].tolist() == [0, 0, 1, 3]
    assert (rows.joined_by, rows.num_without_labels) == ("study_id", 2)
    named = pd.DataFrame({"accession": ["s3"], "study_id": ["s1"]})
    rows = _rows(labels, named, tmp_path, id_column="accession")
    assert (rows.frame["label_row"].tolist(), rows.joined_by) == ([2], "accession")


@pytest.mark.parametrize("ending", ["csv", "parquet", "jsonl"])
def test_all_formats_are_read_alike_and_ids_stay_text(labels, tmp_path, ending):
    frame = pd.DataFrame({"study_id": ["007", "NA"], "report": ["Illegible.", "Perhaps an effusion."]})
    path = tmp_path / f"table.{ending}"
    if ending == "csv":
        frame.to_csv(path, index=False)
    elif ending == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_json(path, orient="records", lines=True)
    rows = rows_of_table(labels, path).frame
    assert rows["VolumeName"].tolist() == ["007", "NA"]
    assert rows["label_row"].tolist() == [3, 1]


def test_volumes_of_ct_rate_get_the_ending_of_its_tables(labels, tmp_path):
    frame = pd.DataFrame({"volume_id": ["train_1_a_1", "valid_2_b_2.nii.gz"], "report": ["Illegible."] * 2})
    assert _rows(labels, frame, tmp_path).frame["VolumeName"].tolist() == [
        "train_1_a_1.nii.gz",
        "valid_2_b_2.nii.gz",
    ]
    frame["volume_id"] = ["train_1_a_1", "mine"]
    assert _rows(labels, frame, tmp_path).frame["VolumeName"].tolist() == ["train_1_a_1", "mine"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"volume_id": ["v1", "", "v3", "v4", "v5", "v6"]},
            "volume_id must be filled .* got 1 empty, first at row 1",
        ),
        (
            {"volume_id": ["v1", "v2", "v2", "v4", "v5", "v6"]},
            "volume_id must be unique, got 1 repeats, first at row 2",
        ),
        ({"split": ["train"] * 5 + ["dev"]}, r"split must be one of train, validation, test, got \['dev'\]"),
        (
            {"patient_id": ["p1", "p2", "p1", "p4", "p5", "p6"]},
            "a patient must be in one split, got 1 patients",
        ),
        ({"report": ["Unknown."] * 6}, "got 6 rows and none whose report is in the label table"),
    ],
)
def test_tables_that_would_give_wrong_rows_are_refused(labels, tmp_path, manifest_frame, change, message):
    with pytest.raises(ValueError, match=message):
        _rows(labels, manifest_frame.assign(**change), tmp_path)


def test_patients_without_an_id_are_nobody_in_particular(labels, tmp_path, manifest_frame):
    rows = _rows(labels, manifest_frame.assign(patient_id=""), tmp_path)
    assert len(rows.frame) == 5


def test_unusable_tables_are_refused(labels, tmp_path):
    with pytest.raises(ValueError, match=r"must end in \.csv, \.parquet or \.jsonl, got '\.txt'"):
        rows_of_table(labels, tmp_path / "table.txt")
    (tmp_path / "empty.csv").write_text("study_id,report\n")
    with pytest.raises(ValueError, match=r"at least one row, got 0 in empty\.csv"):
        rows_of_table(labels, tmp_path / "empty.csv")
    frame = pd.DataFrame({"name": ["a"], "report": ["b"]})
    with pytest.raises(
        ValueError, match=r"id column volume_id or study_id or report_id, got none among 2 columns"
    ):
        _rows(labels, frame, tmp_path)
    with pytest.raises(ValueError, match=r"id column other, got"):
        _rows(labels, frame, tmp_path, id_column="other")


def test_one_more_field_in_every_row_does_not_shift_the_columns(labels, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("volume_id,report\nx,y,Illegible.\n")
    with pytest.raises(ValueError, match=r"table.csv must have .* its header, 2, got 3 in row 0"):
        rows_of_table(labels, path)


def test_a_table_without_a_header_does_not_show_its_first_report(labels, tmp_path):
    path = tmp_path / "table.csv"
    path.write_text("x,Mr. Jones has a mass.\ny,Normal.\n")
    with pytest.raises(ValueError, match=r"got none among 2 columns\. .* the first line") as caught:
        rows_of_table(labels, path)
    assert "Jones" not in str(caught.value)


def test_a_report_in_the_column_of_splits_is_not_shown(labels, tmp_path, manifest_frame):
    splits = ["train"] * 5 + ["Mr. Jones has a mass."]
    with pytest.raises(
        ValueError, match=r"test, got 1 values that are no name .* at row 5\. Rename"
    ) as caught:
        _rows(labels, manifest_frame.assign(split=splits), tmp_path)
    assert "Jones" not in str(caught.value)


@pytest.mark.parametrize("column", ["volume_id", "report", "patient_id", "split", "findings"])
def test_half_a_character_is_refused_with_its_row_and_without_its_text(labels, tmp_path, column):
    path = tmp_path / "table.jsonl"
    whole = {"volume_id": "x", "report": "Illegible.", "patient_id": "p", "split": "train", "findings": "y"}
    broken = whole | {"volume_id": "z", column: "mass \ud83d"}
    path.write_text(json.dumps(whole | {"report": "A \U0001f600."}) + "\n" + json.dumps(broken) + "\n")
    message = (
        rf"^{column} must be valid Unicode, got the lone surrogate U\+D83D at character 5 in row 1\. Write"
    )
    with pytest.raises(ValueError, match=message) as caught:
        rows_of_table(labels, path)
    assert "mass" not in str(caught.value)
    path.write_text(json.dumps({"mass \ud83d": "x"}))
    with pytest.raises(ValueError, match=r"^a column name must be valid Unicode, got"):
        rows_of_table(labels, path)


def test_a_line_that_is_no_row_is_refused_without_its_text(labels, tmp_path):
    path = tmp_path / "table.jsonl"
    path.write_text('{"volume_id": "x", "report": "y"}\n["Large mass."]\n')
    with pytest.raises(ValueError, match=r"every line of table\.jsonl .* got a list in line 2\.") as caught:
        rows_of_table(labels, path)
    assert "mass" not in str(caught.value)


@pytest.mark.parametrize("mark", ["\u2028", "\u2029", "\x85"])
def test_a_line_separator_in_a_text_ends_no_line(labels, tmp_path, mark):
    path = tmp_path / "table.jsonl"
    line = f'{{"volume_id": "x", "report": "Perhaps{mark}an effusion."}}'
    path.write_bytes(f'{line}\r\n\n{{"volume_id": "y", "report": ""}}\n'.encode())
    rows = rows_of_table(labels, path)
    assert rows.frame[["VolumeName", "label_row"]].to_numpy().tolist() == [["x", 1]]
