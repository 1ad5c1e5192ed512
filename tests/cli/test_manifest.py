import numpy as np
import pandas as pd
import pytest

from radtower.data.manifest import read_manifest
from radtower.labeling.findings import load_findings


def _cells(out, first):
    line = next(line for line in out.splitlines() if first in line)
    return line.replace("\u2502", " ").split()


def test_ct_rate_becomes_a_manifest_with_a_validation_split(radtower, ct_rate):
    output = ct_rate / "manifest.csv"
    done = radtower("manifest", "ct-rate", ct_rate, "-o", output, "--validation", 0.4, "--seed", 1)
    assert (done.code, done.err) == (0, "")
    assert "1 volumes excluded (no_chest_train.txt, no_chest_valid.txt); 0 not downloaded" in done.out
    assert _cells(done.out, "test ") == ["test", "2", "1", "1"]
    assert _cells(done.out, "validation ")[3] == "1"
    frame = read_manifest(output, check_images=True).frame
    assert frame.groupby("split")["patient_id"].nunique().to_dict() == {
        "test": 1,
        "train": 2,
        "validation": 1,
    }


def test_version_and_further_exclusions_are_flags(radtower, tmp_path, write_ct_rate):
    write_ct_rate(write_ct_rate(tmp_path, ""), "_fixed")
    (tmp_path / "more.txt").write_text("valid_1_a_1\n")
    (tmp_path / "yet_more.txt").write_text("valid_1_a_2\n")
    flags = ("--version", "v1", "--exclude", tmp_path / "more.txt", "--exclude", tmp_path / "yet_more.txt")
    done = radtower("manifest", "ct-rate", tmp_path, "-o", tmp_path / "m.parquet", *flags)
    assert done.code == 0
    assert "3 volumes excluded" in done.out
    frame = read_manifest(tmp_path / "m.parquet").frame
    assert set(frame["split"]) == {"train"}
    assert frame["rescale_intercept"].unique().tolist() == ["-8192"]


def test_a_tree_that_is_not_there_is_exit_code_2(radtower, tmp_path):
    done = radtower("manifest", "ct-rate", tmp_path, "-o", tmp_path / "m.csv")
    assert done.code == 2
    assert done.err.startswith("error: root must hold dataset/train_fixed")


def test_rad_chestct_becomes_a_manifest(radtower, tmp_path):
    np.savez(tmp_path / "trn00001.npz", ct=np.zeros((2, 2, 2), np.int16))
    summary = "NoteAcc_DEID,MRN_DEID,Set_Assigned,Subset_Assigned\ntrn00001,mrn1,imgtrain,imgtrain\n"
    (tmp_path / "Summary_3630.csv").write_text(summary)
    columns = {f"{name}*lung": [1] for name in load_findings("rad_chestct_columns").names}
    table = pd.DataFrame({"NoteAcc_DEID": ["trn00001"], **columns})
    table.to_csv(tmp_path / "imgtrain_Abnormality_and_Location_Labels.csv", index=False)
    done = radtower("manifest", "rad-chestct", tmp_path, "-o", tmp_path / "out" / "m.csv")
    assert done.code == 0
    assert "0 volumes excluded (no exclusion list); 0 not downloaded" in done.out
    assert _cells(done.out, "train ") == ["train", "1", "1", "1"]


def test_a_manifest_that_would_leak_does_not_replace_a_good_one(radtower, tmp_path):
    summary = "NoteAcc_DEID,MRN_DEID,Set_Assigned,Subset_Assigned\n"
    for name, subset in (("trn00001", "imgtrain"), ("tst00001", "imgtest")):
        np.savez(tmp_path / f"{name}.npz", ct=np.zeros((2, 2, 2), np.int16))
        summary += f"{name},mrn1,{subset},{subset}\n"
        columns = {f"{finding}*lung": [1] for finding in load_findings("rad_chestct_columns").names}
        table = pd.DataFrame({"NoteAcc_DEID": [name], **columns})
        table.to_csv(tmp_path / f"{subset}_Abnormality_and_Location_Labels.csv", index=False)
    (tmp_path / "Summary_3630.csv").write_text(summary)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "m.csv").write_text("the good one")
    done = radtower("manifest", "rad-chestct", tmp_path, "-o", tmp_path / "out" / "m.csv")
    assert done.code == 2
    assert "a patient must be in one split, got 1 patients in several" in done.err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["m.csv"]
    assert (tmp_path / "out" / "m.csv").read_text() == "the good one"


def test_a_validation_split_is_held_out_of_any_manifest(radtower, manifest, tmp_path):
    done = radtower("manifest", "split", manifest, "-o", tmp_path / "three.csv", "--validation", 0.3)
    assert done.code == 0
    assert _cells(done.out, "validation ") == ["validation", "1", "1", "1"]
    again = radtower(
        "manifest", "split", tmp_path / "three.csv", "-o", tmp_path / "x.csv", "--validation", 0.3
    )
    assert again.code == 2
    assert "no validation split yet, got 1 rows" in again.err
    assert not (tmp_path / "x.csv").exists()


@pytest.mark.parametrize("fraction", ["0", "1.5"])
def test_a_fraction_that_is_none_is_exit_code_2(radtower, manifest, tmp_path, fraction):
    done = radtower("manifest", "split", manifest, "-o", tmp_path / "x.csv", "--validation", fraction)
    assert done.code == 2
    assert f"got {float(fraction)!r}" in done.err


def test_medpix_becomes_a_manifest_and_names_images_that_are_not_there(radtower, tmp_path):
    case = '{"image": "%s.png", "uid": "%s", "split": "%s", "caption": "c %s", "title": "t"}\n'
    rows = [("a", "A", "train"), ("b", "B", "dev"), ("gone", "B", "dev")]
    (tmp_path / "cases.jsonl").write_text("".join(case % (*row, row[0]) for row in rows))
    (tmp_path / "images").mkdir()
    for name in ("a.png", "b.png"):
        (tmp_path / "images" / name).touch()
    output = tmp_path / "manifest.csv"
    done = radtower("manifest", "medpix", tmp_path / "cases.jsonl", "-o", output)
    assert (done.code, done.err) == (0, "")
    assert "0 images without text left out; 1 not there\n  not there: gone.png" in done.out
    assert _cells(done.out, "validation ") == ["validation", "1", "1", "1"]
    assert "images/a.png" in output.read_text()
    assert read_manifest(output, check_images=True).frame["report"].tolist() == ["c a", "c b"]
    both = ("--text", "title", "--text", "caption", "--images", tmp_path / "images")
    assert radtower("manifest", "medpix", tmp_path / "cases.jsonl", "-o", output, *both).code == 0
    assert read_manifest(output).frame["report"].tolist() == ["t\n\nc a", "t\n\nc b"]
