import numpy as np
import pandas as pd
import pytest
import torch

from radtower.evaluation.results import Provenance
from radtower.evaluation.rows import SCORE_COLUMNS
from radtower.evaluation.zero_shot.labeled_volumes import LabeledVolumes
from radtower.evaluation.zero_shot.scored_items import per_unit

PROVENANCE = Provenance(dataset="d", class_set="two", label_source="truth", protocol="prompts")
SCORES = np.array([[0.1, 0.8], [0.5, 0.2], [0.4, 0.3], [0.9, 0.6]])
LABELS = np.array([[1, 0], [0, -100], [1, 0], [0, 1]], dtype=np.float32)
STUDIES = pd.DataFrame(
    {"volume_id": list("wxyz"), "study_id": ["b", "a", "b", "c"], "patient_id": ["q", "p", "q", "p"]}
)


def volumes(labels=LABELS):
    nothing = torch.zeros(len(STUDIES), 2)
    return LabeledVolumes(nothing, nothing, STUDIES, labels, ("nodule", "effusion"), {})


def test_volumes_stay_as_they_are():
    items = per_unit(SCORES, volumes(), "volume")
    np.testing.assert_array_equal(items.sample.scores, SCORES)
    np.testing.assert_array_equal(items.sample.labels, LABELS)
    assert list(items.item_ids) == list("wxyz")
    assert list(items.sample.patient_ids) == ["q", "p", "q", "p"]
    assert items.size == "4 volumes"


def test_reconstructions_of_a_study_are_averaged():
    items = per_unit(SCORES, volumes(), "study", note="k = 3")
    np.testing.assert_allclose(items.sample.scores, [[0.25, 0.55], [0.5, 0.2], [0.9, 0.6]])
    np.testing.assert_array_equal(items.sample.labels, LABELS[[0, 1, 3]])
    assert list(items.item_ids) == ["b", "a", "c"]
    assert list(items.sample.patient_ids) == ["q", "p", "p"]
    assert items.size == "3 studies of 4 volumes"
    assert items.note == "k = 3"


def test_the_mean_does_not_depend_on_the_order_of_the_volumes():
    rng = np.random.default_rng(0)
    scores, ids = rng.random((60, 2)), rng.integers(0, 20, 60)
    labels = rng.integers(0, 2, (20, 2))[ids].astype(np.float32)
    frame = pd.DataFrame({"volume_id": np.arange(60), "study_id": ids, "patient_id": ids})

    def measured(order):
        some = LabeledVolumes(
            torch.zeros(60, 1), torch.zeros(60, 1), frame.iloc[order], labels[order], ("a", "b"), {}
        )
        items = per_unit(scores[order], some, "study")
        return dict(zip(items.item_ids, items.sample.scores, strict=True))

    first, second = measured(np.arange(60)), measured(rng.permutation(60))
    assert first.keys() == second.keys()
    for study, row in first.items():
        np.testing.assert_allclose(row, scores[ids == study].mean(axis=0))
        np.testing.assert_allclose(row, second[study])


def test_studies_whose_volumes_have_different_labels_are_refused():
    differing = LABELS.copy()
    differing[2, 1] = -100
    assert per_unit(SCORES, volumes(differing), "volume").size == "4 volumes"
    with pytest.raises(ValueError, match=r"agree within a study .* got 1 of 3 studies"):
        per_unit(SCORES, volumes(differing), "study")


def test_rows_are_of_items_and_of_findings_with_scores():
    frame = per_unit(SCORES, volumes(), "study").rows(PROVENANCE).frame
    assert tuple(frame.columns) == SCORE_COLUMNS
    assert list(frame["item_id"]) == ["b", "b", "a", "a", "c", "c"]
    assert list(frame["patient_id"]) == ["q", "q", "p", "p", "p", "p"]
    assert list(frame["finding"]) == ["nodule", "effusion"] * 3
    np.testing.assert_allclose(frame["score"], [0.25, 0.55, 0.5, 0.2, 0.9, 0.6])
    assert list(frame["label"]) == [1, 0, 0, -100, 0, 1]
    assert set(frame["protocol"]) == {"prompts"}
    without = np.where([True, False], np.nan, SCORES)
    frame = per_unit(without, volumes(), "volume", {"nodule": "not known"}).rows(PROVENANCE).frame
    assert list(frame["finding"]) == ["effusion"] * 4
    assert list(frame["label"]) == [0, -100, 0, 1]
