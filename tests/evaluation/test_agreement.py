import numpy as np
import pandas as pd
import pytest
from sklearn import metrics as sk

from radtower.evaluation.agreement import compare_labels
from radtower.evaluation.results import Provenance, Results

PROVENANCE = Provenance(dataset="d", class_set="pair", label_source="manual", threshold_source="status")
P, A, U, N = "present", "absent", "uncertain", "not_mentioned"


def make_frame(first: list, second: list) -> pd.DataFrame:
    return pd.DataFrame({"emphysema": first, "effusion": second}, index=list("abcdefgh")[: len(first)])


GOLD = make_frame([P, P, A, N, A, U], [P, A, A, A, N, A])
SILVER = make_frame([P, U, A, A, P, P], [P, A, N, A, A, P])


def by_name(metrics) -> Results:
    return Results(
        model_id="m", model_revision=None, created="2025-01-01T00:00:00Z", phantom=False, metrics=metrics
    )


def test_a_comparison_by_hand():
    agreement = compare_labels(SILVER, GOLD, PROVENANCE, num_resamples=300)
    results = by_name(agreement.metrics)
    # emphysema, five known rows: gold 1 1 0 0 0, silver score 1 .5 0 0 1: pairs won 2.5 + 2 of 6.
    auroc = results.get("auroc", "emphysema")
    assert auroc.value == pytest.approx(4.5 / 6)
    assert (auroc.n, auroc.n_positive) == (5, 2)
    assert auroc.note.startswith("three-level score")
    # silver present: rows a and e; tp 1, fp 1, fn 1, tn 2.
    assert results.get("precision", "emphysema").value == 0.5
    assert results.get("recall", "emphysema").value == 0.5
    assert results.get("f1", "emphysema").value == 0.5
    assert results.get("kappa", "emphysema").value == pytest.approx((3 / 5 - 13 / 25) / (1 - 13 / 25))
    # effusion: gold 1 0 0 0 0 0, silver 1 0 0 0 0 1.
    assert results.get("auroc", "effusion").value == pytest.approx(0.9)
    assert results.get("precision", "effusion").value == 0.5
    macro = results.get("macro_auroc")
    assert macro.value == pytest.approx((0.75 + 0.9) / 2)
    assert (macro.n, macro.note.split(";")[0]) == (6, "mean of 2 of 2 findings")
    # Five rows are known throughout; a, c and d agree.
    exact = results.get("exact_row")
    assert (exact.value, exact.n) == (0.6, 5)
    assert (agreement.num_compared, agreement.num_failed) == (6, 0)


def test_a_row_with_an_unknown_gold_label_is_in_no_exact_row():
    silver = make_frame([A, U, A, A, A, A], [P, A, N, A, A, A])
    exact = compare_labels(silver, GOLD, PROVENANCE, num_resamples=300).metrics[-1]
    # c, d and e agree; f, whose gold emphysema is uncertain, counts neither for nor against.
    assert (exact.metric, exact.value, exact.n) == ("exact_row", 0.6, 5)


def test_the_confusion_keeps_the_four_states_apart():
    table = compare_labels(SILVER, GOLD, PROVENANCE, num_resamples=20).confusion["emphysema"]
    assert table.index.tolist() == table.columns.tolist() == [P, A, U, N]
    assert table.loc[P].tolist() == [1, 0, 1, 0]
    assert table.loc[A].tolist() == [1, 1, 0, 0]
    assert table.loc[U].tolist() == [1, 0, 0, 0]
    assert table.loc[N].tolist() == [0, 1, 0, 0]


def test_scores_of_the_labeler_replace_the_three_levels():
    scores = np.array([[0.9, 0.8], [0.2, 0.1], [0.3, 0.1], [0.1, 0.2], [0.05, 0.1], [0.7, 0.9]])
    results = by_name(compare_labels(SILVER, GOLD, PROVENANCE, scores=scores, num_resamples=300).metrics)
    # emphysema: positives .9 and .2, negatives .3 .1 .05: 3 + 2 of 6.
    assert results.get("auroc", "emphysema").value == pytest.approx(5 / 6)
    assert "three-level" not in (results.get("auroc", "emphysema").note or "")
    assert results.get("f1", "emphysema").value == 0.5


def test_a_failed_report_is_left_out_counted_and_said():
    silver = SILVER.astype(object)
    silver.loc["a"] = None
    scores = np.where(silver.isna(), np.nan, 0.5)
    agreement = compare_labels(silver, GOLD, PROVENANCE, scores=scores, num_resamples=20)
    assert (agreement.num_compared, agreement.num_failed) == (5, 1)
    auroc = by_name(agreement.metrics).get("auroc", "emphysema")
    assert auroc.n == 4
    assert "1 reports without silver labels left out" in auroc.note
    assert agreement.confusion["emphysema"].to_numpy().sum() == 5


