import numpy as np
import pandas as pd
import pytest

from radtower.data.reports.labeled_reports import read_gold_splits, read_silver_splits, read_table_splits
from radtower.data.targets import TargetPolicy
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.processing.report_text import report_sha256

STUDIES = pd.DataFrame(
    {
        "study_id": ["s0", "s1", "s2", "s3", "s4", "s5"],
        "patient_id": ["p0", "p1", "p2", "p3", "p4", "p5"],
        "split": ["train", "train", "train", "validation", "validation", "test"],
        "report": ["A  nodule.", "Clear lungs.", "", "An effusion.", "A nodule.", "A mass."],
    }
)
POLICY = TargetPolicy(uncertain=0.5)


@pytest.fixture
def write(tmp_path):
    def write(name="reports.csv", **columns):
        STUDIES.assign(**columns).to_csv(tmp_path / name, index=False)
        return tmp_path / name

    return write


@pytest.fixture
def write_silver(tmp_path):
    """Write a label table of texts with the statuses and scores of two findings; None is a failure."""

    def write(rows):
        keys = ("nodule", "effusion")
        table = [
            LabelRow(
                report_id=f"r{number}",
                report_sha256=report_sha256(text),
                status=dict(zip(keys, statuses or (None, None), strict=True)),
                score=dict(zip(keys, scores, strict=True)),
                evidence=dict.fromkeys(keys),
                labeler="test",
                model_id="m",
                prompt_version=None,
                findings_set="pair",
                error=None if statuses else "timeout",
            )
            for number, (text, statuses, scores) in enumerate(rows)
        ]
        write_labels(table, tmp_path / "labels.parquet")
        return tmp_path / "labels.parquet"

    return write


SILVER = [
    ("A nodule.", ("present", "not_mentioned"), (0.9, 0.2)),
    ("Clear lungs.", ("uncertain", "absent"), (0.4, None)),
    ("An effusion.", ("absent", "present"), (0.1, 0.7)),
]


def test_columns_of_a_table_are_split_and_what_is_left_out_is_counted(write):
    path = write(nodule=[1, 0, 1, 0, 1, 1], effusion=["", "0", "1", "1", "0", "0"])
    splits = read_table_splits(path, POLICY)
    assert splits.keys == ("nodule", "effusion")
    assert splits.train.texts == ("A nodule.", "Clear lungs.")
    np.testing.assert_array_equal(splits.train.targets, [[1, -100], [0, 0]])
    assert splits.validation.texts == ("An effusion.",)
    np.testing.assert_array_equal(splits.validation.targets, [[0, 1]])
    assert splits.notes == (
        "Training on 2 reports, measuring on 1: nodule, effusion.",
        "1 reports of the test split are not used.",
        "1 reports are empty and left out.",
        "1 reports of validation have a text of train and are left out.",
        "Never present in train, so it cannot be learned: effusion.",
    )


def test_status_columns_follow_the_policy_of_the_run(write):
    states = ["present", "uncertain", "absent", "not_mentioned", "absent", "present"]
    splits = read_table_splits(write(nodule=states), TargetPolicy(uncertain=0.5, not_mentioned=0.25))
    assert splits.train.targets.tolist() == [[1.0], [0.5]]
    assert splits.validation.targets.tolist() == [[0.25]]
    masked = read_table_splits(write(nodule=states), TargetPolicy(not_mentioned=None))
    assert masked.train.texts == ("A nodule.",)
    assert masked.validation is None
    assert "2 reports have no label and are left out." in masked.notes
    assert "Never absent in train, so it cannot be learned: nodule." in masked.notes


def test_a_findings_set_chooses_and_orders_the_columns(write, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: own\nfindings:\n- {key: effusion, name: Pleural effusion, definition: d, prompts: [p]}\n"
        "- {key: nodule, name: Nodule, definition: d, prompts: [p]}\n"
    )
    columns = {"nodule": [0, 1, 0, 0, 0, 0], "Pleural effusion": [1, 0, 0, 1, 0, 0], "mass": 0}
    splits = read_table_splits(write(**columns), POLICY, findings=own)
    assert splits.keys == ("effusion", "nodule")
    assert splits.train.targets.tolist() == [[1, 0], [0, 1]]
    with pytest.raises(ValueError, match="one column per finding, got 0 for 'nodule'"):
        read_table_splits(write(effusion=1), POLICY, findings=own)
    with pytest.raises(ValueError, match="one column per finding, got 2 for 'effusion'"):
        read_table_splits(write(**columns, effusion=1), POLICY, findings=own)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({}, r"label columns of 0, 1, -100 or status values .* got none in reports.csv"),
        ({"nodule": [0, 1, -1, 0, 0, 0]}, "got -1 in 1 rows of 'nodule'"),
        ({"nodule": 1, "mass": [-100, -100, 1, 1, 1, 1]}, r"a known label in train, got none for \['mass'\]"),
        ({"nodule": 1, "split": "test"}, "split train must hold a labeled report, got none among 6"),
    ],
)
def test_refuses_a_table_that_teaches_nothing(write, columns, message):
    with pytest.raises(ValueError, match=message):
        read_table_splits(write(**columns), POLICY)


