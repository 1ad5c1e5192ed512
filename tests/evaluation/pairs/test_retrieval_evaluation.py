"""Both tasks on one tower: every scan is read once, and each task has its volumes."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from radtower.data.manifest import Manifest
from radtower.evaluation.pairs.embedded_pairs import EmbeddedVolumes, add_reports, embed_pairs, embed_volumes
from radtower.evaluation.pairs.retrieval_evaluation import (
    RetrievalData,
    check_image_data,
    embed_for_retrieval,
    image_search,
    measure_retrieval_tasks,
)
from radtower.evaluation.pairs.retrieval_plan import plan_retrieval
from radtower.evaluation.retrieval.images.image_labels import FindingLabels
from radtower.evaluation.retrieval.ranks import RetrievalOptions

FRAME = pd.DataFrame(
    {
        "volume_id": list("stuvwxyz"),
        "study_id": list("stuvwxyz"),
        "patient_id": list("stuvwxyz"),
        "report": [
            "no nodule",
            "nodule",
            " ",
            "effusion",
            "no effusion",
            "",
            "small nodule",
            "nodule present",
        ],
        "split": ["test"] * 5 + ["train"] * 3,
    }
)
SCANS = {
    name: torch.rand(1, 8, 8, 8, generator=torch.Generator().manual_seed(n))
    for n, name in enumerate(FRAME["volume_id"])
}
QUICK = RetrievalOptions(num_resamples=20)


def read_labels(volumes: Manifest) -> FindingLabels:
    values = np.array([[ord(name) % 2, ord(name) % 3 == 0] for name in volumes.frame["volume_id"]])
    return FindingLabels(values.astype(np.float32), "two", "drawn")


DATA = RetrievalData(
    manifest=Manifest(FRAME), split="test", galleries=("test", "train"), name="d", read_labels=read_labels
)


def test_both_tasks_read_every_scan_once(tiny_medclip):
    read = []

    def load(volume_id: str) -> torch.Tensor:
        read.append(volume_id)
        if volume_id == "t":
            raise OSError("damaged")
        return SCANS[volume_id]

    plan = plan_retrieval(["pairs", "images"], [], [], has_reports=True)
    vectors = embed_for_retrieval(tiny_medclip, plan, DATA, load)
    assert read == list("stuvwxyz")
    assert vectors.pairs.studies["volume_id"].tolist() == list("svw")
    assert vectors.volumes.studies["volume_id"].tolist() == list("suvwxyz")
    assert vectors.failures == {"t": "damaged", "u": "the report is empty"}
    expected = embed_pairs(tiny_medclip, FRAME.iloc[[0, 3, 4]], SCANS.__getitem__)
    torch.testing.assert_close(vectors.pairs.images, expected.images)
    torch.testing.assert_close(vectors.pairs.reports, expected.reports)
    measures = measure_retrieval_tasks(plan, DATA, vectors, QUICK)
    assert {m.direction for m in measures.metrics} == {"image_to_report", "report_to_image", "image_to_image"}
    assert measures.not_measured[0] == "recall@5: only 3 pairs"
    images = [m for m in measures.metrics if m.direction == "image_to_image"]
    assert {m.n for m in images if m.metric.startswith("precision")} == {4}
    assert "gallery of 7 images" in images[0].note
    assert {m.label_source for m in measures.metrics} == {"drawn", "pairing of scan and report"}


def checked(protocols: list[str], ks: list[int], **changes: object) -> None:
    plan = plan_retrieval(["images"], protocols, ks, has_reports=True)
    check_image_data(plan, replace(DATA, **changes))


def test_what_there_are_too_few_images_for_is_refused_without_vectors():
    checked([], [7])
    with pytest.raises(ValueError, match=r"ks must be at most 7, .+, got \[8, 9\]"):
        checked([], [1, 8, 9])
    checked(["legacy-ct-clip"], [8], galleries=())  # has numbers of its own
    with pytest.raises(ValueError, match=r"ks must be at most 4, .+, got \[5\]"):
        checked([], [5], galleries=())
    alone = Manifest(FRAME[:1])
    with pytest.raises(ValueError, match=r"ks must be at most 0, .+, got \[1\]"):
        checked([], [], manifest=alone)
    with pytest.raises(ValueError, match=r"in at least two studies, got fewer of 1\. Choose"):
        checked(["legacy-ct-clip"], [], manifest=alone, galleries=())


def test_labels_of_images_are_read_before_vectors_are_made_and_not_for_pairs():
    def refuse(volumes: Manifest) -> FindingLabels:
        raise ValueError("bad label of s")

    with pytest.raises(ValueError, match="bad label of s"):
        checked([], [], read_labels=refuse)
    check_image_data(plan_retrieval(["pairs"], [], [], has_reports=True), replace(DATA, read_labels=refuse))


def test_images_alone_need_no_reports(tiny_medclip):
    plan = plan_retrieval(["images"], [], [1], has_reports=True)
    vectors = embed_for_retrieval(tiny_medclip, plan, replace(DATA, galleries=()), SCANS.__getitem__)
    assert vectors.pairs is None
    assert not vectors.failures
    measures = measure_retrieval_tasks(plan, replace(DATA, galleries=()), vectors, QUICK)
    assert "gallery of 5 images" in measures.metrics[0].note
    assert {m.direction for m in measures.metrics} == {"image_to_image"}


def test_images_are_compared_as_the_model_does(tiny_medclip):
    tiny_medclip.config.similarity = "legacy_dot"
    frame = FRAME.iloc[:3].reset_index(drop=True)
    plan = plan_retrieval(["images"], [], [1], has_reports=True)
    data = replace(DATA, manifest=Manifest(frame), galleries=())
    vectors = embed_for_retrieval(tiny_medclip, plan, data, SCANS.__getitem__)
    # By product, everybody is closest to the longest vector.
    images = torch.tensor([[1.0, 0.1], [1.0, 0], [9.0, 9.0]])
    long = replace(vectors, volumes=replace(vectors.volumes, images=images))
    measures = measure_retrieval_tasks(plan, data, long, QUICK)
    rows = measures.query_rows
    gained = rows[rows["metric"] == "mean_jaccard_at_1"].set_index("query_id")["value"]
    assert vectors.volumes.similarity == "dot"
    # s and u have the first finding, t has none, u has the second one, too.
    assert gained.to_dict() == {"s": 0.5, "t": 0.0, "u": 0.5}


def test_a_volume_without_a_report_is_no_pair(tiny_medclip):
    volumes = embed_volumes(tiny_medclip, FRAME.iloc[:3], SCANS.__getitem__)
    pairs = add_reports(tiny_medclip, volumes)
    assert pairs.failures == {"u": "the report is empty"}
    torch.testing.assert_close(pairs.reports, tiny_medclip.encode_text(["no nodule", "nodule"]))
    only = EmbeddedVolumes(volumes.images[2:], FRAME.iloc[[2]].reset_index(drop=True), "cosine", {"t": "bad"})
    with pytest.raises(ValueError, match=r"got 2 of 2 without\. The first says: bad"):
        add_reports(tiny_medclip, only)


def test_a_gallery_of_which_nothing_can_be_read_is_refused(tiny_medclip):
    volumes = embed_volumes(tiny_medclip, FRAME.iloc[:3], SCANS.__getitem__)
    with pytest.raises(ValueError, match="must have readable scans, got 3 and 0"):
        image_search(volumes, "test", ["train"])
