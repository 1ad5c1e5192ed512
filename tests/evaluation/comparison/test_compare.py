import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import f1_score

from radtower.evaluation.bootstrap import patient_bootstrap
from radtower.evaluation.comparison.compare import compare_runs
from radtower.evaluation.comparison.paired_values import Resampling
from radtower.evaluation.comparison.runs import read_run
from radtower.evaluation.decisions.delong import CLUSTERED, delong_test, holm
from radtower.evaluation.decisions.finding_metrics import decision_results, ranking_results
from radtower.evaluation.decisions.thresholds import Threshold
from radtower.evaluation.metrics import auroc
from radtower.evaluation.results import MetricResult

FEW = Resampling(60, 3)


def by_name(comparison) -> dict:
    return {(item.metric, item.finding): item for item in comparison.differences}


def compare(first, second):
    return compare_runs(read_run(first), read_run(second), FEW)


@pytest.fixture
def two_models(toy, tmp_path):
    return [
        toy.write_scored(tmp_path / f"m{skill}" / "results.json", toy.sample(skill)) for skill in (0.5, 1.5)
    ]


def test_aurocs_have_a_paired_interval_and_delongs_test(toy, two_models):
    weak, strong = toy.sample(0.5), toy.sample(1.5)
    comparison = compare(*two_models)
    assert comparison.first.model_id == "m0.5"
    assert comparison.remarks == ()
    found = by_name(comparison)
    tests = []
    for column, key in enumerate(weak.keys):
        item = found["auroc", key]
        labels = weak.labels[:, column]
        naive = patient_bootstrap(
            lambda rows, c=column: (
                auroc(strong.scores[rows, c], strong.labels[rows, c])
                - auroc(weak.scores[rows, c], weak.labels[rows, c])
            ),
            [f"p{patient}" for patient in weak.patient_ids],
            60,
            seed=3,
        )
        assert (item.ci_low, item.ci_high) == pytest.approx((naive.low, naive.high), abs=1e-12)
        assert item.difference == pytest.approx(item.second.value - item.first.value)
        assert item.difference == pytest.approx(auroc(strong.scores[:, column], labels) - item.first.value)
        assert (item.first.n, item.first.n_positive) == (int((labels >= 0).sum()), int((labels == 1).sum()))
        test = delong_test(weak.scores[:, column], strong.scores[:, column], labels, weak.patient_ids)
        assert item.delong_p == pytest.approx(test.p_value)
        assert item.delong_method == CLUSTERED
        tests.append(test.p_value)
    corrected = [found["auroc", key].delong_p_holm for key in weak.keys]
    assert corrected == pytest.approx(holm(tests))
    assert corrected != pytest.approx(tests)
    assert found["auroc", "nodule"].num_tests == 2
    assert found["macro_auroc", None].delong_p is None
    assert found["macro_auroc", None].ci_low is not None
    assert "paired patient bootstrap" in found["macro_auroc", None].ci_method


def test_decisions_are_taken_at_the_threshold_of_each_model(toy, tmp_path):
    sample = toy.sample(1.0)
    paths = [toy.write_scored(tmp_path / f"{cut}" / "results.json", sample, cut) for cut in (0.2, 1.0)]
    item = by_name(compare(*paths))["recall", "effusion"]
    called = [sample.scores[:, 1] >= cut for cut in (0.2, 1.0)]
    positive = sample.labels[:, 1] == 1
    assert item.first.value == pytest.approx(called[0][positive].mean())
    assert item.difference == pytest.approx(called[1][positive].mean() - called[0][positive].mean())
    assert item.ci_low < item.difference < item.ci_high < 0
    assert item.threshold_source == "by hand"
    assert item.delong_p is None