def test_silver_labels_are_joined_by_text_and_may_be_soft(write, write_silver):
    labels = write_silver(SILVER)
    hard = read_silver_splits(write(), labels, POLICY)
    assert hard.keys == ("nodule", "effusion")
    assert hard.train.texts == ("A nodule.", "Clear lungs.")
    assert hard.train.targets.tolist() == [[1, 0], [0.5, 0]]
    soft = read_silver_splits(write(), labels, POLICY, has_soft_targets=True)
    np.testing.assert_allclose(soft.train.targets, [[0.9, 0.2], [0.4, 0]])
    for splits in (hard, soft):
        assert splits.validation.targets.tolist() == [[0, 1]]
        assert "1 reports of validation have a text of train and are left out." in splits.notes


def test_a_report_that_could_not_be_labeled_is_left_out(write, write_silver):
    failed = ("Clear lungs.", None, (None, None))
    splits = read_silver_splits(
        write(), write_silver([SILVER[0], failed, SILVER[2]]), POLICY, has_soft_targets=True
    )
    assert splits.train.texts == ("A nodule.",)
    assert "1 reports have no label and are left out." in splits.notes


def test_another_text_may_have_been_labeled(write, write_silver):
    impressions = ["A nodule.", "Clear lungs.", "", "An effusion.", "", "A mass."]
    path = write(impression=impressions, report=[f"{text} More." for text in impressions])
    splits = read_silver_splits(path, write_silver(SILVER), POLICY, "impression")
    assert splits.train.texts == ("A nodule.", "Clear lungs.")


def test_refuses_labels_of_other_reports_and_reports_without_labels(write, write_silver):
    with pytest.raises(ValueError, match="must be of reports in the table, got 1 of 4 that are not there"):
        read_silver_splits(write(), write_silver([*SILVER, ("Other.", ("absent", "absent"), (0, 0))]), POLICY)
    with pytest.raises(ValueError, match="must have a row of labels, got 1 of 6 without") as error:
        read_silver_splits(write(), write_silver(SILVER[:2]), POLICY)
    assert "effusion" not in str(error.value)


def test_gold_may_be_numbers_or_states_but_not_minus_one(write, tmp_path):
    manifest = write(image_path="x.nii.gz")
    gold = tmp_path / "gold.csv"
    gold.write_text("study_id,nodule\ns3,0\ns0,1\ns1,0.25\n")
    splits = read_gold_splits(manifest, gold, POLICY)
    assert splits.train.texts == ("A nodule.", "Clear lungs.")
    assert splits.train.targets.tolist() == [[1], [0.25]]
    assert splits.validation.texts == ("An effusion.",)
    gold.write_text("study_id,nodule\ns0,present\ns1,uncertain\n")
    assert read_gold_splits(manifest, gold, POLICY).train.targets.tolist() == [[1], [0.5]]
    gold.write_text("study_id,nodule\ns0,1\ns1,-1\n")
    with pytest.raises(ValueError, match=r"in \[0, 1\] or -100, got \[-1.0\]"):
        read_gold_splits(manifest, gold, POLICY)
    gold.write_text("study_id,nodule\ns0,1\ns0,0\n")
    with pytest.raises(ValueError, match="one row per study, got 1 repeats"):
        read_gold_splits(manifest, gold, POLICY)


def test_one_more_field_in_every_gold_row_does_not_shift_the_columns(write, tmp_path):
    gold = tmp_path / "gold.csv"
    gold.write_text("study_id,nodule\ns0,s0,1\ns1,s1,0\n")
    with pytest.raises(ValueError, match=r"gold.csv must have .* its header, 2, got 3 in row 0"):
        read_gold_splits(write(image_path="x.nii.gz"), gold, POLICY)
