import numpy as np
import pandas as pd
import pytest

from radtower.evaluation.comparison.paired_rows import NotPaired, pair_queries, pair_scores


def scores(items="abc", findings=("x", "y"), **columns) -> pd.DataFrame:
    frame = pd.DataFrame([(item, finding) for item in items for finding in findings])
    frame.columns = ["item_id", "finding"]
    frame["patient_id"] = "p" + frame["item_id"]
    frame["score"] = np.arange(len(frame)) / 10
    frame["label"] = 1.0
    return frame.assign(**columns)


def test_items_are_paired_whatever_their_order():
    first = scores()
    second = first.iloc[::-1].assign(score=lambda frame: -frame["score"])
    one, other = pair_scores(first, second)
    np.testing.assert_array_equal(one.scores, [[0.0, 0.1], [0.2, 0.3], [0.4, 0.5]])
    np.testing.assert_array_equal(other.scores, -one.scores)
    assert list(one.patient_ids) == list(other.patient_ids) == ["pa", "pb", "pc"]
    assert one.keys == other.keys == ["x", "y"]


def test_a_finding_that_one_does_not_score_is_undefined_for_it():
    one, other = pair_scores(scores(findings=["x"]), scores())
    assert list(one.undefined) == ["y"]
    assert np.isnan(one.scores[:, 1]).all()
    assert not other.undefined
    np.testing.assert_array_equal(one.labels, np.ones((3, 2)))


def test_items_of_one_only_are_counted_and_never_left_out():
    with pytest.raises(NotPaired, match="items differ: 1 of 3 are in the first only, 2 of 4 in the second"):
        pair_scores(scores("abc"), scores("abde"))


def test_other_labels_and_patients_are_counted():
    labels = [1.0, 1.0, 0.0, -100.0, 1.0, 1.0]
    with pytest.raises(NotPaired, match="the labels of 1 of 3 items differ"):
        pair_scores(scores(), scores(label=labels))
    with pytest.raises(NotPaired, match="the patients of 3 items differ"):
        pair_scores(scores(), scores(patient_id="q"))
    with pytest.raises(NotPaired, match="the patients of 3 items differ"):
        pair_scores(scores(patient_id=["p", "q"] * 3), scores(patient_id="p"))


def test_rows_that_are_not_whole_are_refused():
    with pytest.raises(NotPaired, match="1 findings have scores for a part of the items only"):
        pair_scores(scores().iloc[:-1], scores())
    with pytest.raises(NotPaired, match="the ids of items are not unique: 1 rows repeat one"):
        pair_scores(pd.concat([scores(), scores().iloc[:1]]), scores())


def queries(ids="abc", **columns) -> pd.DataFrame:
    frame = pd.DataFrame({"query_id": list(ids), "metric": "rank", "patient_id": "p", "value": 1.0})
    return frame.assign(**columns)


def test_queries_are_paired_by_id_and_metric():
    second = pd.concat([queries(value=[1, 2, 3]), queries(metric="map", value=0.5)]).iloc[::-1]
    paired = pair_queries(queries(value=[4, 5, 6]), second)
    np.testing.assert_array_equal(paired.first["rank"], [4, 5, 6])
    np.testing.assert_array_equal(paired.second["rank"], [1, 2, 3])
    assert set(paired.first) == {"rank"}
    assert set(paired.second) == {"rank", "map"}


def test_other_queries_are_refused():
    with pytest.raises(NotPaired, match="queries differ: 0 of 2 are in the first only, 1 of 3"):
        pair_queries(queries("ab"), queries("abc"))
    with pytest.raises(NotPaired, match="the patients of 3 queries differ"):
        pair_queries(queries(), queries(patient_id="q"))
    with pytest.raises(NotPaired, match="the ids of queries are not unique: 1 rows"):
        pair_queries(queries(), queries("aab"))
