"""The report table: reading, checks, and a split that does not depend on the order of rows."""

from collections import Counter

import numpy as np
import pandas as pd
import pytest

from radtower.data.manifest import identifier_hash
from radtower.data.reports.report_corpus import assign_splits, read_report_table, write_report_table


def table(**columns: list) -> pd.DataFrame:
    base = {
        "study_id": ["s1", "s2", "s3"],
        "patient_id": ["p1", "p2", "p3"],
        "split": ["train", "validation", "test"],
        "findings": ["Clear  lungs.", "Small effusion.", ""],
        "impression": ["Normal.", "Effusion.", "Nothing."],
    }
    return pd.DataFrame({**base, **columns})


@pytest.fixture
def read(tmp_path):
    def read_back(frame: pd.DataFrame, suffix: str = "csv"):
        write_report_table(frame, tmp_path / "deep" / f"corpus.{suffix}")
        return read_report_table(tmp_path / "deep" / f"corpus.{suffix}")

    return read_back


@pytest.mark.parametrize("suffix", ["csv", "parquet"])
def test_reads_sections_and_labels_of_a_table(read, suffix):
    frame = table(nodule=[1, 0, -100], hernia=["present", None, "uncertain"], age=[53, 61, 40])
    found = read(frame, suffix)
    assert found.label_names == ("nodule", "hernia")
    np.testing.assert_array_equal(found.labels, [[1, 1], [0, -100], [-100, -100]])
    assert found.frame["report"].tolist() == ["Clear lungs. Normal.", "Small effusion. Effusion.", "Nothing."]
    assert found.frame["source"].tolist() == ["corpus"] * 3
    assert found.with_both_sections().frame["study_id"].tolist() == ["s1", "s2"]
    assert found.with_both_sections().labels.tolist() == [[1, 1], [0, -100]]
    assert found.split("test").frame["study_id"].tolist() == ["s3"]


def test_the_volumes_of_a_manifest_count_once(read):
    frame = table(volume_id=["v1", "v2", "v3"], image_path=["a", "b", "c"], report=["One.", "One.", "Two."])
    frame["study_id"] = ["s1", "s1", "s3"]
    frame["patient_id"] = ["p1", "p1", "p3"]
    frame["split"] = ["train", "train", "test"]
    found = read(frame.drop(columns=["findings", "impression"]))
    assert found.frame["study_id"].tolist() == ["s1", "s3"]
    assert found.labels.shape == (2, 0)


def test_a_number_that_is_no_label_is_ignored_and_so_is_an_empty_column(read):
    assert read(table(score=[0, 1, 2], empty=[None] * 3)).label_names == ()


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"split": ["train", "dev", "test"]}, r"train, validation, test, got \['dev'\]"),
        ({"patient_id": ["p1", "p1", "p3"]}, f"one split, got 1 with several, first {identifier_hash('p1')}"),
        (
            {"study_id": ["s1", "s1", "s3"]},
            f"one patient_id, got 1 .* first {identifier_hash('s1')}",
        ),
        ({"study_id": ["s1", None, "s3"]}, "study_id must be filled in every row, got 1 empty"),
        ({"patient_id": ["p1", " ", None]}, "patient_id must be filled in every row, got 2 empty"),
    ],
)
def test_refuses_a_table_that_would_leak_or_mislead(read, columns, message):
    with pytest.raises(ValueError, match=message):
        read(table(**columns))


def test_refuses_a_study_with_two_reports(read):
    frame = table(
        study_id=["s1", "s1", "s3"], patient_id=["p1", "p1", "p3"], split=["train", "train", "test"]
    )
    with pytest.raises(ValueError, match="one report, got 1 with several"):
        read(frame)


def test_refuses_what_is_no_report_table(tmp_path, read):
    with pytest.raises(ValueError, match=r"got no \['split', 'report \(or findings, impression\)'\]"):
        read(table().drop(columns=["findings", "impression", "split"]))
    with pytest.raises(ValueError, match=r"got '\.xlsx'"):
        write_report_table(table(), tmp_path / "t.xlsx")
    with pytest.raises(ValueError, match="one of test, train, validation in this table, got 'dev'"):
        read(table()).split("dev")


def test_the_split_depends_on_nothing_but_reports_and_their_groups():
    rng = np.random.default_rng(0)
    reports = [f"Report number {row}." for row in range(3000)]
    patients = [f"p{row}" for row in range(3000)]
    splits = assign_splits(patients, reports)
    counts = Counter(splits)
    assert {name: round(counts[name] / 3000, 1) for name in counts} == {
        "train": 0.7,
        "validation": 0.1,
        "test": 0.2,
    }
    order = rng.permutation(3000)
    shuffled = assign_splits([patients[row] for row in order], [reports[row] for row in order])
    assert shuffled == [splits[row] for row in order]
    assert assign_splits([f"other {p}" for p in patients], reports) == splits
    assert assign_splits(patients[:50], reports[:50]) == splits[:50]
    # Known places: a change of the rule would silently change every published number.
    texts = ["Effusion.", "Clear lungs.", "Nodule.", "Goiter.", "Scoliosis."]
    assert assign_splits(list("abcde"), texts) == ["train", "validation", "test", "validation", "train"]


