import hashlib

import numpy as np
import pandas as pd
import pytest

from radtower.data.manifest import read_manifest
from radtower.data.targets import TargetPolicy
from radtower.labeling.findings import load_findings

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
    message = f"got 2 of 3 missing, first at rows 0 .study {digest('001')}., 2 "
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
