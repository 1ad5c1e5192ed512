"""Pictures of phantoms are shown on the card; those of patients stay where they are."""

import json

import pytest

from radtower.evaluation.reports.figures import Caption, Picture, write_pictures
from radtower.evaluation.results import read_results
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
