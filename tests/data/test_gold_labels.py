import numpy as np
import pandas as pd
import pytest

from radtower.data.gold_labels import GoldColumns, is_model_output, pair_labels, read_gold
from radtower.labeling.findings import Status, load_findings
from radtower.labeling.findings_mapping import load_mapping
from radtower.labeling.label_table import LabelRow, read_labels, write_labels
from radtower.processing.report_text import report_sha256

P, A, U, N = "present", "absent", "uncertain", "not_mentioned"
CT_RATE = load_findings("ct_rate_18")
PAIR = CT_RATE.subset(["emphysema", "pleural_effusion"])
BY_ID = GoldColumns("study_id")


@pytest.fixture
def write_gold(tmp_path):
    def write(name="gold.csv", **columns):
        frame = pd.DataFrame(columns)
        path = tmp_path / name
        frame.to_parquet(path) if name.endswith(".parquet") else frame.to_csv(path, index=False)
        return path

    return write


def make_table(tmp_path, reports, keys=PAIR.keys):
    """Write and read a label table of (id, text, statuses or None, scores)."""
    rows = [
        LabelRow(
            report_id=name,
            report_sha256=report_sha256(text),
            status=dict.fromkeys(keys)
            if statuses is None
            else dict(zip(keys, map(Status, statuses), strict=True)),
            score=dict.fromkeys(keys) if scores is None else dict(zip(keys, scores, strict=True)),
            evidence=dict.fromkeys(keys),
            labeler="llm",
            model_id="m",
            prompt_version="v1",
            findings_set="ct_rate_18",
            error="timeout" if statuses is None else None,
        )
        for name, text, statuses, scores in reports
    ]
    write_labels(rows, tmp_path / "labels.parquet")
    return read_labels(tmp_path / "labels.parquet")


@pytest.mark.parametrize("name", ["gold.csv", "gold.parquet"])
def test_statuses_by_key_and_by_name_are_read(write_gold, name):
    path = write_gold(
        name, study_id=["007", "b", "c"], emphysema=[P, U, None], **{"Pleural effusion": [N, " absent", A]}
    )
    gold = read_gold(path, CT_RATE, BY_ID)
    assert gold.statuses.index.tolist() == ["007", "b", "c"]
    assert gold.statuses["emphysema"].tolist() == [P, U, None]
    assert gold.statuses["pleural_effusion"].tolist() == [N, A, A]
    assert list(gold.statuses) == ["emphysema", "pleural_effusion"]
    assert (gold.sha256s, gold.is_mapped, gold.is_model_output) == (None, False, False)
    assert gold.patient_ids.tolist() == ["007", "b", "c"]


@pytest.mark.parametrize("name", ["gold.csv", "gold.parquet"])
@pytest.mark.parametrize("kind", [int, float, bool])
def test_numbers_are_present_and_absent(write_gold, name, kind):
    if name == "gold.csv" and kind is bool:
        kind = str  # as a CSV holds them
        values = ["1", "0"]
    else:
        values = [kind(1), kind(0)]
    gold = read_gold(write_gold(name, study_id=["a", "b"], emphysema=values), PAIR, BY_ID)
    assert gold.statuses["emphysema"].tolist() == [P, A]


def test_an_empty_cell_among_numbers_is_unknown(write_gold):
    gold = read_gold(write_gold(study_id=["a", "b", "c"], emphysema=[1, np.nan, 0]), PAIR, BY_ID)
    assert gold.statuses["emphysema"].tolist() == [P, None, A]


def test_texts_are_hashed_and_group_the_rows(write_gold):
    path = write_gold(
        study_id=["a", "b", "c"], report=["x  y", "x y", "NA"], mrn=["p", "q", "p"], emphysema=[1, 0, 0]
    )
    gold = read_gold(path, PAIR, GoldColumns("study_id", text="report"))
    assert gold.sha256s == (report_sha256("x y"), report_sha256("x y"), report_sha256("NA"))
    assert gold.patient_ids.tolist() == list(gold.sha256s)
    gold = read_gold(path, PAIR, GoldColumns("study_id", text="report", patient="mrn"))
    assert gold.patient_ids.tolist() == ["p", "q", "p"]


