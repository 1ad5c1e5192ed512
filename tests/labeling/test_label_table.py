import os
import stat
from dataclasses import replace

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from radtower.labeling.findings import Status
from radtower.labeling.label_table import LabelRow, read_labels, stream_labels, write_labels

COLUMNS = [
    *("report_id", "report_sha256", "status", "score", "evidence", "labeler", "model_id"),
    *("prompt_version", "findings_set", "tokens_in", "tokens_out", "cost_usd", "error"),
]


def make_row(report_id: str, **fields: object) -> LabelRow:
    row = LabelRow(
        report_id=report_id,
        report_sha256=f"sha-{report_id}",
        status={"emphysema": Status.PRESENT, "atelectasis": Status.NOT_MENTIONED},
        score={"emphysema": 0.75, "atelectasis": None},
        evidence={"emphysema": "Emphysema.", "atelectasis": None},
        labeler="endpoint",
        model_id="m",
        prompt_version="v1",
        findings_set="pair",
        tokens_in=10,
    )
    return replace(row, **fields)


def failed_row(report_id: str) -> LabelRow:
    nothing = {"emphysema": None, "atelectasis": None}
    return make_row(report_id, status=nothing, score=nothing, evidence=nothing, error="timeout")


def write_table(tmp_path, **columns: object):
    path = tmp_path / "labels.parquet"
    write_labels([make_row("r1")], path)
    table = pq.read_table(path)
    for name, column in columns.items():
        position = table.schema.names.index(name)
        table = table.remove_column(position) if column is None else table.set_column(position, name, column)
    pq.write_table(table, path)
    return path


def test_a_table_survives_the_file_in_row_order(tmp_path):
    path = tmp_path / "deep" / "labels.parquet"
    write_labels([make_row("r2", num_dropped_evidence=3), failed_row("r1"), make_row("r3")], path)
    table = read_labels(path)
    assert len(table) == 3
    assert table.keys == ("emphysema", "atelectasis")
    assert table.frame.columns.tolist() == COLUMNS
    assert table.frame["report_id"].tolist() == ["r2", "r1", "r3"]
    assert table.frame["tokens_in"][0] == 10
    assert table.frame["tokens_out"].isna().all()
    assert table.num_dropped_evidence == 3
    assert table.status_frame.loc["r2"].tolist() == ["present", "not_mentioned"]
    assert table.status_frame.loc["r1"].tolist() == [None, None]
    assert table.evidence_frame.loc["r3"].tolist() == ["Emphysema.", None]
    assert table.failures.to_dict() == {"r1": "timeout"}


def test_the_file_has_the_columns_of_the_contract_in_order(tmp_path):
    write_labels([make_row("r1")], tmp_path / "labels.parquet")
    schema = pq.read_schema(tmp_path / "labels.parquet")
    assert schema.names == COLUMNS
    assert schema.field("score").type == pa.struct(
        [("emphysema", pa.float64()), ("atelectasis", pa.float64())]
    )
    assert schema.field("cost_usd").type == pa.float64()


def test_scores_come_as_a_matrix_in_the_order_asked_for(tmp_path):
    write_labels([make_row("r1"), failed_row("r2")], tmp_path / "labels.parquet")
    table = read_labels(tmp_path / "labels.parquet")
    scores = table.score_matrix(["atelectasis", "emphysema"])
    np.testing.assert_array_equal(scores, [[np.nan, 0.75], [np.nan, np.nan]])
    assert table.score_matrix()[0, 0] == 0.75
    with pytest.raises(KeyError, match=r"got \['mass'\]"):
        table.score_matrix(["mass"])


def test_studies_find_their_row_by_the_hash_of_the_report(tmp_path):
    write_labels([make_row("r1"), make_row("r2")], tmp_path / "labels.parquet")
    table = read_labels(tmp_path / "labels.parquet")
    assert table.rows_of(["sha-r2", "sha-r1", "sha-r2"]).tolist() == [1, 0, 1]
    with pytest.raises(KeyError, match="got 2 that are not, first sha-r9"):
        table.rows_of(["sha-r1", "sha-r9", "sha-r8"])


def test_a_refused_write_leaves_the_old_file_and_no_other(tmp_path):
    path = tmp_path / "labels.parquet"
    write_labels([make_row("r1")], path)
    with pytest.raises(ValueError, match="report_sha256 must be unique, got 1 repeats, first at row 1"):
        write_labels([make_row("r1"), make_row("r2", report_sha256="sha-r1")], path)
    assert [item.name for item in tmp_path.iterdir()] == ["labels.parquet"]
    assert len(read_labels(path)) == 1


def test_a_crash_while_writing_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "labels.parquet"
    write_labels([make_row("r1")], path)

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(pq.ParquetWriter, "write_table", fail)
    with pytest.raises(OSError, match="disk full"):
        write_labels([make_row("r2")], path)
    assert [item.name for item in tmp_path.iterdir()] == ["labels.parquet"]
    assert read_labels(path).frame["report_id"].tolist() == ["r1"]


