import json
from datetime import timedelta
from io import BytesIO

import pytest
from PIL import Image

from radtower.evaluation.reports.figures import (
    Caption,
    Picture,
    read_pictures,
    write_pictures,
)
from radtower.evaluation.results import figures_folder


def png():
    buffer = BytesIO()
    Image.new("RGB", (3, 2), "red").save(buffer, "PNG")
    return buffer.getvalue()


def picture(file="map.png", content=None):
    caption = Caption(file=file, title="A map", caption="What it shows, n = 3.", alt="Points.")
    return Picture(caption, png() if content is None else content)


@pytest.fixture
def results(make_results, make_metric):
    return make_results(make_metric())


def test_pictures_come_back_in_their_order(results, tmp_path):
    path = tmp_path / "new" / "results.json"
    written = [picture("z.png"), picture("a.png")]
    folder = write_pictures(written, results, path)
    assert folder == figures_folder(path) == tmp_path / "new" / "results.figures"
    assert read_pictures(results, path) == written
    assert sorted(p.name for p in path.parent.iterdir()) == ["results.figures"]


def test_pictures_of_an_earlier_run_are_replaced(results, tmp_path):
    path = tmp_path / "results.json"
    write_pictures([picture("old.png")], results, path)
    write_pictures([picture("new.png")], results, path)
    assert sorted(p.name for p in figures_folder(path).iterdir()) == ["captions.json", "new.png"]


def test_there_may_be_none(results, tmp_path):
    assert read_pictures(results, tmp_path / "results.json") == []


def test_pictures_of_another_run_are_refused(results, tmp_path):
    path = tmp_path / "results.json"
    write_pictures([picture()], results, path)
    other = results.model_copy(update={"created": results.created + timedelta(days=1)})
    with pytest.raises(
        ValueError, match=r"of the results beside it, got 'tower' of 2026-01-01 .* 2026-01-02"
    ):
        read_pictures(other, path)
    with pytest.raises(ValueError, match="where they say 'b'"):
        read_pictures(results.model_copy(update={"model_id": "b"}), path)


def test_each_picture_needs_its_caption_and_each_caption_its_picture(results, tmp_path):
    path = tmp_path / "results.json"
    folder = write_pictures([picture()], results, path)
    (folder / "stray.png").write_bytes(png())
    with pytest.raises(ValueError, match=r"a caption for each picture, got stray.png in one of them only"):
        read_pictures(results, path)
    (folder / "stray.png").unlink()
    (folder / "map.png").unlink()
    with pytest.raises(ValueError, match=r"got map.png in one of them only"):
        read_pictures(results, path)
    (folder / "captions.json").unlink()
    with pytest.raises(ValueError, match=r"must hold captions.json, got none"):
        read_pictures(results, path)


@pytest.mark.parametrize(
    "content", ["no json", '{"model_id": "tower"}', '{"figures": [{"file": "../a.png"}]}']
)
def test_captions_that_say_too_little_are_refused(results, tmp_path, content):
    path = tmp_path / "results.json"
    folder = write_pictures([picture()], results, path)
    (folder / "captions.json").write_text(content)
    with pytest.raises(ValueError, match="must name model_id, created and figures with file, title"):
        read_pictures(results, path)


@pytest.mark.parametrize("file", ["../map.png", "a/map.png", ".png", "map.jpg", "a b.png"])
def test_a_picture_lies_in_its_folder(file):
    with pytest.raises(ValueError, match="file"):
        picture(file)


def test_what_is_no_png_is_refused(results, tmp_path):
    path = tmp_path / "results.json"
    with pytest.raises(ValueError, match=r"map.png must be a PNG, got 5 bytes of something else"):
        write_pictures([picture(content=b"<svg>")], results, path)
    folder = write_pictures([picture()], results, path)
    (folder / "map.png").write_bytes(b"<svg>")
    with pytest.raises(ValueError, match=r"map.png must be a PNG"):
        read_pictures(results, path)


def test_two_pictures_of_one_name_are_refused(results, tmp_path):
    with pytest.raises(ValueError, match=r"names of their own, got \['map.png', 'map.png'\]"):
        write_pictures([picture(), picture()], results, tmp_path / "results.json")


def test_a_folder_with_other_files_is_not_replaced(results, tmp_path):
    folder = tmp_path / "results.figures"
    folder.mkdir()
    (folder / "thesis.docx").write_text("years of work")
    with pytest.raises(ValueError, match=r"must hold pictures only, got thesis.docx"):
        write_pictures([picture()], results, tmp_path / "results.json")
    assert json.dumps((folder / "thesis.docx").read_text()) == '"years of work"'
