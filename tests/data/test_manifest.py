import hashlib

import numpy as np
import pandas as pd
import pytest

from radtower.data.manifest import Manifest, hold_out_validation, read_manifest, write_manifest
from radtower.data.targets import TargetPolicy
from radtower.labeling.findings import load_findings
from radtower.processing.scan_reference import ScanReference

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])


def make_frame(**columns: list) -> pd.DataFrame:
    base = {
        "study_id": ["001", "s2", "s3"],
        "patient_id": ["NA", "p1", "p2"],
        "image_path": ["scans/a.nii.gz", "b", "c"],
        "report": ["One.", "Two.", ""],
        "split": ["train", "validation", "train"],
    }
    return pd.DataFrame({**base, **columns})


def read(tmp_path, frame: pd.DataFrame, suffix: str = ".csv", **options: bool):
    path = tmp_path / f"manifest{suffix}"
    frame.to_csv(path, index=False) if suffix != ".parquet" else frame.to_parquet(path)
    return read_manifest(path, **options)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_ids_stay_text_and_paths_are_resolved(tmp_path, suffix):
    manifest = read(tmp_path, make_frame(), suffix)
    assert len(manifest) == 3
    assert manifest.frame["study_id"].tolist() == ["001", "s2", "s3"]
    assert manifest.frame["patient_id"].tolist() == ["NA", "p1", "p2"]
    assert manifest.frame["image_path"][0] == str(tmp_path / "scans/a.nii.gz")
    assert manifest.frame["report"].tolist() == ["One.", "Two.", ""]


def test_reports_are_needed_unless_the_caller_says_so(tmp_path):
    frame = make_frame().drop(columns="report")
    with pytest.raises(ValueError, match=r"image_path, split and report, got no \['report \(or findings"):
        read(tmp_path, frame)
    assert read(tmp_path, frame, needs_reports=False).frame["report"].tolist() == ["", "", ""]
    assert read(tmp_path, make_frame(), needs_reports=False).frame["report"][0] == "One."
    with pytest.raises(ValueError, match=r"image_path, split, got no \['split'\]\."):
        read(tmp_path, frame.drop(columns="split"), needs_reports=False)


def test_an_absolute_path_stays(tmp_path):
    image = str(tmp_path / "elsewhere" / "x.nii.gz")
    manifest = read(tmp_path, make_frame(image_path=[image, "b", "c"]))
    assert manifest.frame["image_path"][0] == image


def test_split_keeps_the_studies_of_one_split(tmp_path):
    train = read(tmp_path, make_frame()).split("train")
    assert train.frame["study_id"].tolist() == ["001", "s3"]
    assert train.frame.index.tolist() == [0, 1]


def test_an_empty_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match="one of train, validation in this manifest, got 'test'"):
        read(tmp_path, make_frame()).split("test")


def test_the_report_is_findings_and_impression(tmp_path):
    frame = make_frame(findings=["Lungs clear. ", "Not given.", "F3"], impression=["Normal.", "I2", None])
    manifest = read(tmp_path, frame.drop(columns="report"))
    assert manifest.frame["report"].tolist() == ["Lungs clear. Normal.", "I2", "F3"]
    only = read(tmp_path, frame.drop(columns=["report", "findings"]))
    assert only.frame["report"].tolist() == ["Normal.", "I2", ""]


def test_a_report_column_wins_over_sections(tmp_path):
    manifest = read(tmp_path, make_frame(findings=["x", "y", "z"]))
    assert manifest.frame["report"].tolist() == ["One.", "Two.", ""]


@pytest.mark.parametrize("column", ["study_id", "patient_id", "image_path", "split", "report"])
def test_a_missing_column_is_refused(tmp_path, column):
    with pytest.raises(ValueError, match=rf"got no \['{column}"):
        read(tmp_path, make_frame().drop(columns=column))


@pytest.mark.parametrize("column", ["study_id", "patient_id", "image_path", "split"])
@pytest.mark.parametrize("empty", [None, " "])
def test_an_empty_cell_is_refused(tmp_path, column, empty):
    values = make_frame()[column].tolist()
    with pytest.raises(ValueError, match=f"{column} must be filled .* got 1 empty, first at row 1"):
        read(tmp_path, make_frame(**{column: [values[0], empty, values[2]]}))


