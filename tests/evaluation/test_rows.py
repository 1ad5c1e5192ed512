import os
from datetime import UTC, datetime

import pandas as pd
import pyarrow.parquet as pq
import pytest

from radtower.evaluation.results import Results, write_results
from radtower.evaluation.rows import (
    QueryRows,
    ScoreRows,
    queries_path,
    read_query_rows,
    read_score_rows,
    scores_path,
    write_rows,
)

RESULTS = Results(
    model_id="m", model_revision=None, created=datetime(2026, 1, 1, tzinfo=UTC), phantom=True, metrics=()
)
WHERE = {"dataset": "d", "class_set": "two", "label_source": "truth", "protocol": "linear probe"}
SCORES = pd.DataFrame(
    [
        {**WHERE, "item_id": "a", "patient_id": "p", "finding": "nodule", "score": 0.25, "label": 1.0},
        {**WHERE, "item_id": "b", "patient_id": "q", "finding": "nodule", "score": -3.5, "label": -100.0},
    ]
)
QUERIES = pd.DataFrame(
    [
        {
            **WHERE,
            "protocol": None,
            "direction": "image_to_report",
            "query_id": "a",
            "patient_id": "p",
            "metric": "rank",
            "value": 4.0,
        }
    ]
)


def test_rows_come_back_as_they_were(tmp_path):
    path = tmp_path / "out" / "results.json"
    assert write_rows(ScoreRows(SCORES), RESULTS, path) == tmp_path / "out" / "results.scores.parquet"
    assert write_rows(QueryRows(QUERIES), RESULTS, path) == tmp_path / "out" / "results.queries.parquet"
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "results.queries.parquet",
        "results.scores.parquet",
    ]
    scores, queries = read_score_rows(RESULTS, path).frame, read_query_rows(RESULTS, path).frame
    assert scores.to_dict("records") == SCORES.to_dict("records")
    assert queries["value"].tolist() == [4.0]
    assert queries["protocol"].isna().all()
    assert queries["direction"].tolist() == ["image_to_report"]


def test_rows_of_an_earlier_run_do_not_stay_beside_new_results(tmp_path):
    path = tmp_path / "results.json"
    write_results(RESULTS, path)
    write_rows(QueryRows(QUERIES), RESULTS, path)
    write_results(RESULTS, path)
    assert not queries_path(path).exists()
    write_rows(ScoreRows(SCORES), RESULTS, path)
    assert read_score_rows(RESULTS, path).frame.shape == SCORES.shape


def test_rows_are_private_and_results_are_not(tmp_path):
    path = tmp_path / "results.json"
    mask = os.umask(0o027)
    try:
        write_results(RESULTS, path)
        rows = write_rows(ScoreRows(SCORES), RESULTS, path)
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640
    assert rows.stat().st_mode & 0o777 == 0o600


def test_baselines_have_rows_of_their_own():
    assert scores_path("r/results.bm25.json").name == "results.bm25.scores.parquet"
    assert queries_path("r/results.bm25.json").name == "results.bm25.queries.parquet"


def test_rows_of_another_run_are_refused(tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(FileNotFoundError, match=r"results\.scores\.parquet must lie beside the results"):
        read_score_rows(RESULTS, path)
    write_rows(ScoreRows(SCORES), RESULTS, path)
    other = RESULTS.model_copy(update={"model_id": "n"})
    with pytest.raises(
        ValueError, match="must be of the results beside it, got model_id 'm' where they say 'n'"
    ):
        read_score_rows(other, path)
    later = RESULTS.model_copy(update={"created": datetime(2026, 1, 2, tzinfo=UTC)})
    with pytest.raises(ValueError, match=r"got created '2026-01-01.* where they say '2026-01-02"):
        read_score_rows(later, path)


def test_a_file_of_rows_that_is_not_whole_is_refused_by_name_and_column(tmp_path):
    path = tmp_path / "run" / "results.json"
    there = write_rows(ScoreRows(SCORES), RESULTS, path)
    table = pq.read_table(there)
    pq.write_table(table.drop_columns(["label", "score"]), there)
    told = r"^run/results\.scores\.parquet: rows must have the columns .*, got no score, label\. Eval"
    with pytest.raises(ValueError, match=told):
        read_score_rows(RESULTS, path)
    queries_path(path).write_bytes(b"no parquet")
    with pytest.raises(ValueError, match=r"^run/results\.queries\.parquet must be a parquet file, got"):
        read_query_rows(RESULTS, path)


def test_ids_are_stored_once(tmp_path):
    path = write_rows(ScoreRows(SCORES), RESULTS, tmp_path / "results.json")
    assert str(pq.read_schema(path).field("finding").type).startswith("dictionary")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": [1.0, -1.0]}, r"label must be 0, 1 or -100, got \[-1\.0\]"),
        ({"score": [0.1, None]}, "score must be a number in every row, got 1 missing"),
        (
            {"extra": [0, 0]},
            r"rows must have the columns dataset, .*, label, got dataset, .*, label, extra\.",
        ),
    ],
)
def test_refuses_rows_that_say_nothing(change, message):
    with pytest.raises(ValueError, match=message):
        ScoreRows(SCORES.assign(**change))
