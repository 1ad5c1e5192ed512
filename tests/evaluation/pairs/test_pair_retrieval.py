import numpy as np
import pandas as pd
import pytest
import torch

from radtower.evaluation.pairs.embedded_pairs import EmbeddedPairs
from radtower.evaluation.pairs.pair_retrieval import (
    checked_protocols,
    differing_protocols,
    hit_keys,
    measure_pair_retrieval,
    measure_pairs,
    retrieval_results,
)
from radtower.evaluation.results import Provenance
from radtower.evaluation.retrieval.ranks import RetrievalOptions
from radtower.evaluation.rows import QueryRows

PROVENANCE = Provenance(dataset="d", class_set="none", label_source="pairs")
# The first study has two reconstructions; the reports of the third and fourth read the same.
STUDIES = pd.DataFrame(
    {
        "volume_id": list("uvwxyz"),
        "study_id": ["a", "a", "b", "c", "d", "e"],
        "patient_id": ["p", "p", "q", "r", "s", "t"],
        "report": ["one", "one", "two", "same  words", "same words", "three"],
    }
)
QUICK = RetrievalOptions(num_resamples=20)


def pairs_of(studies: pd.DataFrame, images: torch.Tensor, similarity="cosine", failures=()) -> EmbeddedPairs:
    return EmbeddedPairs(images, torch.eye(len(studies)), studies, similarity, dict.fromkeys(failures, "bad"))


def found(results) -> dict:
    return {(r.protocol, r.direction, r.metric): r for r in results}


def test_each_protocol_counts_what_it_says():
    # Every scan looks most like the report of the next row of its group: exact rows come second.
    images = torch.eye(6)[[1, 0, 2, 4, 3, 5]] + 0.5 * torch.eye(6)
    results = found(measure_pair_retrieval(pairs_of(STUDIES, images), PROVENANCE, ks=(1, 2), options=QUICK))
    names = ("exact row", "same study", "same report")
    recall = {name: results[name, "image_to_report", "recall_at_1"] for name in names}
    assert [recall[name].value for name in recall] == pytest.approx([2 / 6, 4 / 6, 1.0])
    # Four reports differ. Of copies the wrong one stands first, unless both are right.
    assert [recall[name].chance for name in recall] == pytest.approx([2 / 24, 4 / 24, 6 / 24])
    images_first = [results[name, "report_to_image", "recall_at_1"].chance for name in names]
    assert images_first == pytest.approx([6 / 36, 8 / 36, 10 / 36])
    two = results["same report", "report_to_image", "recall_at_2"]
    assert (two.n, two.chance) == (6, pytest.approx((2 * 2 / 6 + 4 * (1 - 4 * 3 / (6 * 5))) / 6))
    assert results["exact row", "report_to_image", "median_rank"].chance == 3.5
    assert len(results) == 4 * 2 * 4


def test_at_study_level_a_study_asks_once_and_takes_one_place():
    # Both scans of study a are closer to the report of study b than its own scan is.
    images = torch.eye(6)
    images[0] = images[1] = torch.tensor([0.3, 0.3, 1.0, 0, 0, 0])
    images[2] = torch.tensor([0, 0, 1.0, 1.0, 0, 0])
    reports = torch.eye(6)
    reports[1] = reports[0]
    pairs = EmbeddedPairs(images, reports, STUDIES, "cosine", {})
    measures = measure_pairs(pairs, PROVENANCE, ["exact-row", "study-level"], (1, 2, 5), QUICK)
    results = found(measures.metrics)
    assert results["study level", "report_to_image", "recall_at_2"].n == 5
    assert results["study level", "report_to_image", "recall_at_1"].value == pytest.approx(4 / 5)
    assert results["study level", "report_to_image", "recall_at_2"].value == 1.0
    assert results["study level", "report_to_image", "recall_at_1"].chance == pytest.approx(1 / 5)
    # Reports "same words" are copies of two studies.
    assert results["study level", "image_to_report", "recall_at_1"].chance == pytest.approx(3 / 4 / 5)
    assert measures.not_measured == ("recall@5, study level: only 5 studies",)
    rows = measures.query_rows.set_index(["protocol", "direction", "query_id"])
    assert rows.loc[("study level", "report_to_image", "b")][["patient_id", "metric", "value"]].tolist() == [
        "q",
        "rank",
        2.0,
    ]
    assert rows.loc[("exact row", "report_to_image", "w"), "value"] == 3.0
    assert len(rows) == 2 * 6 + 2 * 5
    QueryRows(measures.query_rows)