def test_decisions_of_a_further_class_set_are_paired_too(toy, tmp_path):
    """Its thresholds stand with the findings of the whole set; the mean of a part has none of its own."""
    part = toy.scored.model_copy(update={"class_set": "toy, effusion only"})
    cuts = {"weak": (0.2, 0.9), "strong": (0.5, 0.1)}
    samples = {"weak": toy.sample(0.5), "strong": toy.sample(1.5)}
    paths = []
    for name, sample in samples.items():
        thresholds = [Threshold(cut, "by hand") for cut in cuts[name]]
        frame = toy.score_rows(sample)
        of_part = replace(sample, scores=sample.scores[:, 1:], labels=sample.labels[:, 1:], keys=["effusion"])
        means = decision_results(of_part, thresholds[1:], part, num_resamples=20)
        # Of another protocol, whose thresholds say nothing about these scores.
        other = toy.scored.model_copy(update={"protocol": "linear probe"})
        metrics = [
            *decision_results(sample, thresholds, toy.scored, num_resamples=20),
            *decision_results(sample, [Threshold(9.0, "by hand")] * 2, other, num_resamples=20),
            *(item for item in means if item.finding is None),
        ]
        rows = pd.concat([frame, frame[frame["finding"] == "effusion"].assign(class_set=part.class_set)])
        paths.append(toy.write_run(tmp_path / name / "results.json", metrics, rows))
    found = {item.metric: item for item in compare(*paths).differences if item.class_set == part.class_set}
    f1 = {
        name: f1_score(sample.labels[:, 1], sample.scores[:, 1] >= cuts[name][1])
        for name, sample in samples.items()
    }
    assert found["macro_f1"].difference == pytest.approx(f1["strong"] - f1["weak"])
    assert found["macro_f1"].ci_low < found["macro_f1"].difference < found["macro_f1"].ci_high
    assert [item.note for item in found.values()] == [None] * 7


def test_a_threshold_of_its_own_class_set_comes_first(toy, tmp_path):
    other = toy.scored.model_copy(update={"class_set": "another"})
    sample = toy.sample(1.0)
    metrics = [
        *decision_results(sample, [Threshold(0.5, "by hand")] * 2, toy.scored, num_resamples=20),
        *decision_results(sample, [Threshold(9.0, "by hand")] * 2, other, num_resamples=20),
    ]
    path = toy.write_run(tmp_path / "results.json", metrics, toy.score_rows(sample))
    found = [item for item in compare(path, path).differences if item.class_set == toy.scored.class_set]
    assert [item.difference for item in found if item.metric in ("f1", "macro_f1")] == [0.0] * 3


def test_a_finding_without_a_threshold_is_compared_by_rank_only(toy, tmp_path):
    sample = toy.sample(1.0)
    thresholds = [Threshold(0.5, "max"), Threshold(None, "max", undefined_because="no positive")]
    metrics = [
        *ranking_results(sample, toy.scored, num_resamples=20),
        *decision_results(sample, thresholds, toy.scored, num_resamples=20),
    ]
    path = toy.write_run(tmp_path / "results.json", metrics, toy.score_rows(sample))
    found = by_name(compare(path, path))
    assert found["f1", "effusion"].note.startswith("undefined for the first and the second")
    assert found["auroc", "effusion"].difference == found["f1", "nodule"].difference == 0.0
    assert found["macro_f1", None].difference == 0.0


def test_every_metric_of_two_scored_runs_is_paired(two_models):
    comparison = compare(*two_models)
    assert len(comparison.differences) == 3 * 10
    assert [item.note for item in comparison.differences if item.difference is None] == []


def test_a_model_against_itself_is_no_different(two_models):
    for item in compare(two_models[0], two_models[0]).differences:
        assert (item.difference, item.ci_low, item.ci_high) == (0.0, 0.0, 0.0)
        assert item.delong_p is None
        if item.metric == "auroc":
            assert "DeLong's test is undefined: too little varies" in item.note


def test_without_rows_the_numbers_stand_side_by_side(toy, tmp_path, two_models):
    bare = toy.write_scored(tmp_path / "bare" / "results.json", toy.sample(1.5), has_rows=False)
    for pair in ((two_models[0], bare), (bare, two_models[0])):
        for item in compare(*pair).differences:
            assert item.note == "no paired interval: rows are not there"
            assert item.first.value is not None
            assert item.second.value is not None
            assert (item.difference, item.ci_low, item.delong_p) == (None, None, None)


def test_rows_of_another_protocol_do_not_count(toy, tmp_path, two_models):
    metrics = ranking_results(toy.sample(1.5), toy.scored, num_resamples=5)
    other = toy.scored.model_copy(update={"protocol": "linear probe"})
    rows = toy.score_rows(toy.sample(1.5), other)
    path = toy.write_run(tmp_path / "x" / "results.json", metrics, rows)
    notes = {item.note for item in compare(two_models[0], path).differences}
    assert notes == {"no paired interval: rows are not there"}