def test_an_empty_manifest_is_refused(tmp_path):
    with pytest.raises(ValueError, match="got 0 rows"):
        read(tmp_path, make_frame().iloc[:0])


def test_another_file_type_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"got '\.tsv'"):
        read(tmp_path, make_frame(), ".tsv")


def test_an_unknown_split_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"train, validation, test, got \['valid'\]"):
        read(tmp_path, make_frame(split=["train", "valid", "train"]))


def test_a_repeated_study_is_refused_without_its_id(tmp_path):
    with pytest.raises(ValueError, match=f"got 1 repeats, first at row 2 .study {digest('001')}") as caught:
        read(tmp_path, make_frame(study_id=["001", "s2", "001"]))
    assert "001)" not in str(caught.value)


def test_a_patient_in_two_splits_is_refused_without_its_id(tmp_path):
    frame = make_frame(patient_id=["secret", " secret", "p2"])
    with pytest.raises(
        ValueError, match=f"got 1 patients in several, first patient {digest('secret')}"
    ) as caught:
        read(tmp_path, frame)
    assert "secret" not in str(caught.value)


def test_missing_images_are_listed_by_position(tmp_path):
    (tmp_path / "b").mkdir()
    assert read(tmp_path, make_frame()).missing_images() == [0, 2]
    message = f"got 2 of 3 missing, first at rows 0 .volume {digest('001')}., 2 "
    with pytest.raises(FileNotFoundError, match=message):
        read(tmp_path, make_frame(), check_images=True)
    (tmp_path / "scans").mkdir()
    (tmp_path / "scans/a.nii.gz").touch()
    (tmp_path / "c").touch()
    assert len(read(tmp_path, make_frame(), check_images=True)) == 3


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_truth_takes_numbers_by_key_or_by_name(tmp_path, suffix):
    frame = make_frame(**{"emphysema": [1, 0, np.nan], "Pleural effusion": [0, 1, 1]})
    truth = read(tmp_path, frame, suffix).truth(FINDINGS)
    assert truth.tolist() == [[0.0, 1.0], [1.0, 0.0], [1.0, -100.0]]


def test_truth_takes_status_values_by_the_policy(tmp_path):
    frame = make_frame(emphysema=["present", "uncertain", None], pleural_effusion=["absent"] * 3)
    manifest = read(tmp_path, frame)
    assert manifest.truth(FINDINGS).tolist() == [[0.0, 1.0], [0.0, -100.0], [0.0, -100.0]]
    assert manifest.truth(FINDINGS, TargetPolicy(uncertain=0.5))[1].tolist() == [0.0, 0.5]


def test_truth_refuses_minus_one(tmp_path):
    manifest = read(tmp_path, make_frame(emphysema=[1, -1, 0], pleural_effusion=[0, 0, 0]))
    with pytest.raises(ValueError, match=r"got \[-1\.0\]"):
        manifest.truth(FINDINGS)


def test_truth_refuses_other_text(tmp_path):
    manifest = read(tmp_path, make_frame(emphysema=["yes", "no", None], pleural_effusion=[0, 0, 0]))
    with pytest.raises(ValueError, match="got 2 other cells"):
        manifest.truth(FINDINGS)


def test_truth_refuses_a_finding_without_a_column(tmp_path):
    with pytest.raises(KeyError, match=r"got none for \['emphysema'\]"):
        read(tmp_path, make_frame(pleural_effusion=[0, 0, 0])).truth(FINDINGS)


def test_truth_refuses_two_columns_of_one_finding(tmp_path):
    name = FINDINGS.findings[0].name
    frame = make_frame(**{finding.key: [0, 0, 0] for finding in FINDINGS.findings}, **{name: [1, 1, 1]})
    with pytest.raises(ValueError, match=rf"one by key and one by name for \['{FINDINGS.findings[0].key}'\]"):
        read(tmp_path, frame).truth(FINDINGS)


def make_volumes(**columns: list) -> pd.DataFrame:
    """Two reconstructions of study s1, one of s2."""
    base = {
        "volume_id": ["v1", "v2", "v3"],
        "study_id": ["s1", "s1", "s2"],
        "patient_id": ["p1", "p1", "p2"],
        "image_path": ["a.nii.gz", "b.nii.gz", "c"],
        "report": ["One.", "One.", "Two."],
        "split": ["train", "train", "test"],
    }
    return pd.DataFrame({**base, **columns})