def test_a_finding_that_gold_never_has_is_undefined_and_out_of_the_mean():
    gold = GOLD.assign(effusion=A)
    results = by_name(compare_labels(SILVER, gold, PROVENANCE, num_resamples=300).metrics)
    assert results.get("auroc", "effusion").value is None
    assert results.get("auroc", "effusion").note.endswith("undefined: one class only")
    assert results.get("recall", "effusion").value is None
    assert results.get("macro_auroc").value == pytest.approx(0.75)
    assert results.get("macro_auroc").note.startswith("mean of 1 of 2 findings")


def test_numbers_equal_scikit_learn_on_random_tables():
    rng = np.random.default_rng(0)
    gold_labels, silver_labels = rng.random((80, 2)) < 0.4, rng.random((80, 2)) < 0.4
    scores = np.round(rng.random((80, 2)), 1)
    frames = [
        pd.DataFrame(np.where(labels, P, A), columns=["x", "y"]) for labels in (silver_labels, gold_labels)
    ]
    agreement = compare_labels(*frames, PROVENANCE, scores=scores, num_resamples=100)
    results = by_name(agreement.metrics)
    for column, key in enumerate("xy"):
        truth, silver = gold_labels[:, column], silver_labels[:, column]
        assert results.get("auroc", key).value == pytest.approx(sk.roc_auc_score(truth, scores[:, column]))
        assert results.get("f1", key).value == pytest.approx(sk.f1_score(truth, silver))
        assert results.get("kappa", key).value == pytest.approx(sk.cohen_kappa_score(truth, silver))
        interval = results.get("f1", key)
        assert interval.ci_low < interval.value < interval.ci_high
    macro = np.mean([sk.f1_score(gold_labels[:, c], silver_labels[:, c]) for c in range(2)])
    assert results.get("macro_f1").value == pytest.approx(macro)


def test_patients_widen_the_intervals():
    gold = pd.concat([GOLD] * 10, ignore_index=True)
    silver = pd.concat([SILVER] * 10, ignore_index=True)
    patients = np.arange(60) % 6
    alone = by_name(compare_labels(silver, gold, PROVENANCE, num_resamples=300).metrics).get("exact_row")
    grouped = by_name(
        compare_labels(silver, gold, PROVENANCE, patient_ids=patients, num_resamples=300).metrics
    ).get("exact_row")
    assert alone.value == grouped.value == 0.6
    assert grouped.ci_high - grouped.ci_low > 2 * (alone.ci_high - alone.ci_low)


def test_findings_in_another_order_are_refused():
    with pytest.raises(ValueError, match=r"got \['effusion', 'emphysema'\] and \['emphysema', 'effusion'\]"):
        compare_labels(SILVER[["effusion", "emphysema"]], GOLD, PROVENANCE)


def test_other_reports_are_refused():
    with pytest.raises(ValueError, match="got 5 and 6 rows"):
        compare_labels(SILVER.iloc[:5], GOLD, PROVENANCE)


def test_an_unknown_gold_cell_is_in_no_metric_and_no_confusion():
    gold = GOLD.astype(object)
    gold.loc["b", "effusion"] = None
    gold.loc["f", "effusion"] = None
    agreement = compare_labels(SILVER, gold, PROVENANCE, num_resamples=300)
    results = by_name(agreement.metrics)
    # effusion, four known rows: gold 1 0 0 0, silver 1 0 0 0.
    assert (results.get("f1", "effusion").value, results.get("f1", "effusion").n) == (1.0, 4)
    # a, c, d and e are known throughout; e disagrees.
    assert (results.get("exact_row").value, results.get("exact_row").n) == (0.75, 4)
    assert agreement.confusion["effusion"].to_numpy().sum() == 4


def test_gold_of_two_states_has_two_rows_of_confusion():
    gold = make_frame([P, P, A, A, A, None], [P, A, A, A, A, A])
    table = compare_labels(SILVER, gold, PROVENANCE, num_resamples=20).confusion["emphysema"]
    assert table.index.tolist() == [P, A]
    assert table.loc[P].tolist() == [1, 0, 1, 0]
    assert table.loc[A].tolist() == [1, 2, 0, 0]


