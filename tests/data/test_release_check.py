import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from safetensors.numpy import save_file

from radtower.data.release_check import RECORD_FILE, refuse_links, refuse_private_content, search_folder


class Cities:
    def find(self, text):
        return ["city"] * text.count("Ulm")


@pytest.fixture
def folder(tmp_path):
    """A folder as it may leave."""
    folder = tmp_path / "release"
    (folder / "data").mkdir(parents=True)
    (folder / "README.md").write_text(
        "---\nlicense: mit\n---\n# A model\nSee https://arxiv.org/abs/1711.11248.\n"
    )
    (folder / "config.json").write_text('{"model_type": "ct3d_vision", "version": "5.23.0"}')
    (folder / "tokenizer.json").write_text('{"vocab": {"Dr. Miller": 0}}')
    (folder / "code.py").write_text('"""Do it."""\nname: str = "x"\n')
    pd.DataFrame({"id": ["a_1"], "x": [1]}).to_parquet(folder / "data" / "a.parquet")
    save_file({"x": np.zeros(3)}, folder / "model.safetensors", metadata={"format": "pt"})
    Image.new("L", (4, 4)).save(folder / "a.png")
    return folder


def test_a_clean_folder_passes_and_gets_no_record(folder):
    report = refuse_private_content(folder)
    assert (report.num_matches, report.kinds_by_id) == (0, {})
    assert report.num_texts > 10
    (folder / RECORD_FILE).write_text("{}")
    refuse_private_content(folder, allowed_reason="There is nothing.")
    assert not (folder / RECORD_FILE).exists()


def test_findings_are_named_by_place_and_kind_and_never_quoted(folder):
    (folder / "README.md").write_text("By Dr. Miller.\n")
    (folder / "data" / "b.csv").write_text("note\nclear\nSeen 2021-03-12\n")
    (folder / "data" / "c.jsonl").write_text('{"a": "clear"}\n{"a": "MRN: 12345"}\n')
    Image.new("L", (4, 4)).save(folder / "b.png", exif=_exif("Jane Doe"))
    with pytest.raises(ValueError, match=r"got 1 date, 1 record number, 1 name, 1 file metadata: ") as error:
        refuse_private_content(folder)
    message = str(error.value)
    assert (
        "README.md (name); b.png (file metadata); data/b.csv row 2 (date); data/c.jsonl line 2 (record"
        in message
    )
    for secret in ("Miller", "2021", "12345", "Jane"):
        assert secret not in message
    assert not (folder / RECORD_FILE).exists()


def _exif(text):
    exif = Image.Exif()
    exif[0x010E] = text
    return exif


def test_many_places_are_counted_beyond_the_first_five(folder):
    (folder / "b.csv").write_text("note\n" + "Dr. Miller\n" * 8)
    with pytest.raises(ValueError, match=r"b\.csv row 5 \(name\) and 3 more\. Remove it"):
        refuse_private_content(folder)


def test_allowed_findings_are_recorded_with_their_reason(folder):
    (folder / "README.md").write_text("Ask Dr. Miller or Dr. Lee.\n")
    report = refuse_private_content(folder, allowed_reason="Both are authors.")
    assert report.counts == {"name": 2}
    assert json.loads((folder / RECORD_FILE).read_text()) == {
        "allowed_because": "Both are authors.",
        "counts": {"name": 2},
    }
    again = refuse_private_content(folder, allowed_reason="Both are authors.")
    assert again == report


@pytest.mark.parametrize(
    ("reason", "match"),
    [
        (" ", r"must say why they are harmless, got ' '"),
        ("Dr. Miller said so on 2021-03-12.", r"must hold none itself, got 1 date, 1 name\. It is published"),
    ],
)
def test_a_reason_must_be_one_and_be_clean(folder, reason, match):
    with pytest.raises(ValueError, match=match):
        refuse_private_content(folder, allowed_reason=reason)


def test_a_path_that_tells_is_not_repeated(folder):
    (folder / "data" / "z_20210312.txt").write_text("By Dr. Miller.")
    report = search_folder(folder)
    place = next(iter(report.kinds_by_id))
    assert report.kinds_by_id == {place: ("date", "name")}
    assert place.startswith("file ")