def test_a_study_may_have_several_volumes(tmp_path):
    frame = read(tmp_path, make_volumes(volume_id=["v1", " v2 ", "003"])).frame
    assert frame["volume_id"].tolist() == ["v1", "v2", "003"]
    assert frame["study_id"].tolist() == ["s1", "s1", "s2"]


def test_without_volume_ids_a_study_is_its_volume(tmp_path):
    frame = read(tmp_path, make_frame()).frame
    assert frame["volume_id"].tolist() == ["001", "s2", "s3"]


def test_a_repeated_volume_is_refused_without_its_id(tmp_path):
    with pytest.raises(
        ValueError, match=f"volume_id must be .* row 2 .volume {digest('v1x')}.. Give"
    ) as caught:
        read(tmp_path, make_volumes(volume_id=["v1x", "v2", "v1x"]))
    assert "v1x" not in str(caught.value)


def test_an_empty_volume_id_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"volume_id must be filled .* first at row 1"):
        read(tmp_path, make_volumes(volume_id=["v1", None, "v3"]))


@pytest.mark.parametrize("column", ["patient_id", "report"])
def test_volumes_of_a_study_that_disagree_are_refused(tmp_path, column):
    with pytest.raises(ValueError, match=f"{column} must agree within a study, got 1 .* {digest('s1')}"):
        read(tmp_path, make_volumes(**{column: ["x", "y", "z"]}))


def test_scans_carry_what_only_the_manifest_knows(tmp_path):
    frame = make_volumes(
        series_uid=["1.2.3", None, " "],
        rescale_slope=[1.5, None, None],
        rescale_intercept=[-8192, None, None],
        spacing_z_mm=[None, 3.0, None],
        spacing_y_mm=[None, 0.5, None],
        spacing_x_mm=[None, "0.75", None],
    )
    assert read(tmp_path, frame).scans() == {
        "v1": ScanReference(str(tmp_path / "a.nii.gz"), "1.2.3", rescale=(1.5, -8192.0)),
        "v2": ScanReference(str(tmp_path / "b.nii.gz"), spacing_mm=(3.0, 0.5, 0.75)),
        "v3": ScanReference(str(tmp_path / "c")),
    }


def test_scans_of_a_plain_manifest_are_paths(tmp_path):
    scans = read(tmp_path, make_frame()).split("validation").scans()
    assert scans == {"s2": ScanReference(str(tmp_path / "b"))}


@pytest.mark.parametrize(
    ("columns", "got"),
    [
        ({"rescale_slope": [1, None, 1], "rescale_intercept": [0, -8192, 0]}, r"\['', '-8192'\] at row 1"),
        ({"rescale_slope": [1, 0, 1], "rescale_intercept": [0, 0, 0]}, r"\['0', '0'\] at row 1"),
        ({"rescale_slope": [1, 1, 1], "rescale_intercept": [0, "inf", 0]}, r"\['1', 'inf'\] at row 1"),
        ({"rescale_slope": [1, 1, 1]}, r"\['1', ''\] at row 0"),
        (
            {"spacing_z_mm": [1, 1, 1], "spacing_y_mm": [1, 1, 1], "spacing_x_mm": [1, 1, -2]},
            r"\['1', '1', '-2'\] at row 2",
        ),
        ({"spacing_z_mm": ["0.7 mm", 1, 1]}, r"\['0.7 mm', '', ''\] at row 0"),
        ({"spacing_z_mm": ["Large mass.", 1, 1]}, r"\['text', '', ''\] at row 0"),
    ],
)
def test_a_rescale_or_spacing_that_is_none_is_refused(tmp_path, columns, got):
    with pytest.raises(ValueError, match=f"must be numbers .*above 0. or all empty, got {got}"):
        read(tmp_path, make_volumes(**columns)).scans()


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_written_manifest_moves_with_its_images(tmp_path, suffix):
    outside = str(tmp_path.parent / "elsewhere.nii.gz")
    manifest = read(tmp_path, make_volumes(image_path=["scans/a.nii.gz", "b", outside], lung=[0.5, 1, None]))
    write_manifest(manifest, tmp_path / f"written{suffix}")
    (tmp_path / "new").mkdir()
    moved = (tmp_path / f"written{suffix}").rename(tmp_path / "new" / f"moved{suffix}")
    again = read_manifest(moved).frame
    images = [str(tmp_path / "new" / name) for name in ("scans/a.nii.gz", "b")]
    assert again["image_path"].tolist() == [*images, outside]
    rest = [name for name in manifest.frame if name != "image_path"]
    pd.testing.assert_frame_equal(again[rest], manifest.frame[rest])