def test_failed_reports_count_as_wrong_where_asked():
    silver = SILVER.astype(object)
    silver.loc[["a", "d"]] = None
    scores = np.array([[np.nan] * 2, [0.6, 0.1], [0.3, 0.1], [np.nan] * 2, [0.05, 0.1], [0.7, 0.9]])
    agreement = compare_labels(silver, GOLD, PROVENANCE, scores=scores, num_resamples=300, failures="wrong")
    results = by_name(agreement.metrics)
    assert (agreement.num_compared, agreement.num_failed) == (6, 2)
    # emphysema, gold of a to e 1 1 0 0 0: a and d wrong, b uncertain, e present: tp 0, fp 2, fn 2, tn 1.
    assert results.get("recall", "emphysema").value == 0.0
    assert results.get("precision", "emphysema").value == 0.0
    assert "2 reports without silver labels counted as wrong" in results.get("f1", "emphysema").note
    # Positives a (below all) and b .6, negatives c .3, d (above all), e .05: 2 of 6.
    assert results.get("auroc", "emphysema").value == pytest.approx(2 / 6)
    # effusion: gold a is 1 and lost, d is 0 and lost, f is 0 but present.
    assert results.get("auroc", "effusion").value == 0.0
    # Of a to e, only c agrees throughout.
    assert (results.get("exact_row").value, results.get("exact_row").n) == (0.2, 5)
    # A failed report has no score and no column.
    assert (results.get("ece", "effusion").n, results.get("macro_ece").n) == (4, 4)
    assert agreement.confusion["effusion"].to_numpy().sum() == 4


def test_a_failed_report_ties_with_no_other():
    silver = SILVER.astype(object)
    silver.loc["a"] = None
    results = by_name(compare_labels(silver, GOLD, PROVENANCE, num_resamples=300, failures="wrong").metrics)
    # Positives a (failed) and b .5; negatives 0 0 1: a loses to the zeros as well, b wins two.
    assert results.get("auroc", "emphysema").value == pytest.approx(2 / 6)


def test_calibration_by_hand():
    scores = np.array([[0.9, 0.8], [0.2, 0.1], [0.3, 0.1], [0.1, 0.2], [0.05, 0.1], [0.7, 0.9]])
    agreement = compare_labels(SILVER, GOLD, PROVENANCE, scores=scores, num_resamples=300)
    results = by_name(agreement.metrics)
    # emphysema, gold 1 1 0 0 0: every score in a bin of its own but one: .1 + .8 + .3 + .1 + .05 over 5.
    assert results.get("ece", "emphysema").value == pytest.approx(1.35 / 5)
    # effusion, gold 1 0 0 0 0 0: .1, .1 and .1 share a bin, the others are alone: .2 + .3 + .2 + .9 over 6.
    assert results.get("ece", "effusion").value == pytest.approx(1.6 / 6)
    assert results.get("macro_ece").value == pytest.approx((1.35 / 5 + 1.6 / 6) / 2)
    assert agreement.reliability.counts.sum() == 11


def test_without_scores_there_is_no_calibration():
    agreement = compare_labels(SILVER, GOLD, PROVENANCE, num_resamples=20)
    assert agreement.reliability is None
    assert "ece" not in {item.metric for item in agreement.metrics}


def test_a_finding_with_a_missing_score_falls_back_to_its_status():
    scores = np.array([[0.9, 0.8], [0.2, 0.1], [0.3, np.nan], [0.1, 0.2], [0.05, 0.1], [0.7, 0.9]])
    agreement = compare_labels(SILVER, GOLD, PROVENANCE, scores=scores, num_resamples=300)
    results = by_name(agreement.metrics)
    assert results.get("auroc", "emphysema").value == pytest.approx(5 / 6)
    assert results.get("auroc", "effusion").value == pytest.approx(0.9)
    assert results.get("auroc", "effusion").note.startswith("three-level score")
    assert "three-level score in 1 of 2" in results.get("macro_auroc").note
    assert [item.finding for item in agreement.metrics if item.metric == "ece"] == ["emphysema"]
    assert agreement.reliability.counts.sum() == 5


def test_only_failures_are_refused():
    with pytest.raises(ValueError, match="got 6 failed reports of 6"):
        compare_labels(pd.DataFrame(None, index=GOLD.index, columns=GOLD.columns), GOLD, PROVENANCE)


def test_scores_and_patients_of_another_size_are_refused():
    with pytest.raises(ValueError, match=r"scores must have shape \(6, 2\), got \(6, 1\)"):
        compare_labels(SILVER, GOLD, PROVENANCE, scores=np.zeros((6, 1)))
    with pytest.raises(ValueError, match="got 5 for 6"):
        compare_labels(SILVER, GOLD, PROVENANCE, patient_ids=range(5))
