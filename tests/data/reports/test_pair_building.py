"""Pairs from a report table: what is paired, and which rows are no negatives of each other."""

import numpy as np
import pandas as pd
import pytest

from radtower.data.reports.pair_building import (
    PairOptions,
    build_pairs,
    is_normal_impression,
)
from radtower.data.reports.report_corpus import ReportTable

ROWS = [  # findings, impression, labels
    ("Heart is large.", "1. Cardiomegaly.", (1, 0)),
    ("Big heart is observed.", "cardiomegaly", (1, 0)),
    ("Clear.", "No acute disease.", (0, 1)),
    ("Nothing.", "Normal chest.", (-100, -100)),
    ("Something.", "Cardiomegaly", (-100, -100)),
    ("", "No findings given.", (0, 0)),
]


@pytest.fixture
def table() -> ReportTable:
    findings, impressions, labels = zip(*ROWS, strict=True)
    frame = pd.DataFrame(
        {
            "study_id": [f"s{row}" for row in range(len(ROWS))],
            "patient_id": [f"p{row}" for row in range(len(ROWS))],
            "split": ["train", "test"] * 3,
            "source": "corpus",
            "findings": findings,
            "impression": impressions,
            "report": [" ".join(pair).strip() for pair in zip(findings, impressions, strict=True)],
        }
    )
    return ReportTable(frame, np.array(labels, dtype=np.float32), ("cardiomegaly", "normal"))


def test_findings_are_paired_with_their_impression(table):
    pairs = build_pairs(table, PairOptions(tasks=("findings_impression",)))
    assert pairs["query"].tolist() == [row[0] for row in ROWS[:5]]
    assert pairs["positive"].tolist() == [row[1] for row in ROWS[:5]]
    assert set(pairs["source"]) == {"corpus/findings_impression"}
    assert pairs["study_id"].tolist() == ["s0", "s1", "s2", "s3", "s4"]
    assert pairs["split"].tolist() == ["train", "test", "train", "test", "train"]


def test_equal_labels_and_equal_texts_share_a_key(table):
    by_label = build_pairs(table, PairOptions(tasks=("findings_impression",)))["label_key"].tolist()
    assert by_label[:4] == ["labels:cardiomegaly", "labels:cardiomegaly", "normal", "normal"]
    options = PairOptions(tasks=("findings_impression",), label_keys="text")
    by_text = build_pairs(table, options)["label_key"].tolist()
    assert by_text[0] == by_text[1] == by_text[4] == by_label[4]
    assert by_text[2:4] == ["normal", "normal"]
    assert by_text[0] not in ("normal", by_label[0])


@pytest.mark.parametrize(
    ("impression", "labels", "key"),
    [
        ("Large left pneumothorax.", (0, -100), "text"),  # what is unknown may be the finding
        ("Large left pneumothorax.", (1, -100), "text"),
        ("Bone infarction in all vertebrae.", (0, 0), "text"),  # none of the labels is not normal
        ("Heart as before.", (1, 0), "labels:cardiomegaly"),
        ("As before.", (0, 1), "normal"),
        ("No acute findings.", (1, 0), "normal"),  # an answer to every normal report
    ],
)
def test_only_labels_that_are_all_known_make_studies_equal(table, impression, labels, key):
    one = table.rows(np.array([True] + [False] * 5))
    frame = one.frame.assign(impression=impression)
    changed = ReportTable(frame, np.array([labels], dtype=np.float32), one.label_names)
    found = build_pairs(changed, PairOptions(tasks=("findings_impression",)))["label_key"][0]
    assert found.split(":")[0] == key if key == "text" else found == key


def test_a_report_is_paired_with_itself_in_other_words_and_its_corruptions(table):
    pairs = build_pairs(table, PairOptions(num_negatives=2))
    rewrites = pairs[pairs["source"] == "corpus/report_rewrite"]
    assert rewrites["query"].tolist() == table.frame["report"].tolist()
    assert rewrites["positive"][5] == "Cardiomegaly. Heart is large."
    assert rewrites["label_key"].nunique() == 6
    assert rewrites["label_key"].str.startswith("text:").all()
    assert [len(kinds) for kinds in pairs["negative_kinds"]] == [len(n) for n in pairs["negatives"]]
    assert pairs["negatives"][2] == ["Acute disease."]
    assert pairs["negative_kinds"][2] == ["negation"]
    assert pairs["negatives"].map(len).max() == 2
    assert not build_pairs(table, PairOptions(num_negatives=0))["negatives"].map(len).any()


def test_a_row_depends_on_its_study_and_the_seed_alone(table):
    whole = build_pairs(table)
    part = build_pairs(table.rows(np.array([False, True, False, True, True, False])))
    kept = whole[whole["study_id"].isin(["s1", "s3", "s4"])].reset_index(drop=True)
    pd.testing.assert_frame_equal(part, kept)
    assert (build_pairs(table, PairOptions(seed=1))["positive"] != whole["positive"]).any()


def test_refuses_options_that_give_no_pair(table):
    with pytest.raises(ValueError, match="one of labels, text, got 'label'"):
        PairOptions(label_keys="label")
    with pytest.raises(ValueError, match=r"tasks must be of .*, got \['summary'\]"):
        PairOptions(tasks=("summary",))
    with pytest.raises(ValueError, match="got none"):
        PairOptions(tasks=())
    with pytest.raises(ValueError, match="must not be negative, got -1"):
        PairOptions(num_negatives=-1)
    options = PairOptions(tasks=("findings_impression",))
    with pytest.raises(ValueError, match="got none of 1 for findings_impression"):
        build_pairs(table.rows(np.array([False] * 5 + [True])), options)


@pytest.mark.parametrize(
    "text",
    [
        "No acute cardiopulmonary abnormality.",
        "1. No acute radiographic cardiopulmonary process.",
        "Clear lungs. No acute cardiopulmonary abnormality. .",
        "No acute or active cardiac, pulmonary or pleural disease.",
        "Negative chest x-XXXX.",
        "There is no evidence of acute cardiopulmonary disease",
        "Thorax CT examination within normal limits",
        "Normal chest",
        "1. No acute disease. 2. Normal chest radiograph.",
    ],
)
def test_boilerplate_says_normal(text):
    assert is_normal_impression(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        ".",
        "No acute disease. Cardiomegaly.",
        "Emphysema without acute disease.",
        "No change.",
        "No pneumothorax.",
        "Hyperexpanded but clear lungs.",
        "Acute cardiopulmonary disease.",
        "Cardiomegaly within normal limits",
    ],
)
def test_anything_more_is_not_normal(text):
    assert not is_normal_impression(text)