def test_every_protocol_is_compared_by_its_own_rows(toy, tmp_path):
    other = toy.scored.model_copy(update={"protocol": "linear probe"})
    paths = []
    for skill in (0.5, 1.5):
        parts = [(toy.sample(skill), toy.scored), (toy.sample(skill + 0.5), other)]
        metrics = [m for sample, where in parts for m in ranking_results(sample, where, num_resamples=5)]
        # As a file may have them: what belongs together does not stand together.
        order = [item for pair in zip(metrics[:9], metrics[9:], strict=True) for item in pair]
        rows = pd.concat([toy.score_rows(sample, where) for sample, where in parts])
        paths.append(toy.write_run(tmp_path / f"{skill}" / "results.json", order, rows))
    comparison = compare(*paths)
    assert [item.protocol for item in comparison.differences] == ["prompts"] * 9 + ["linear probe"] * 9
    assert all(item.difference is not None for item in comparison.differences)
    for item, skill in zip(comparison.differences[::9], (0.5, 1.0), strict=True):
        expected = np.nanmean(
            [auroc(toy.sample(skill).scores[:, f], toy.sample(skill).labels[:, f]) for f in range(2)]
        )
        assert item.first.value == pytest.approx(expected)


def test_other_items_are_counted_and_nothing_is_intersected(toy, tmp_path, two_models):
    fewer = toy.write_scored(
        tmp_path / "fewer" / "results.json",
        toy.sample(
            1.5,
            scores=toy.sample(1.5).scores[:70],
            labels=toy.sample(1.5).labels[:70],
            patient_ids=np.arange(70) // 2,
        ),
    )
    comparison = compare(two_models[0], fewer)
    item = by_name(comparison)["auroc", "nodule"]
    assert item.difference is None
    assert "items differ: 10 of 80 are in the first only, 0 of 70 in the second only" in item.note
    assert "measured on other items: n = 77 and 67" in item.note
    assert "30 of 30 metrics were measured on other numbers of items." in comparison.remarks


def test_numbers_that_the_rows_do_not_give_are_not_compared(toy, tmp_path, two_models):
    metrics = ranking_results(toy.sample(1.5), toy.scored, num_resamples=5)
    path = toy.write_run(tmp_path / "x" / "results.json", metrics, toy.score_rows(toy.sample(1.4)))
    item = by_name(compare(two_models[0], path))["auroc", "nodule"]
    assert item.note == "no paired interval: the rows do not give the number in results.json"


def test_means_of_different_findings_are_not_compared(toy, tmp_path, two_models):
    scores = toy.sample(1.5).scores.copy()
    scores[:, 0] = np.nan
    partial = toy.sample(1.5, scores=scores, undefined={"nodule": "the head does not know it"})
    path = toy.write_scored(tmp_path / "x" / "results.json", partial)
    found = by_name(compare(two_models[0], path))
    assert found["macro_auroc", None].note == "no paired interval: the two are means of different findings"
    assert found["auroc", "nodule"].note == "undefined for the second"
    assert found["auroc", "nodule"].second.value is None
    assert found["auroc", "effusion"].difference is not None
    assert found["auroc", "effusion"].num_tests == 1
    both = by_name(compare(path, path))
    assert both["auroc", "nodule"].note == "undefined for the first and the second"
    assert both["macro_auroc", None].difference == 0.0


def test_phantoms_are_pointed_out(toy, tmp_path, two_models):
    phantom = toy.write_scored(tmp_path / "p" / "results.json", toy.sample(1.5), phantom=True)
    assert compare(phantom, phantom).remarks == (
        "These are phantom results: they show that the software works.",
    )
    assert compare(two_models[0], phantom).remarks == (
        "Only the second was measured on phantoms: the two cannot be compared.",
    )
    assert "Only the first" in compare(phantom, two_models[0]).remarks[0]


def test_what_only_one_has_is_pointed_out(toy, tmp_path, two_models):
    extra = toy.scored.model_copy(update={"protocol": "linear probe"})
    metrics = [
        *ranking_results(toy.sample(1.5), toy.scored, num_resamples=5),
        *ranking_results(toy.sample(1.5), extra, num_resamples=5)[:2],
    ]
    path = toy.write_run(tmp_path / "x" / "results.json", metrics)
    comparison = compare(two_models[0], path)
    assert len(comparison.differences) == 9
    assert comparison.remarks == (
        "21 metrics are in the first only, 2 in the second only: protocol prompts against linear probe; "
        "threshold source by hand against None.",
    )


def test_nothing_in_common_is_refused_and_says_what_differs(toy, tmp_path, two_models):
    other = toy.scored.model_copy(update={"dataset": "another, test"})
    metrics = ranking_results(toy.sample(1.5), other, num_resamples=5)
    path = toy.write_run(tmp_path / "x" / "results.json", metrics)
    with pytest.raises(ValueError, match=r"must share a metric .* dataset toy, test against another, test"):
        compare(two_models[0], path)