def test_minus_one_is_refused_with_what_to_write(write_gold):
    path = write_gold(study_id=["a", "b"], emphysema=[1, -1])
    with pytest.raises(
        ValueError,
        match=r"got -1, which .*: 1, first '-1' in the column of emphysema at row 1\. Replace it",
    ):
        read_gold(path, PAIR, BY_ID)


@pytest.mark.parametrize("name", ["gold.csv", "gold.parquet"])
def test_the_mask_of_targets_is_unknown(write_gold, name):
    path = write_gold(name, study_id=["a", "b", "c"], emphysema=[1.0, -100.0, 0.0])
    assert read_gold(path, PAIR, BY_ID).statuses["emphysema"].tolist() == [P, None, A]
    path = write_gold(name, study_id=["a", "b"], emphysema=["-100", "1"], pleural_effusion=["0", " -100.0"])
    assert read_gold(path, PAIR, BY_ID).statuses.to_numpy().tolist() == [[None, A], [P, None]]
    path = write_gold(name, study_id=["a", "b"], emphysema=["-100", P])
    assert read_gold(path, PAIR, BY_ID).statuses["emphysema"].tolist() == [None, P]


def test_other_cells_are_refused_with_their_place(write_gold):
    path = write_gold(study_id=["a", "b"], pleural_effusion=["0", "1"], emphysema=["1", "0.5"])
    with pytest.raises(
        ValueError, match=r"0 and 1, got other cells: 1, first '0.5' in the column of emph.*row 1"
    ):
        read_gold(path, PAIR, BY_ID)
    path = write_gold(study_id=["a", "b"], emphysema=["yes", "no"], **{"Pleural effusion": [0, 2]})
    with pytest.raises(
        ValueError, match="got other cells: 3, first 'yes' in the column of emphysema at row 0"
    ):
        read_gold(path, PAIR, BY_ID)
    with pytest.raises(
        ValueError, match="got other cells beside them: 1, first '1' in the column of emphysema"
    ):
        read_gold(write_gold(study_id=["a", "b"], emphysema=[P, "1"]), PAIR, BY_ID)


@pytest.mark.parametrize("cell", ["Normal chest.", "Miller", "4711234", "MRN12345", "2021-03-04"])
@pytest.mark.parametrize("other", ["1", P])
def test_no_cell_that_may_identify_somebody_is_shown(write_gold, cell, other):
    path = write_gold(study_id=["a", "b"], emphysema=[other, cell])
    with pytest.raises(ValueError, match="first text in the column of emphysema at row 1") as caught:
        read_gold(path, PAIR, BY_ID)
    assert cell not in str(caught.value)


def test_tables_that_cannot_be_used_are_refused(write_gold, tmp_path):
    (tmp_path / "gold.xlsx").touch()
    with pytest.raises(ValueError, match=r"must end in .csv or .parquet, got '.xlsx'"):
        read_gold(tmp_path / "gold.xlsx", PAIR, BY_ID)
    with pytest.raises(ValueError, match=r"gold gold.csv must have rows, got none"):
        read_gold(write_gold(study_id=[], emphysema=[]), PAIR, BY_ID)
    path = write_gold(study_id=["a", "a", ""], emphysema=[1, 1, 1], mrn=["p", "", "q"])
    with pytest.raises(ValueError, match=r"^gold gold.csv must .* none named \['report'\] among 3 columns"):
        read_gold(path, PAIR, GoldColumns("study_id", text="report"))
    with pytest.raises(ValueError, match="study_id must be unique and not empty, got 2 cells"):
        read_gold(path, PAIR, BY_ID)
    path = write_gold(study_id=["a", "b"], emphysema=[1, 1], mrn=["p", ""])
    with pytest.raises(ValueError, match="mrn must name the patient of every row, got 1 empty"):
        read_gold(path, PAIR, GoldColumns("study_id", patient="mrn"))
    with pytest.raises(ValueError, match=r"one by key and one by name for \['emphysema'\]"):
        read_gold(write_gold(study_id=["a"], emphysema=[1], Emphysema=[1]), PAIR, BY_ID)
    with pytest.raises(
        ValueError, match=r"a column per finding, got none among 2 columns\. .* has emphysema, pleural"
    ):
        read_gold(write_gold(study_id=["a"], goiter=[1]), PAIR, BY_ID)


