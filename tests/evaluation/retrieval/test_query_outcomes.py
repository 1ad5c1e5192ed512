"""Outcomes per query -> metrics with intervals, and rows."""

import numpy as np
import pandas as pd
import pytest

from radtower.evaluation.results import Provenance
from radtower.evaluation.retrieval.images.ranked_gains import PerQuery
from radtower.evaluation.retrieval.query_outcomes import MeasuredQueries, QueryOutcomes, joined
from radtower.evaluation.retrieval.ranks import RetrievalOptions, summarize_ranks
from radtower.evaluation.rows import QUERY_COLUMNS, QueryRows

NAN = float("nan")
WHERE = Provenance(dataset="d", class_set="c", label_source="l", protocol="self excluded")
OPTIONS = RetrievalOptions(num_resamples=200)
OUTCOMES = QueryOutcomes(
    provenance=WHERE,
    direction="image_to_image",
    query_ids=np.array(list("abcd"), dtype=object),
    patient_ids=np.array(list("ppqr"), dtype=object),
    notes=("gallery of 9 images",),
)


def test_means_leave_out_and_name_queries_without_a_value() -> None:
    metrics = {
        "map_at_5": PerQuery(np.array([0.0, 0.5, 1.0, NAN]), np.array([0.1, 0.2, 0.3, NAN])),
        "precision_at_5": PerQuery(np.array([0.0, 0.2, 0.4, 0.6]), np.full(4, NAN)),
    }
    first, second = OUTCOMES.mean_results(metrics, OPTIONS, "nothing is right")
    assert (first.metric, first.n, first.direction) == ("map_at_5", 3, "image_to_image")
    assert (first.value, first.chance) == (pytest.approx(0.5), pytest.approx(0.2))
    assert first.note.startswith(
        "queries resampled, gallery fixed; gallery of 9 images; 1 queries left out: nothing is right"
    )
    assert (second.n, second.value, second.chance) == (4, pytest.approx(0.3), None)
    assert second.ci_low < 0.3 < second.ci_high
    rows = OUTCOMES.rows({name: item.values for name, item in metrics.items()})
    assert list(rows.columns) == list(QUERY_COLUMNS)
    assert rows["query_id"].tolist() == list("abcabcd")
    assert rows["value"].tolist() == pytest.approx([0.0, 0.5, 1.0, 0.0, 0.2, 0.4, 0.6])
    assert set(map(tuple, rows[["dataset", "class_set", "label_source", "protocol"]].to_numpy())) == {
        ("d", "c", "l", "self excluded")
    }
    QueryRows(rows)


def test_a_metric_without_any_value_is_null_with_the_reason() -> None:
    (item,) = OUTCOMES.mean_results(
        {"map_at_5": PerQuery(np.full(4, NAN), np.full(4, NAN))}, OPTIONS, "nothing is right"
    )
    assert (item.value, item.chance, item.n) == (None, None, 0)
    assert "undefined: nothing is right" in item.note
    assert OUTCOMES.rows({"map_at_5": np.full(4, NAN)}).empty


def test_ranks_become_recall_median_and_mrr() -> None:
    ranks = np.array([1.0, 2.0, 4.0, 9.0])
    chance = {"recall_at_2": 0.1, "median_rank": 5.0, "mrr": 0.2}
    items = OUTCOMES.rank_results(ranks, chance, (2,), OPTIONS)
    assert {item.metric: item.chance for item in items} == chance
    for item in items:
        value, interval = summarize_ranks(ranks, OUTCOMES.patient_ids, (2,), OPTIONS)[item.metric]
        assert (item.value, item.ci_low, item.ci_high) == (value, interval.low, interval.high)
    assert [item.value for item in items] == pytest.approx([0.5, 3.0, (1 + 1 / 2 + 1 / 4 + 1 / 9) / 4])


def test_measures_are_put_together() -> None:
    rows = OUTCOMES.rows({"rank": np.arange(4.0)})
    empty = MeasuredQueries((), ("a", "b"), rows.iloc[:0])
    both = joined([empty, MeasuredQueries((), ("b", "c"), rows), empty])
    assert both.not_measured == ("a", "b", "c")
    pd.testing.assert_frame_equal(both.query_rows, rows)
    assert list(joined([empty]).query_rows) == list(QUERY_COLUMNS)
