import json

import pytest

from radtower.data.layouts.medpix import read_medpix

CASES = [
    {
        "image": "a_1.png",
        "uid": "A",
        "split": "train",
        "caption": "A mass.",
        "findings": "Big.",
        "title": "T",
    },
    {
        "image": "a_2.png",
        "uid": "A",
        "split": "train",
        "caption": "No mass.",
        "findings": "Big.",
        "title": "T",
    },
    {
        "image": "b.png",
        "uid": "B",
        "split": "dev",
        "caption": " Nodule. ",
        "findings": "Nodule.",
        "title": None,
    },
    {"image": "c.png", "uid": "C", "split": "test", "caption": "", "findings": "", "title": ""},
    {"image": "d.png", "uid": "D", "split": "test", "caption": "Gone.", "findings": "", "title": ""},
]


@pytest.fixture
def write_cases(tmp_path):
    def write(cases=CASES, images=("a_1.png", "a_2.png", "b.png", "c.png")):
        (tmp_path / "images").mkdir(exist_ok=True)
        for name in images:
            (tmp_path / "images" / name).touch()
        (tmp_path / "cases.jsonl").write_text("".join(json.dumps(case) + "\n" for case in cases))
        return tmp_path / "cases.jsonl"

    return write


def test_every_image_is_a_study_and_its_case_the_patient(write_cases, tmp_path):
    found = read_medpix(write_cases())
    frame = found.manifest.frame
    assert frame["study_id"].tolist() == ["a_1", "a_2", "b"]
    assert frame["patient_id"].tolist() == ["A", "A", "B"]
    assert frame["split"].tolist() == ["train", "train", "validation"]
    assert frame["report"].tolist() == ["A mass.", "No mass.", "Nodule."]
    assert frame["image_path"][2] == str(tmp_path / "images" / "b.png")
    assert (found.num_excluded, found.num_not_downloaded, found.not_downloaded) == (1, 1, ("d.png",))


def test_texts_are_joined_in_the_order_asked_for_and_not_repeated(write_cases):
    frame = read_medpix(write_cases(), ["title", "caption", "findings"]).manifest.frame
    assert frame["report"].tolist() == ["T\n\nA mass.\n\nBig.", "T\n\nNo mass.\n\nBig.", "Nodule."]


def test_the_images_may_be_elsewhere(write_cases, tmp_path):
    path = write_cases(images=())
    (tmp_path / "b.png").touch()
    found = read_medpix(path, images=tmp_path)
    assert found.manifest.frame["image_path"].tolist() == [str(tmp_path / "b.png")]
    assert found.num_not_downloaded == 4


@pytest.mark.parametrize("texts", [[], ["caption", "age"]])
def test_refuses_unknown_texts(write_cases, texts):
    with pytest.raises(ValueError, match=r"texts must be some of caption, .*, got \["):
        read_medpix(write_cases(), texts)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"split": "dev2"}, r"split must be one of .* got 'dev2' in row 1 \(case 559aead08264\)"),
        ({"uid": " "}, "uid must be a filled text, got nothing in row 1"),
        ({"uid": None}, "uid must be a filled text, got nothing in row 1"),
        ({"image": 7}, "image must be a filled text, got a int in row 1"),
        ({"caption": ["A mass."]}, "caption must be a filled text, got a list in row 1"),
        ({"image": "../a_2.png"}, r"image must be a file name, got a path in row 1 \(case 559aead08264\)"),
        ({"image": "a_1.png"}, "image must be unique, got 1 repeats, first in row 1 of cases.jsonl"),
        ({"caption": "\ud800"}, r"caption must be valid Unicode, got the lone surrogate U\+D800"),
    ],
)
def test_refuses_a_broken_file(write_cases, change, match):
    with pytest.raises(ValueError, match=match):
        read_medpix(write_cases([CASES[0], CASES[1] | change]))


def test_refuses_a_set_of_nothing(write_cases):
    with pytest.raises(FileNotFoundError, match=r"images of cases\.jsonl, got none of 5 in .*images"):
        read_medpix(write_cases(images=()))
    with pytest.raises(ValueError, match="filled for some images, got none with diagnosis, history"):
        read_medpix(write_cases(), ["diagnosis", "history"])
