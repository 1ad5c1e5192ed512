import pytest

from radtower.evaluation.reports.wording import (
    base_metric,
    chance_number,
    counts,
    described,
    interval_method,
    is_higher_better,
    metric_name,
    model_names,
    numbers,
    row_name,
    value_and_interval,
)


@pytest.mark.parametrize(
    ("metric", "written"),
    [
        ("auroc", "AUROC"),
        ("macro_auroc", "macro AUROC"),
        ("recall_at_5", "recall@5"),
        ("map_at_50", "mAP@50"),
        ("legacy_ct_clip_map_at_50", "legacy ct clip mAP@50"),
        ("macro_label_f1", "macro label F1"),
        ("pooled_ece", "pooled calibration error"),
        ("macro_new_thing", "macro new thing"),
        ("weighted_f1", "weighted F1"),
        ("sensitivity_at_0.95_specificity", "sensitivity at 0.95 specificity"),
        ("average_precision", "average precision"),
    ],
)
def test_names_of_metrics(metric, written):
    assert metric_name(metric) == written


def test_rows_are_findings_means_or_directions(make_metric):
    assert row_name(make_metric(finding="lung_nodule")) == "lung nodule"
    assert row_name(make_metric("macro_auroc")) == "mean of the findings"
    assert row_name(make_metric("recall_at_1", direction="image_to_report")) == "image to report"
    assert (
        row_name(make_metric("recall_at_1", finding="x", direction="image_to_image")) == "x, image to image"
    )
    assert row_name(make_metric("exact_row")) == "all"
    assert base_metric(make_metric("macro_auroc")) == "auroc"
    # A finding's own macro average is no mean of the findings.
    assert base_metric(make_metric("macro_f1", finding="x")) == "macro_f1"


def test_numbers_have_three_decimals_ranks_one(make_metric):
    assert value_and_interval(make_metric(value=0.8)) == "0.800 (0.750-0.850)"
    assert value_and_interval(make_metric("median_rank", 6.0, 1.5)) == "6.0 (4.5-7.5)"
    assert value_and_interval(make_metric("median_rank", 1234.4, 100.0)) == "1234 (1134-1334)"
    assert numbers(make_metric(value=None)) is None
    assert value_and_interval(make_metric(value=None)) == "undefined"
    assert chance_number(make_metric("median_rank", 6.0, 1.0, chance=63.0)) == "63.0"
    assert chance_number(make_metric()) == ""


def test_a_negative_bound_is_not_taken_for_a_dash(make_metric):
    item = make_metric("auroc_difference", 0.01, 0.03)
    assert value_and_interval(item, "--", "$-$") == "0.010 ($-$0.020 to 0.040)"
    assert value_and_interval(make_metric("auroc_difference", -0.0001, 0.00001)) == "0.000 (0.000-0.000)"


def test_counts_name_the_positives(make_metric):
    assert counts(make_metric()) == "125"
    assert counts(make_metric(n_positive=3)) == "3 / 125"


def test_nothing_is_better_of_a_metric_that_is_not_known():
    assert is_higher_better("macro_auroc") is True
    assert is_higher_better("recall_at_10") is True
    assert is_higher_better("median_rank") is False
    assert is_higher_better("something_new") is None
    assert is_higher_better("auroc_difference") is None


def test_models_of_one_name_are_numbered(make_results, make_metric):
    results = [make_results(make_metric(), model_id=name) for name in ("a", "b", "a")]
    assert model_names(results) == ["a (1)", "b", "a (2)"]


def test_says_what_was_measured_and_how(make_metric):
    item = make_metric(protocol="p", threshold_source="validation")
    assert described(item) == (
        "scans, test split; class set: two findings; labels: manual; protocol: p; thresholds: validation"
    )
    other = make_metric(ci_level=0.9)
    assert interval_method([item, item, other]) == (
        "95% intervals: patient bootstrap, percentile, 1000 resamples; "
        "90% intervals: patient bootstrap, percentile, 1000 resamples"
    )