def test_the_released_labels_of_ct_rate_are_recognized(write_gold):
    released = read_gold(write_gold("valid_predicted_labels.csv", study_id=["a"], emphysema=[1]), PAIR, BY_ID)
    assert released.is_model_output
    columns = {name: [0] for name in CT_RATE.names}
    layout = read_gold(write_gold(VolumeName=["v"], **columns), CT_RATE, GoldColumns("VolumeName"))
    assert layout.is_model_output
    assert not read_gold(
        write_gold(AccessionNo=["v"], **columns), CT_RATE, GoldColumns("AccessionNo")
    ).is_model_output


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("RadBERT", True),
        ("CT-RATE released labels", True),
        ("train_predicted_labels", True),
        ("manual labels", False),
        ("manual labels that RadBERT was trained on", False),
        ("two radiologists", False),
    ],
)
def test_words_that_name_a_model(source, expected):
    assert is_model_output(source) is expected


REPORTS = [
    ("a", "Emphysema.", (P, A), (0.9, 0.1)),
    ("b", "No emphysema.", (A, N), (0.2, None)),
    ("c", "Effusion?", None, None),
    ("d", "Nothing.", (A, A), (0.0, 0.0)),
]


def test_gold_finds_silver_by_text_duplicates_included(write_gold, tmp_path):
    gold = read_gold(
        write_gold(
            id=["z1", "z2", "z3", "z4"],
            text=["No  emphysema.", "Emphysema.", "No emphysema.", "Never labeled."],
            emphysema=[0, 1, 1, 0],
        ),
        PAIR,
        GoldColumns("id", text="text"),
    )
    pairs = pair_labels(make_table(tmp_path, REPORTS), gold)
    assert pairs.silver.index.tolist() == pairs.gold.index.tolist() == ["z1", "z2", "z3"]
    assert pairs.silver["emphysema"].tolist() == [A, P, A]
    assert pairs.gold["emphysema"].tolist() == [A, P, P]
    assert pairs.scores["emphysema"].tolist() == [0.2, 0.9, 0.2]
    assert pairs.missing == ("z4",)
    assert pairs.left_out == {"pleural_effusion": "gold has no column"}
    assert pairs.patient_ids[0] == pairs.patient_ids[2] != pairs.patient_ids[1]


def test_gold_finds_silver_by_id_and_failures_keep_their_reason(write_gold, tmp_path):
    path = write_gold(study_id=["x", "c", "b"], emphysema=[A, P, A], pleural_effusion=[A, U, N])
    pairs = pair_labels(make_table(tmp_path, REPORTS), read_gold(path, PAIR, BY_ID))
    assert pairs.silver.loc["c"].tolist() == [None, None]
    assert pairs.silver.loc["b"].tolist() == [A, N]
    assert pairs.failed == {"c": "timeout"}
    assert pairs.missing == ("x",)
    assert np.isnan(pairs.scores.loc["b", "pleural_effusion"])
    assert pairs.patient_ids.tolist() == ["c", "b"]
    assert pairs.left_out == {}


