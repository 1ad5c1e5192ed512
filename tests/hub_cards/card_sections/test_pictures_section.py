"""Pictures of phantoms and of numbers are shown on the card; those of patients stay where they are."""

import json

import pytest

from radtower.evaluation.reports.figures import Caption, Picture, write_pictures
from radtower.evaluation.reports.report import ReportOptions, write_report
from radtower.evaluation.results import read_results
from radtower.hub_cards.card_sections.pictures_section import CardPicture
from radtower.hub_cards.export import export_model

PNG = b"\x89PNG\r\n\x1a\n and so on"


@pytest.fixture
def draw(make_results):
    def draw(phantom):
        path = make_results(phantom)
        caption = Caption(
            file="gallery-1.png", title="Gallery", caption="Two scans.", alt="Scans side by side"
        )
        write_pictures([Picture(caption, PNG)], read_results(path), path)
        return path

    return draw


def test_pictures_of_phantoms_are_on_the_card(make_model_folder, draw, tmp_path):
    trained, results = make_model_folder("ct3d_bare"), draw(True)
    folder = export_model(trained, tmp_path / "out", results)
    assert (folder / "card_images" / "gallery-1.png").read_bytes() == PNG
    card = (folder / "README.md").read_text()
    assert (
        "\n## Pictures\n\n![Scans side by side](card_images/gallery-1.png)\n\nGallery. Two scans.\n" in card
    )
    assert "card_images/gallery-1.png" in (folder / "checksums.sha256").read_text()
    export_model(trained, folder, results)
    (folder / "card_images" / "notes.txt").write_text("by hand")
    with pytest.raises(FileExistsError, match="which is neither"):
        export_model(trained, folder, results)


def test_pictures_of_patients_are_not(make_model_folder, draw, tmp_path):
    folder = export_model(make_model_folder("ct3d_bare"), tmp_path / "out", draw(False))
    assert not (folder / "card_images").exists()
    assert "## Pictures" not in (folder / "README.md").read_text()


def test_pictures_of_other_results_are_refused(make_model_folder, draw, tmp_path):
    results = draw(True)
    content = json.loads(results.read_text())
    results.write_text(json.dumps(content | {"created": "2027-02-03T00:00:00Z"}))
    with pytest.raises(ValueError, match=r"results\.figures must be of .* got 2026-01-01 .* 2027-02-03"):
        export_model(make_model_folder("ct3d_bare"), tmp_path / "out", results)
    assert not (tmp_path / "out").exists()


@pytest.fixture
def report(make_results, tmp_path):
    """Patients' results with their report."""
    results = make_results(False)
    write_report([results], tmp_path / "report", ReportOptions(num_resamples=20))
    return results, tmp_path / "report"


def test_curves_and_intervals_of_a_report_are_on_the_card(make_model_folder, report, tmp_path):
    results, drawn = report
    extra = CardPicture("own.png", "Own", "By hand.", "a [b] \\\n\nc", PNG)
    folder = export_model(
        make_model_folder("ct3d_bare"), tmp_path / "out", results, report=drawn, pictures=[extra]
    )
    told = json.loads((drawn / "pictures.json").read_text())["figures"]
    assert [figure["file"] for figure in told] == ["forest-1.png"]
    images = sorted(path.name for path in (folder / "card_images").iterdir())
    assert images == ["forest-1.png", "own.png"]
    assert (folder / "card_images" / "forest-1.png").read_bytes() == (drawn / "forest-1.png").read_bytes()
    card = (folder / "README.md").read_text()
    assert f"![{told[0]['alt']}](card_images/forest-1.png)\n\nIntervals per finding. " in card
    assert told[0]["caption"] in card
    assert "![a \\[b\\] \\\\ c](card_images/own.png)\n\nOwn. By hand.\n" in card


def test_a_report_of_other_results_is_refused(make_model_folder, report, tmp_path):
    trained, (results, drawn) = make_model_folder("ct3d_bare"), report
    content = json.loads(results.read_text())
    for change in ({"created": "2027-02-03T00:00:00Z"}, {"model_id": "another"}):
        results.write_text(json.dumps(content | change))
        with pytest.raises(ValueError, match=r"must be of the results of the card, .* got \['m'\] in "):
            export_model(trained, tmp_path / "out", results, report=drawn)
    with pytest.raises(ValueError, match=r"must come with its results, got none. Name them with --results"):
        export_model(trained, tmp_path / "out", report=drawn)
    (drawn / "pictures.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"must hold pictures.json, got .*report\. Run radtower"):
        export_model(trained, tmp_path / "out", results, report=drawn)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["../up.png", "a.svg", ".png", "a b.png"])
def test_a_name_that_is_more_than_a_file_name_is_refused(name):
    with pytest.raises(ValueError, match=r"must be named as in roc-1.png, got '.*'\. Draw"):
        CardPicture(name, "t", "c", "a", PNG)


def test_what_is_no_picture_is_refused(make_model_folder, tmp_path):
    with pytest.raises(ValueError, match=r"roc-1.png must be a PNG, got something else"):
        CardPicture("roc-1.png", "t", "c", "a", b"GIF89a")
    twice = [CardPicture("roc-1.png", "t", "c", "a", PNG)] * 2
    with pytest.raises(ValueError, match=r"names of their own, got \['roc-1.png', 'roc-1.png'\]"):
        export_model(make_model_folder("ct3d_bare"), tmp_path / "out", pictures=twice)