def test_equal_protocols_are_measured_once_unless_they_are_asked_for():
    assert differing_protocols(STUDIES) == ("exact-row", "study", "study-level", "report")
    assert differing_protocols(STUDIES.iloc[[0, 1, 2]]) == ("exact-row", "study", "study-level")
    assert differing_protocols(STUDIES.iloc[2:]) == ("exact-row", "report")
    assert differing_protocols(STUDIES.iloc[[0, 2, 3]]) == ("exact-row",)
    some = pairs_of(STUDIES.iloc[[0, 2, 3]], torch.eye(3))
    asked = measure_pair_retrieval(some, PROVENANCE, ["report", "study", "report"], (1,), QUICK)
    assert list(dict.fromkeys(r.protocol for r in asked)) == ["same report", "same study"]
    assert {r.protocol for r in measure_pair_retrieval(some, PROVENANCE, ks=(1,), options=QUICK)} == {
        "exact row"
    }


def test_the_similarity_is_that_of_the_model():
    images = torch.eye(6)
    images[0] = torch.tensor([1.0, 3, 0, 0, 0, 0])
    images[1] = 2 * torch.eye(6)[1]
    dot, cosine = (
        found(measure_pair_retrieval(pairs_of(STUDIES, images, kind), PROVENANCE, ["exact-row"], (1,), QUICK))
        for kind in ("dot", "cosine")
    )
    key = ("exact row", "report_to_image", "recall_at_1")
    assert (dot[key].value, cosine[key].value) == pytest.approx((5 / 6, 1.0))


def test_what_was_left_out_is_in_the_note():
    results = measure_pair_retrieval(
        pairs_of(STUDIES, torch.eye(6), failures="kl"), PROVENANCE, options=QUICK, ks=(1,)
    )
    assert results[0].note == "queries resampled, gallery fixed; 2 more pairs could not be read"


def test_an_unknown_protocol_or_k_is_refused():
    with pytest.raises(ValueError, match="must be one of exact-row, study, study-level, report, got 'case'"):
        hit_keys(STUDIES, "case")
    assert checked_protocols(["report", "study", "report"]) == ("study", "report")
    with pytest.raises(ValueError, match=r"protocol must be one of .* got 'case'"):
        checked_protocols(["study", "case"])
    with pytest.raises(ValueError, match=r"ks must be between 1 and 5, got \[6\]\. Recall@6 of 6 rows"):
        measure_pair_retrieval(pairs_of(STUDIES, torch.eye(6)), PROVENANCE, ks=(1, 6))


def test_results_say_which_model_it_was(tiny_image_clip, tmp_path):
    measures = measure_pairs(pairs_of(STUDIES, torch.eye(6)), PROVENANCE, ks=(1,), options=QUICK)
    fresh = retrieval_results(tiny_image_clip, measures, is_phantom=True)
    assert (fresh.model_id, fresh.model_revision, fresh.phantom) == ("MedCLIPModel", None, True)
    assert (fresh.metrics, fresh.not_measured) == (measures.metrics, ())
    tiny_image_clip.save_pretrained(tmp_path / "dual")
    loaded = type(tiny_image_clip).from_pretrained(tmp_path / "dual")
    assert retrieval_results(loaded, measures).model_id == "dual"
    assert np.isclose(fresh.metrics[0].value, 1.0)
