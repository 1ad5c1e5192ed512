from io import BytesIO

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

pytest.importorskip("matplotlib")

from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs, EmbeddedVolumes
from radtower.evaluation.reports.pictures.retrieval_pictures import (
    PictureOptions,
    image_pictures,
    pair_pictures,
)
from radtower.evaluation.retrieval.images.image_labels import FindingLabels
from radtower.evaluation.retrieval.images.image_retrieval import ImageSearch


def pairs(num=8, *, shift=0):
    """Scan i lies on the report of row i + shift."""
    studies = pd.DataFrame(
        {
            "volume_id": [f"secret-v{i}" for i in range(num)],
            "study_id": [f"secret-s{i}" for i in range(num)],
            "report": [f"secret text {i // 2}" for i in range(num)],
        }
    )
    vectors = torch.eye(num)
    return EmbeddedPairs(vectors.roll(shift, 0), vectors, studies, "cosine", {})


SMALL = PictureOptions(num_queries=1, k=1)
FINDINGS = {"nodule": np.array([1, 0, -100, 1, 0, 0, 1, 0]), "nothing_known": np.full(8, -100)}


def scan(volume_id):
    return np.full((3, 5, 5), float(volume_id.removeprefix("secret-v")))


def test_a_gallery_and_a_map_with_captions_that_say_what_they_are():
    gallery, places = pair_pictures(pairs(), scan, FINDINGS, PictureOptions(num_queries=3, k=2))
    assert gallery.caption.file == "gallery-report-to-scan.png"
    assert gallery.caption.alt == "3 queries with 2 scans each; a right one is among them for 3 of 3."
    assert gallery.caption.caption.startswith(
        "3 queries, drawn at random (seed 0), and the 2 scans that the model puts first. "
        "Blue: counts as right (exact row; similarity: cosine)."
    )
    assert "Findings: columns of the manifest." in gallery.caption.caption
    assert places.caption.file == "map-of-scans-and-reports.png"
    assert places.caption.caption.startswith(
        "n = 8 scans with their reports. Principal components. Each kind"
    )
    assert "Colored by finding" in places.caption.caption
    for picture in (gallery, places):
        with Image.open(BytesIO(picture.png)) as image:
            assert min(image.size) > 200
        assert "secret" not in picture.caption.model_dump_json()
        assert b"secret" not in picture.png


def test_what_counts_as_right_is_the_protocol():
    # Every report finds its neighbor's scan, which has the same report for every second row.
    found = {
        protocol: pair_pictures(pairs(4, shift=1), scan, {}, PictureOptions(k=1, protocol=protocol))
        for protocol in ("exact-row", "report")
    }
    assert "for 0 of 4" in found["exact-row"][0].caption.alt
    assert "for 2 of 4" in found["report"][0].caption.alt
    assert "Blue: counts as right (same report; " in found["report"][0].caption.caption
    assert "Colored by" not in found["report"][1].caption.caption


def test_findings_that_nobody_knows_are_not_absent():
    drawn = [
        pair_pictures(pairs(4), scan, findings, SMALL)[0].png
        for findings in ({}, {"nodule": np.full(4, -100)}, {"nodule": np.zeros(4)})
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_small_sets_have_as_many_answers_as_there_are():
    gallery, _ = pair_pictures(pairs(3), scan, {})
    assert gallery.caption.alt.startswith("3 queries with 3 scans each")


@pytest.mark.slow
def test_pictures_repeat():
    first, again = (pair_pictures(pairs(), scan, FINDINGS, SMALL) for _ in range(2))
    assert first == again


def test_too_few_pairs_are_refused_before_a_scan_is_read():
    with pytest.raises(ValueError, match="N of at least 3"):
        pair_pictures(pairs(2), lambda volume_id: pytest.fail("read"), {})


@pytest.mark.slow
def test_many_findings_are_told_to_be_cut():
    findings = {f"f{i}": np.zeros(8) for i in range(13)}
    assert "The first 12 of 13 findings." in pair_pictures(pairs(), scan, findings, SMALL)[1].caption.caption


def test_scans_find_scans_of_other_studies():
    # Two volumes of each of four studies lie on each other; study 1 asks, 0, 2 and 3 are searched.
    studies = pd.DataFrame(
        {
            "volume_id": [f"secret-v{i}" for i in range(8)],
            "study_id": [f"secret-s{i // 2}" for i in range(8)],
        }
    )
    vectors = torch.nn.functional.normalize(torch.tensor([[1.0, i // 2] for i in range(8)]))
    volumes = EmbeddedVolumes(vectors, studies, "cosine", {})
    search = ImageSearch(images=vectors, frame=studies, queries=np.array([2]), gallery=np.arange(8))
    labels = np.array([[1], [1], [1], [1], [0], [0], [1], [-100]])
    known = FindingLabels(labels, "one finding", "manual")
    read = []

    def load(volume_id):
        read.append(volume_id)
        return scan(volume_id)

    gallery, places = image_pictures(
        volumes, search, known, load, {"nodule": labels[:, 0]}, PictureOptions(k=3, label_source="manual")
    )
    # Not its own study (3), nor what has no label (7); of studies 2, 3 and 0 the nearest come first.
    assert read == ["secret-v2", "secret-v4", "secret-v5", "secret-v6"]
    assert gallery.caption.file == "gallery-scan-to-scan.png"
    assert gallery.caption.alt == "1 queries with 3 scans each; a right one is among them for 1 of 1."
    assert (
        "counts as right (shares a finding, of another study; similarity: cosine)" in gallery.caption.caption
    )
    assert places.caption.caption.startswith("n = 8 scans. Principal components. A map")
    only_wrong, _ = image_pictures(volumes, search, known, scan, {}, PictureOptions(k=2))
    assert only_wrong.caption.alt.endswith("for 0 of 1.")
    assert "Findings:" not in only_wrong.caption.caption
