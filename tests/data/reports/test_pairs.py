"""Pairs tables: three formats give the same rows; what training could not use is refused."""

import pandas as pd
import pytest

from radtower.data.manifest import identifier_hash
from radtower.data.reports.pairs import COLUMNS, read_pairs, read_several_pairs, write_pairs


def pairs(**columns: list) -> pd.DataFrame:
    base = {
        "query": ["Heart is large.", "Clear, lungs\nand all."],
        "positive": ["Cardiomegaly.", "Normal."],
        "negatives": [["No cardiomegaly.", "Effusion."], []],
        "negative_kinds": [["negation", "finding"], []],
        "source": ["open_i/findings_impression", "open_i/findings_impression"],
        "instruction": [None, "Summarize"],
        "label_key": ["labels:a", None],
        "study_id": ["001", "s2"],
        "split": ["train", "test"],
    }
    return pd.DataFrame({**base, **columns})


@pytest.fixture
def read(tmp_path):
    def read_back(frame: pd.DataFrame, suffix: str = "parquet", split=None) -> pd.DataFrame:
        write_pairs(frame, tmp_path / "deep" / f"pairs.{suffix}")
        return read_pairs(tmp_path / "deep" / f"pairs.{suffix}", split)

    return read_back


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv"])
def test_what_was_written_is_read_back(read, suffix):
    found = read(pairs(extra=[1, 2]), suffix)
    assert list(found.columns) == list(COLUMNS)
    assert found.to_dict("list") == pairs().astype(object).where(pairs().notna(), None).to_dict("list")
    assert all(type(cell) is list for cell in found["negatives"])
    assert found["instruction"][0] is None
    assert read(pairs(), suffix, "test")["study_id"].tolist() == ["s2"]


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"query": ["", "x"]}, "query must be a text in every row, got an empty one at row 0"),
        ({"positive": ["x", None]}, "positive must be a text in every row, got an empty one at row 1"),
        ({"source": ["x", 7]}, "source must be a text in every row, got int at row 1"),
        ({"negatives": [["a", "b"], None]}, "negatives must be a list of texts, got float at row 1"),
        (
            {"negatives": [["a", " "], []]},
            "negatives must hold texts, got an empty one .* at row 0",
        ),
        ({"negative_kinds": [["negation"], []]}, "got 1 for 2 at row 0"),
        (
            {"negatives": [["a", "Cardiomegaly. "], []]},
            "from the positive, got the same at row 0",
        ),
        ({"split": ["train", "dev"]}, r"got \['dev'\]"),
        ({"study_id": ["s2", "s2"]}, f"one split, got 1 in several, first {identifier_hash('s2')}"),
    ],
)
def test_refuses_rows_that_training_could_not_use(read, columns, message):
    with pytest.raises(ValueError, match=message):
        read(pairs(**columns), "jsonl")


def test_refuses_other_files(read, tmp_path):
    with pytest.raises(ValueError, match=r"got no \['label_key'\]"):
        read(pairs().drop(columns="label_key"))
    with pytest.raises(ValueError, match="one of test, train in these pairs, got 'validation'"):
        read(pairs(), split="validation")
    with pytest.raises(ValueError, match=r"got '\.txt'"):
        read_pairs(tmp_path / "pairs.txt")
    frame = pairs(negatives=["[a", "[]"])
    frame.assign(negative_kinds=["[]", "[]"]).to_csv(tmp_path / "broken.csv", index=False)
    with pytest.raises(ValueError, match="negatives must be a list of texts, got str at row 0"):
        read_pairs(tmp_path / "broken.csv")


def test_several_tables_are_one_and_a_number_may_be_a_study_of_each(tmp_path):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_pairs(pairs(), paths[0])
    other = ["ct_rate/findings_impression"] * 2
    write_pairs(pairs(source=other, split=["validation", "train"]), paths[1])
    found = read_several_pairs(paths, "train")
    assert found[["source", "study_id"]].to_numpy().tolist() == [
        ["open_i/findings_impression", "001"],
        ["ct_rate/findings_impression", "s2"],
    ]


def test_a_study_in_two_splits_of_two_tables_is_refused(tmp_path):
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    write_pairs(pairs(), paths[0])
    write_pairs(pairs(source=["open_i/report_rewrite"] * 2, split=["validation", "train"]), paths[1])
    with pytest.raises(ValueError, match="one split, got 2 in several"):
        read_several_pairs(paths, "train")


def test_a_table_twice_is_refused(tmp_path, monkeypatch):
    write_pairs(pairs(), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"name a table once, got \['a.parquet', 'a.parquet'\]"):
        read_several_pairs([tmp_path / "a.parquet", "a.parquet"], "train")