def test_patients_and_equal_reports_stay_together_through_a_chain():
    reports = [f"Chain {row // 2}." for row in range(40)]
    patients = [f"p{(row + 1) // 2}" for row in range(40)]
    splits = assign_splits(patients, reports)
    assert len(set(splits)) == 1
    order = np.random.default_rng(1).permutation(40)
    assert assign_splits([patients[r] for r in order], [reports[r] for r in order]) == splits
    assert len(set(assign_splits([f"p{row}" for row in range(40)], [f"Chain {r}." for r in range(40)]))) == 3


def test_empty_reports_do_not_glue_patients_together():
    splits = assign_splits([f"p{row}" for row in range(40)], [""] * 40)
    assert len(set(splits)) == 3
    assert len(set(assign_splits(["p"] * 3, ["", "Chain 1.", "Chain 2."]))) == 1


def test_spaces_do_not_change_the_split_and_lists_must_pair_up():
    assert assign_splits(["a"], ["Small   effusion."]) == assign_splits(["b"], ["Small effusion."])
    with pytest.raises(ValueError, match=r"got \[1, 2, 2\]"):
        assign_splits(["a"], ["x", "y"])


def test_texts_that_differ_for_no_reader_stay_together():
    reports = [text for row in range(20) for text in (f"1. Nodule r{row}. Clear.", f"nodule r{row}; clear")]
    splits = assign_splits([f"p{row}" for row in range(40)], reports)
    assert splits[::2] == splits[1::2]
    assert len(set(splits)) == 3


def test_equal_findings_stay_together_and_missing_ones_do_not_glue():
    reports = [f"Report {row}." for row in range(40)]
    findings = ["Heart is large.", "heart is large"] * 10 + [""] * 20
    splits = assign_splits([f"p{row}" for row in range(40)], reports, findings)
    assert len(set(splits[:20])) == 1
    assert splits[20:] == assign_splits([f"p{row}" for row in range(20, 40)], reports[20:])
    assert len(set(splits[20:])) == 3


def test_a_label_of_minus_one_is_refused_and_not_taken_for_some_other_column(tmp_path):
    columns = {"study_id": ["a", "b"], "patient_id": ["a", "b"], "split": "test", "report": "Clear."}
    pd.DataFrame(columns | {"nodule": [1, -1]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match="got -1 in 1 rows of 'nodule'"):
        read_report_table(tmp_path / "t.csv")
    pd.DataFrame(columns | {"change_mm": [3, -1]}).to_csv(tmp_path / "t.csv", index=False)
    assert read_report_table(tmp_path / "t.csv").label_names == ()


@pytest.mark.parametrize("name", ["findings", "nodule"])
def test_rows_of_a_study_must_agree(tmp_path, name):
    columns = {"study_id": "a", "patient_id": "a", "split": "test", "report": "Clear.", "findings": "Clear."}
    frame = pd.DataFrame(columns | {"nodule": 1, "volume_id": ["v", "w"]})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert len(read_report_table(tmp_path / "t.csv")) == 1
    frame[name] = ["Clear.", "Other."] if name == "findings" else [1, 0]
    frame.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(ValueError, match=rf"must have one {name}|differ in \['{name}'\]"):
        read_report_table(tmp_path / "t.csv")


def test_a_limit_takes_the_same_studies_of_every_split_whatever_the_order(tmp_path):
    frame = pd.DataFrame(
        {
            "study_id": [f"s{row}" for row in range(20)],
            "patient_id": [f"p{row}" for row in range(20)],
            "split": ["train", "test"] * 10,
            "report": "Clear.",
        }
    )
    frame.to_csv(tmp_path / "a.csv", index=False)
    frame[::-1].to_csv(tmp_path / "b.csv", index=False)
    kept = [set(read_report_table(tmp_path / f"{name}.csv").limited(3).frame["study_id"]) for name in "ab"]
    assert kept[0] == kept[1]
    assert sorted(int(name[1:]) % 2 for name in kept[0]) == [0, 0, 0, 1, 1, 1]
    assert kept[0] != {"s0", "s10", "s12", "s1", "s11", "s13"}  # ids may say where or when a scan was made
    assert len(read_report_table(tmp_path / "a.csv").limited(100)) == 20