def test_gold_of_other_reports_or_findings_is_refused(write_gold, tmp_path):
    table = make_table(tmp_path, REPORTS)
    with pytest.raises(ValueError, match="got none of 2 by report_id"):
        pair_labels(table, read_gold(write_gold(study_id=["x", "y"], emphysema=[0, 1]), PAIR, BY_ID))
    gold = read_gold(write_gold(study_id=["a"], **{"Hiatal hernia": [1]}), CT_RATE, BY_ID)
    with pytest.raises(ValueError, match="got hiatal_hernia and emphysema, pleural_effusion"):
        pair_labels(table, gold)


AORTA, CORONARY = "arterial_wall_calcification", "coronary_artery_wall_calcification"
TO_RAD = load_mapping("ct_rate_18_to_rad_chestct_16")


def calcified(tmp_path):
    statuses = [P if key == CORONARY else A for key in CT_RATE.keys]
    scores = [0.8 if key == CORONARY else 0.1 for key in CT_RATE.keys]
    return make_table(tmp_path, [("a", "Coronary plaque.", statuses, scores)], CT_RATE.keys)


def test_labels_are_mapped_to_the_set_of_gold(write_gold, tmp_path):
    gold = read_gold(write_gold(study_id=["a"], medical_material=[0], **{AORTA: [1]}), TO_RAD, BY_ID)
    assert not gold.is_mapped
    pairs = pair_labels(calcified(tmp_path), gold, TO_RAD)
    assert pairs.silver.loc["a"].to_dict() == {"medical_material": A, AORTA: P}
    assert pairs.scores.loc["a", AORTA] == 0.8


def test_gold_in_the_source_set_is_mapped_as_well(write_gold, tmp_path):
    # Taken as it is, its aorta would be compared with aorta or coronaries, under the same name.
    columns = {name: [1 if name.startswith("Coronary") else 0] for name in CT_RATE.names}
    gold = read_gold(write_gold(study_id=["a"], **columns), TO_RAD, BY_ID)
    assert gold.is_mapped
    assert gold.statuses.loc["a", AORTA] == P
    pairs = pair_labels(calcified(tmp_path), gold, TO_RAD)
    assert tuple(pairs.gold) == TO_RAD.target.keys
    assert (pairs.silver.loc["a"] == pairs.gold.loc["a"]).all()


def test_gold_with_a_part_of_the_source_set_is_refused(write_gold):
    path = write_gold(study_id=["a"], **{AORTA: [1], CORONARY: [0]})
    with pytest.raises(KeyError, match=r"got none named .*'medical_material'"):
        read_gold(path, TO_RAD, BY_ID)


def test_an_unmapped_finding_is_left_out_with_the_reason(write_gold, tmp_path):
    mapping = load_mapping("ct_rate_18_to_chexpert_14")
    path = write_gold(study_id=["a"], Cardiomegaly=[0], Fracture=[1])
    pairs = pair_labels(calcified(tmp_path), read_gold(path, mapping, BY_ID), mapping)
    assert list(pairs.silver) == ["cardiomegaly"]
    assert pairs.left_out["fracture"] == "unmapped: not labeled"
    assert pairs.left_out["support_devices"] == "gold has no column"


def test_one_more_field_in_every_row_does_not_shift_the_columns(tmp_path):
    path = tmp_path / "gold.csv"
    path.write_text("study_id,emphysema,pleural_effusion\na,1,0,1\nb,0,1,0\n")
    with pytest.raises(ValueError, match=r"gold.csv must have .* its header, 3, got 4 in row 0"):
        read_gold(path, PAIR, BY_ID)


def test_a_table_without_a_header_does_not_show_its_first_row(tmp_path):
    path = tmp_path / "gold.csv"
    path.write_text("a,Mr. Jones has a mass.\nb,Normal.\n")
    for columns in (BY_ID, GoldColumns("a")):
        with pytest.raises(ValueError, match="among 2 columns") as caught:
            read_gold(path, PAIR, columns)
        assert "Jones" not in str(caught.value)