def test_a_manifest_is_written_beside_or_away_from_its_images(tmp_path):
    manifest = read(tmp_path, make_frame())
    write_manifest(manifest, tmp_path / "far" / "away.csv")
    assert read_manifest(tmp_path / "far" / "away.csv").frame.equals(manifest.frame)
    with pytest.raises(ValueError, match=r"got '\.tsv'"):
        write_manifest(manifest, tmp_path / "table.tsv")


def many_patients(order: int = 1) -> Manifest:
    """Forty volumes of twenty training patients, and one test patient."""
    rows = [(f"v{n}", f"s{n // 2}", f"p{n // 2}", f"{n}", "r", "train") for n in range(40)]
    rows.append(("t", "t", "t", "t", "r", "test"))
    columns = ["volume_id", "study_id", "patient_id", "image_path", "report", "split"]
    return Manifest(pd.DataFrame(rows[::order], columns=columns))


def test_validation_is_held_out_by_patient_and_by_seed():
    held = hold_out_validation(many_patients(), 0.2, seed=3).frame
    assert held.groupby("patient_id")["split"].nunique().max() == 1
    patients = held.groupby("split")["patient_id"].nunique()
    assert patients.to_dict() == {"train": 16, "validation": 4, "test": 1}
    chosen = set(held[held["split"] == "validation"]["volume_id"])
    assert len(chosen) == 8
    backward = hold_out_validation(many_patients(-1), 0.2, seed=3).frame
    assert set(backward[backward["split"] == "validation"]["volume_id"]) == chosen
    other = hold_out_validation(many_patients(), 0.2, seed=4).frame
    assert set(other[other["split"] == "validation"]["volume_id"]) != chosen
    assert set(many_patients().frame["split"]) == {"train", "test"}


def _held_out(num_patients):
    ids = [f"train_{number}" for number in range(num_patients)]
    rows = dict.fromkeys(("volume_id", "study_id", "patient_id", "image_path"), ids)
    held = hold_out_validation(
        Manifest(pd.DataFrame({**rows, "report": "", "split": "train"})), 0.05, 0
    ).frame
    return set(held["patient_id"][held["split"] == "validation"])


def test_a_patient_keeps_its_side_when_others_are_added():
    few, one_more, many = (_held_out(number) for number in (1000, 1001, 20000))
    assert few == one_more & {f"train_{number}" for number in range(1000)}
    assert few == many & {f"train_{number}" for number in range(1000)}
    assert 30 <= len(few) <= 70  # 50 on average; the standard deviation is 7
    assert 900 <= len(many) <= 1100


@pytest.mark.parametrize(("fraction", "num_held_out"), [(0.001, 1), (0.999, 19)])
def test_at_least_one_patient_is_held_out_and_one_stays(fraction, num_held_out):
    held = hold_out_validation(many_patients(), fraction, seed=0).frame
    assert held[held["split"] == "validation"]["patient_id"].nunique() == num_held_out


@pytest.mark.parametrize("fraction", [0.0, 1.0, -0.5, float("nan")])
def test_a_fraction_outside_zero_to_one_is_refused(fraction):
    with pytest.raises(ValueError, match=f"fraction must be in .0, 1., got {fraction!r}"):
        hold_out_validation(many_patients(), fraction, seed=0)


def test_a_second_validation_split_is_refused():
    with pytest.raises(ValueError, match="no validation split yet, got 6 rows"):
        hold_out_validation(hold_out_validation(many_patients(), 0.2, seed=0), 0.2, seed=0)


def test_a_single_patient_cannot_be_shared_out():
    few = Manifest(many_patients().frame.iloc[[0, 1, 40]].reset_index(drop=True))
    with pytest.raises(ValueError, match="at least two patients, got 1"):
        hold_out_validation(few, 0.5, seed=0)
