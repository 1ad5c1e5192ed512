"""Image to image: who is excluded, what is known, what is left out, and the numbers themselves."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch

from radtower.data.finding_truth import FindingTruth
from radtower.evaluation.retrieval.images.image_labels import (
    ConceptLabels,
    FindingLabels,
    IRMALabels,
    column_labels,
    finding_labels,
)
from radtower.evaluation.retrieval.images.image_retrieval import (
    ImageSearch,
    differing_exclusions,
    find_images,
    measure_images,
    measure_legacy_ct_clip,
)
from radtower.evaluation.retrieval.images.irma import LOWER_IS_BETTER, IRMAError
from radtower.evaluation.retrieval.images.legacy_ct_clip import (
    AS_PRINTED,
    WITHOUT_STUDY,
    ct_clip_map_bounds,
    legacy_ct_clip_map,
)
from radtower.evaluation.retrieval.ranks import RetrievalOptions
from radtower.evaluation.rows import QueryRows

QUICK = RetrievalOptions(num_resamples=20)
# Eight images; the first two are of one study, the third is of its patient.
FRAME = pd.DataFrame(
    {
        "volume_id": list("abcdefgh"),
        "study_id": list("11345678"),
        "patient_id": list("pppqrstu"),
        "concepts": ["C1;C2", " C1 ; C2;M", "C2", "", "C3;", "M", "C1", None],
        "irma_code": ["1121-127-700-500"] * 3 + ["1121-127-700-400"] * 4 + [""],
    }
)
LABELS = np.array([[1, 0], [1, 0], [1, 1], [0, 0], [0, 0], [0, 1], [-100, 1], [1, 1]], dtype=np.float32)
FINDINGS = FindingLabels(LABELS, "two findings", "drawn")


def search(images: torch.Tensor | None = None, frame: pd.DataFrame = FRAME) -> ImageSearch:
    if images is None:
        images = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
    return ImageSearch(images=images, frame=frame, queries=np.arange(8), gallery=np.arange(8))


def found(measures) -> dict:
    return {(m.protocol, m.metric): m for m in measures.metrics}


def test_by_hand() -> None:
    # On an arc whose steps grow: the nearest is always the one before, and b for a.
    angle = 0.01 * 1.5 ** torch.arange(8.0)
    line = torch.stack([torch.cos(angle), torch.sin(angle)], dim=1)
    labels = replace(FINDINGS, labels=np.where(LABELS == -100, 0, LABELS))
    measures = measure_images(
        search(line), labels, "eight", exclusions=["self-excluded", "study-excluded"], ks=(1,), options=QUICK
    )
    results = found(measures)
    shares = results["self excluded; shares a finding", "map_at_1"]
    # e finds d: both are without a finding.
    rows = measures.query_rows
    values = rows[(rows["protocol"] == shares.protocol) & (rows["metric"] == "map_at_1")]
    assert dict(zip(values["query_id"], values["value"], strict=True)) == dict(
        zip("abcdefgh", [1, 1, 1, 0, 1, 0, 1, 1], strict=True)
    )
    assert (shares.n, shares.value, shares.direction) == (8, pytest.approx(6 / 8), "image_to_image")
    assert (shares.class_set, shares.label_source, shares.dataset) == ("two findings", "drawn", "eight")
    assert "2 queries have no finding: for them, others without are right" in shares.note
    jaccard = "graded by Jaccard index of the findings"
    # a: 1, b: 1, c: 1/2, d: 0, e: 1, f: 0, g: 1, h: 1/2
    assert results[f"self excluded; {jaccard}", "mean_jaccard_at_1"].value == pytest.approx(5 / 8)
    # Without the study, a and b ask c: 1/2 each.
    assert results[f"study excluded; {jaccard}", "mean_jaccard_at_1"].value == pytest.approx(4 / 8)
    same = results["study excluded; same findings", "map_at_1"]
    assert (same.n, same.value) == (6, pytest.approx(2 / 6))
    assert "2 queries left out: the gallery has nothing right for them" in same.note
    QueryRows(measures.query_rows)


def test_images_whose_labels_are_unknown_neither_ask_nor_are_searched() -> None:
    measures = measure_images(search(), FINDINGS, "d", ks=(6, 7), options=QUICK)
    item = measures.metrics[0]
    assert item.n == 7
    assert "gallery of 7 images" in item.note
    assert "labels of 1 more queries and 1 more gallery images are not known" in item.note
    assert "g" not in set(measures.query_rows["query_id"])
    assert measures.not_measured == (
        "image to image at 7, self excluded: a query has fewer images",
        "image to image at 6, study excluded: a query has fewer images",
        "image to image at 7, study excluded: a query has fewer images",
    )


def test_the_key_of_a_query_is_excluded() -> None:
    same = search(torch.ones(8, 2))
    assert find_images(same, "self-excluded", 1).rows[:3, 0].tolist() == [1, 0, 0]
    assert find_images(same, "study-excluded", 1).rows[:3, 0].tolist() == [2, 2, 0]
    assert find_images(same, "patient-excluded", 1).rows[:3, 0].tolist() == [3, 3, 3]
    assert same.num_left("patient-excluded").tolist() == [5, 5, 5, 7, 7, 7, 7, 7]
    assert differing_exclusions(same) == ("self-excluded", "study-excluded")
    single = FRAME.assign(study_id=FRAME["volume_id"])
    assert differing_exclusions(search(frame=single)) == ("self-excluded",)


def test_another_gallery_is_searched() -> None:
    images = torch.tensor([[1.0, 0.0]] * 4 + [[0.0, 1.0]] * 4)
    apart = ImageSearch(images=images, frame=FRAME, queries=np.arange(4), gallery=np.arange(5, 8))
    labels = replace(FINDINGS, labels=np.where(LABELS == -100, 0, LABELS))
    item = found(measure_images(apart, labels, "d", ks=(3,), options=QUICK))[
        "self excluded; shares a finding", "precision_at_3"
    ]
    # a, b: h of f, g, h; c: all; d: none
    assert (item.n, item.value) == (4, pytest.approx((1 / 3 + 1 / 3 + 1 + 0) / 4))
    assert "gallery of 3 images" in item.note


def test_findings_that_have_no_labels_are_left_out() -> None:
    truth = FindingTruth(
        keys=("a", "b", "c"),
        labels=np.array([[1, -100, 0], [0, -100, 0]], dtype=np.float32),
        left_out={"b": "there is no column of labels"},
        unlabeled={},
        source="a table",
    )
    labels = finding_labels(truth, "three")
    assert labels.labels.tolist() == [[1, 0], [0, 0]]
    assert (labels.class_set, labels.label_source) == ("three, 2 findings", "a table")
    assert finding_labels(replace(truth, left_out={}), "three").class_set == "three"
    assert FINDINGS.notes(np.array([3, 4, 5])) == (
        "2 queries have no finding: for them, others without are right",
    )


def test_concepts_of_a_column() -> None:
    labels = column_labels(FRAME, "concepts", ignored=["M"])
    assert isinstance(labels, ConceptLabels)
    assert [sorted(concepts) for concepts in labels.concepts] == [
        ["C1", "C2"],
        ["C1", "C2"],
        ["C2"],
        [],
        ["C3"],
        [],
        ["C1"],
        [],
    ]
    assert labels.is_known.tolist() == [True, True, True, False, True, False, True, False]
    assert labels.class_set == "3 concepts, 1 ignored"
    assert labels.label_source == "column concepts of the manifest"
    measures = measure_images(search(torch.ones(8, 2)), labels, "d", ks=(2,), options=QUICK)
    results = found(measures)
    # All tie, and the worst come first: e and one that is right for a and b, two wrong ones for c, e and g.
    half = results["self excluded; shares half of the concepts", "precision_at_2"]
    assert (half.n, half.value) == (5, pytest.approx((0.5 + 0.5) / 5))
    jaccard = results["self excluded; graded by Jaccard index of the concepts", "mean_jaccard_at_2"]
    assert jaccard.value == pytest.approx((0.25 + 0.25) / 5)


def test_irma_codes_of_a_column() -> None:
    labels = column_labels(FRAME, "irma", label_source="IRMA")
    assert isinstance(labels, IRMALabels)
    assert (labels.class_set, labels.label_source) == ("2 IRMA codes", "IRMA")
    assert labels.is_known.tolist() == [True] * 7 + [False]
    measures = measure_images(
        search(torch.ones(8, 2)), labels, "d", exclusions=["self-excluded"], ks=(1, 3), options=QUICK
    )
    results = found(measures)
    protocol = f"self excluded; {LOWER_IS_BETTER}"
    wrong = IRMAError(FRAME["irma_code"][:7])("1121-127-700-400", "1121-127-700-500")
    back = IRMAError(FRAME["irma_code"][:7])("1121-127-700-500", "1121-127-700-400")
    assert 0 < wrong <= 0.25
    first, vote = results[protocol, "irma_error_at_1"], results[protocol, "irma_error_at_3"]
    # All tie, and there are three wrong ones for each, which come first and win the vote.
    all_wrong = pytest.approx((3 * back + 4 * wrong) / 7)
    assert (first.n, first.value) == (7, all_wrong)
    assert first.chance == pytest.approx((3 * 4 * back + 4 * 3 * wrong) / 49)
    assert (vote.value, vote.chance) == (all_wrong, None)
    assert results["self excluded; same code", "map_at_3"].value == 0
    assert not any(metric.startswith("ndcg") for _, metric in results)


def test_a_column_that_is_not_there_is_refused() -> None:
    with pytest.raises(KeyError, match="must have a column concepts for --relevance concepts"):
        column_labels(FRAME.drop(columns="concepts"), "concepts")
    with pytest.raises(KeyError, match="must have a column irma_code for --relevance irma"):
        column_labels(FRAME.drop(columns="irma_code"), "irma")


def test_the_script_of_ct_clip_stands_beside_its_repairs_and_bounds() -> None:
    rng = np.random.default_rng(0)
    frame = pd.DataFrame(
        {"volume_id": range(30), "study_id": np.arange(30) // 2, "patient_id": np.arange(30) // 2}
    )
    labels = np.repeat((rng.random((15, 3)) < 0.4).astype(np.float32), 2, axis=0)
    labels[7] = -100
    images = torch.from_numpy(rng.normal(size=(30, 4)))
    thirty = ImageSearch(images=images, frame=frame, queries=np.arange(30), gallery=np.arange(30))
    measures = measure_legacy_ct_clip(thirty, FindingLabels(labels, "c", "l"), "d", QUICK)
    results = found(measures)
    kept = np.delete(np.arange(30), 7)
    studies = frame["study_id"].to_numpy()[kept]
    expected = legacy_ct_clip_map(images.numpy()[kept], labels[kept], studies, ks=(1, 5, 10))
    chance, oracle = ct_clip_map_bounds(labels[kept], studies, ks=(1, 5, 10))
    for column, k in enumerate((1, 5, 10)):
        for variant, name in (
            (AS_PRINTED, f"legacy_ct_clip_map_at_{k}"),
            (WITHOUT_STUDY, f"mean_jaccard_at_{k}"),
        ):
            item = results[variant, name]
            assert item.value == pytest.approx(expected.means(variant)[column])
            assert item.chance == pytest.approx(chance.means(variant)[column])
            best = results[variant, f"{name}_oracle_baseline"]
            assert best.value == pytest.approx(oracle.means(variant)[column])
            assert item.value <= best.value
    assert (item.n, item.ci_low < item.value < item.ci_high) == (29, True)
    assert "queries without a finding count as 0" in item.note
    assert measures.not_measured == ("CT-CLIP's script at 50: too few labeled images",)
    QueryRows(measures.query_rows)


def test_refuses_what_cannot_be_measured() -> None:
    nothing = replace(FINDINGS, labels=np.full((8, 2), -100.0))
    with pytest.raises(ValueError, match="must have images with known labels, got 0 and 0"):
        measure_images(search(), nothing, "d")
    with pytest.raises(ValueError, match=r"ks must be at most the number of images .* got \[50\]"):
        measure_images(search(), FINDINGS, "d", ks=(50,))
    other = replace(search(), gallery=np.arange(3, 8))
    with pytest.raises(ValueError, match="must search the split that asks, got another gallery"):
        measure_legacy_ct_clip(other, FINDINGS, "d")