def ranked(toy, path, ranks: list[int], names=("recall_at_5", "mrr", "median_rank"), **changes):
    """One direction, with the mean of another metric beside the ranks."""
    values = {
        "recall_at_5": np.mean(np.array(ranks) <= 5),
        "mrr": np.mean(1 / np.array(ranks)),
        "median_rank": np.median(ranks),
        "map_at_5": np.mean(np.array(ranks) / 100),
    }
    metrics = [
        MetricResult(
            **toy.asked.model_dump(),
            metric=name,
            value=values[name],
            ci_low=0,
            ci_high=100,
            ci_method="x",
            n=len(ranks),
            direction="report_to_image",
        )
        for name in names
    ]
    num = len(ranks)
    base = {
        **toy.asked.model_dump(exclude={"threshold_source"}),
        "direction": "report_to_image",
        "query_id": [f"q{row}" for row in range(num)],
        "patient_id": [f"p{row // 2}" for row in range(num)],
    }
    frames = [
        pd.DataFrame({**base, "metric": "rank", "value": np.array(ranks, dtype=float)}),
        pd.DataFrame({**base, "metric": "map_at_5", "value": np.array(ranks) / 100}),
    ]
    return toy.write_run(path, metrics, queries=pd.concat(frames), **changes)


def test_retrieval_is_paired_by_query(toy, tmp_path):
    names = ("recall_at_5", "mrr", "median_rank", "map_at_5")
    ranks = [1, 9, 5, 30, 2, 7, 6, 3], [1, 2, 3, 8, 1, 1, 9, 2]
    paths = [
        ranked(toy, tmp_path / name / "results.json", values, names)
        for name, values in zip("ab", ranks, strict=True)
    ]
    found = by_name(compare(*paths))
    first, second = (np.array(values) for values in ranks)
    per_query = {
        "recall_at_5": (second <= 5) * 1.0 - (first <= 5),
        "mrr": 1 / second - 1 / first,
        "map_at_5": (second - first) / 100,
    }
    patients = np.arange(8) // 2
    for name, values in per_query.items():
        naive = patient_bootstrap(lambda rows, v=values: float(v[rows].mean()), patients, 60, seed=3)
        item = found[name, None]
        assert item.difference == pytest.approx(values.mean())
        assert (item.ci_low, item.ci_high) == pytest.approx((naive.low, naive.high), abs=1e-12)
    naive = patient_bootstrap(
        lambda rows: float(np.median(second[rows]) - np.median(first[rows])), patients, 60, seed=3
    )
    item = found["median_rank", None]
    assert (item.difference, item.ci_low, item.ci_high) == pytest.approx((-3.5, naive.low, naive.high))
    assert item.direction == "report_to_image"


def test_a_metric_that_no_row_tells_stands_side_by_side(toy, tmp_path):
    path = ranked(toy, tmp_path / "a" / "results.json", [1, 2, 3])
    run = read_run(path)
    strange = run.results.metrics[0].model_copy(update={"metric": "surprise"})
    results = run.results.model_copy(update={"metrics": (strange,)})
    other = type(run)(results, run.scores, run.queries)
    item = compare_runs(other, other, FEW).differences[0]
    assert item.note == "no paired interval: the rows do not tell this metric"


def test_one_patient_has_no_paired_interval(toy, tmp_path):
    path = ranked(toy, tmp_path / "a" / "results.json", [1, 9])
    item = by_name(compare(path, path))["mrr", None]
    assert (item.difference, item.ci_low) == (None, None)
    assert "fewer than two patients" in item.note


def test_differences_to_baselines_are_not_compared_again(toy, two_models):
    run = read_run(two_models[0])
    known = run.results.metrics
    extra = known[0].model_copy(update={"metric": "macro_auroc_difference"})
    results = run.results.model_copy(update={"metrics": (*known, extra)})
    assert len(type(run)(results, None, None).metrics()) == len(known)


def test_undefined_resamples_are_counted(toy, tmp_path):
    labels = np.zeros((80, 2))
    labels[[3, 4], 0] = labels[::2, 1] = 1
    path = toy.write_scored(tmp_path / "x" / "results.json", toy.sample(1.0, labels=labels))
    item = by_name(compare(path, path))["average_precision", "nodule"]
    assert "of 60 resamples undefined and left out" in item.note
    assert not math.isnan(item.ci_low)