def test_rows_are_streamed_in_groups_and_the_file_can_be_read_by_others(tmp_path):
    taken = []

    def rows():
        for number in range(2500):
            taken.append(number)
            yield make_row(f"r{number}", num_dropped_evidence=2)

    path = tmp_path / "labels.parquet"
    before = os.umask(0o027)
    try:
        stream_labels(rows(), path, ["emphysema", "atelectasis"])
    finally:
        os.umask(before)
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert pq.read_metadata(path).num_row_groups == 3
    table = read_labels(path)
    assert table.frame["report_id"].tolist() == [f"r{number}" for number in range(2500)]
    assert table.num_dropped_evidence == 5000


def test_the_file_says_what_its_answers_depend_on(tmp_path):
    parts = {
        "labeler": "endpoint",
        "prompt_version": None,
        "settings.max_tokens": 512,
        "settings.seeded": True,
    }
    stream_labels([make_row("r1")], tmp_path / "labels.parquet", ["emphysema", "atelectasis"], parts)
    assert read_labels(tmp_path / "labels.parquet").generation == parts
    write_labels([make_row("r1")], tmp_path / "labels.parquet")
    assert read_labels(tmp_path / "labels.parquet").generation == {}


def test_a_wrong_row_of_a_stream_is_named_by_its_place(tmp_path):
    good = [make_row(f"r{number}") for number in range(1001)]
    other = make_row("x", status={"mass": Status.ABSENT})
    with pytest.raises(
        ValueError, match=r"must share the findings \['emphysema', 'atelectasis'\].* at row 1001"
    ):
        stream_labels([*good, other], tmp_path / "labels.parquet", ["emphysema", "atelectasis"])
    wrong = make_row("x", score={"emphysema": 2.0, "atelectasis": None})
    with pytest.raises(ValueError, match=r"emphysema=2\.0 at row 1001"):
        stream_labels([*good, wrong], tmp_path / "labels.parquet", ["emphysema", "atelectasis"])
    assert list(tmp_path.iterdir()) == []


def test_no_rows_are_refused(tmp_path):
    with pytest.raises(ValueError, match="got 0 rows"):
        write_labels([], tmp_path / "labels.parquet")


def test_rows_with_other_findings_are_refused(tmp_path):
    other = make_row("r2", score={"emphysema": 0.5})
    with pytest.raises(ValueError, match=r"\['emphysema', 'atelectasis'\].* at row 1"):
        write_labels([make_row("r1"), other], tmp_path / "labels.parquet")


def test_a_repeated_id_is_refused(tmp_path):
    rows = [make_row("r1"), make_row("r1", report_sha256="x")]
    with pytest.raises(ValueError, match="report_id must be unique, got 1 repeats, first at row 1"):
        write_labels(rows, tmp_path / "labels.parquet")


@pytest.mark.parametrize("value", [1.25, -1.0, float("nan")])
def test_a_score_outside_zero_to_one_is_refused(tmp_path, value):
    row = make_row("r1", score={"emphysema": value, "atelectasis": None})
    with pytest.raises(ValueError, match=f"score must be .* got emphysema={value} at row 0"):
        write_labels([row], tmp_path / "labels.parquet")


def test_a_row_without_status_needs_an_error_and_the_other_way_round(tmp_path):
    missing = replace(failed_row("r1"), error=None)
    with pytest.raises(ValueError, match="got atelectasis=None, emphysema=None at row 0"):
        write_labels([missing], tmp_path / "labels.parquet")
    with pytest.raises(ValueError, match="got atelectasis=not_mentioned, emphysema=present at row 0"):
        write_labels([make_row("r1", error="timeout")], tmp_path / "labels.parquet")


def test_an_unknown_status_in_a_file_is_refused(tmp_path):
    path = write_table(tmp_path, status=pa.array([{"emphysema": "maybe", "atelectasis": "absent"}]))
    with pytest.raises(ValueError, match="got emphysema=maybe at row 0"):
        read_labels(path)


def test_a_missing_column_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"the label table labels.parquet must .* none named \['error'\]\. Label"
    ):
        read_labels(write_table(tmp_path, error=None))


def test_a_column_of_another_type_is_refused(tmp_path):
    with pytest.raises(
        ValueError,
        match=r"tokens_in of the label table labels.parquet must be a column of type int64, got string",
    ):
        read_labels(write_table(tmp_path, tokens_in=pa.array(["10"])))


def test_structs_with_different_findings_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"score of .* must be a struct .* got struct<emphysema: double>"):
        read_labels(write_table(tmp_path, score=pa.array([{"emphysema": 0.5}])))


def test_a_status_that_is_no_struct_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"status of .* labels.parquet must be a struct .* got string"):
        read_labels(write_table(tmp_path, status=pa.array(["present"])))


def test_a_status_frame_feeds_pandas_without_losing_missing_cells(tmp_path):
    write_labels([failed_row("r1"), make_row("r2")], tmp_path / "labels.parquet")
    frame = read_labels(tmp_path / "labels.parquet").status_frame
    assert frame.isna().sum(axis=1).tolist() == [2, 0]
    assert isinstance(frame, pd.DataFrame)
    assert frame.index.name == "report_id"