@pytest.mark.parametrize("reason", [None, "It is public."])
@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.dcm", b"", r"no DICOM file may leave the machine, got data/a\.dcm: its header"),
        ("slice", bytes(128) + b"DICM", r"no DICOM file may leave the machine, got data/slice"),
        ("a.pt", b"", r"no pickle may leave the machine, got data/a\.pt: it runs code"),
        ("pytorch_model.bin", b"", r"no pickle may leave the machine, got data/pytorch_model\.bin"),
    ],
)
def test_some_files_never_leave(folder, reason, name, content, match):
    (folder / "data" / name).write_bytes(content)
    with pytest.raises(ValueError, match=match):
        refuse_private_content(folder, allowed_reason=reason)


def test_a_link_must_stay_in_the_folder(folder, tmp_path):
    (folder / "inside").symlink_to("config.json")
    assert search_folder(folder).num_matches == 0
    refuse_links(folder)
    (tmp_path / "secret.txt").write_text("clear")
    for target in ("../../secret.txt", tmp_path):
        (folder / "data" / "link").symlink_to(target)
        with pytest.raises(ValueError, match=r"every link must stay in the folder, got data/link"):
            refuse_private_content(folder, allowed_reason="It is public.")
        with pytest.raises(ValueError, match=r"every link must stay in the folder, got data/link"):
            refuse_links(folder)
        (folder / "data" / "link").unlink()


@pytest.mark.parametrize(
    ("name", "content"),
    [("a.zip", b"PK\xff\xfe"), ("a.png", b"x"), ("b.nii.gz", b"x"), ("c", b"\xff\xfe\xfd")],
)
def test_what_cannot_be_looked_into_is_a_finding(folder, name, content):
    (folder / name).write_bytes(content)
    assert search_folder(folder).kinds_by_id == {name: ("unreadable file",)}


def test_pictures_inside_a_table_are_a_finding(folder):
    pd.DataFrame({"id": ["a"], "picture": [b"Jane Doe"]}).to_parquet(folder / "b.parquet")
    assert search_folder(folder).kinds_by_id == {"b.parquet": ("unreadable file",)}


def test_days_of_an_evaluation_are_none_of_a_patient(folder):
    (folder / ".eval_results").mkdir()
    (folder / ".eval_results" / "a.yaml").write_text('- date: "2026-01-31"\n  note: Dr. Lee\n')
    (folder / "b.yaml").write_text("date: 2026-01-31\n")
    report = search_folder(folder)
    assert report.kinds_by_id == {".eval_results/a.yaml": ("name",), "b.yaml": ("date",)}
    assert report.counts == {"date": 1, "name": 1}


def test_texts_that_were_judged_before_do_not_count_again(folder):
    (folder / "data" / "b.csv").write_text("Dr. Miller\n")
    assert search_folder(folder, checked=["data/b.csv"]).num_matches == 0
    assert search_folder(folder, checked=["b.csv"]).num_matches == 1
    Image.new("L", (4, 4)).save(folder / "b.png", exif=_exif("Doe"))
    assert search_folder(folder, checked=["b.png", "data/b.csv"]).counts == {"file metadata": 1}


def test_the_same_text_counts_once_at_a_place(folder):
    (folder / "b.yaml").write_text("- Dr. Miller\n- Dr. Miller\n- Dr. Lee\n")
    (folder / "b.csv").write_text("Dr. Miller,Dr. Miller\nDr. Miller,x\n")
    report = search_folder(folder)
    assert report.counts == {"name": 4}
    assert list(report.kinds_by_id) == ["b.csv row 0", "b.csv row 1", "b.yaml"]


def test_an_analyzer_searches_names_texts_and_the_reason(folder):
    (folder / "Ulm.md").write_text("Ulm Ulm")
    assert search_folder(folder, analyzers=[Cities()]).counts == {"city": 3}
    with pytest.raises(ValueError, match=r"must hold none itself, got 1 city"):
        refuse_private_content(folder, allowed_reason="Ulm is large.", analyzers=[Cities()])


def test_a_missing_folder_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"folder must be a folder, got .*nothing"):
        refuse_private_content(tmp_path / "nothing")
