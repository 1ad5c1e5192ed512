import pytest

from radtower.evaluation.reports.result_tables import result_tables


def cells(row):
    return [None if cell.item is None else cell.item.value for cell in row.cells]


def test_findings_are_rows_and_metrics_are_columns(make_results, zero_shot_metrics):
    (table,) = result_tables([make_results(*zero_shot_metrics())])
    assert table.metrics == ("auroc", "average_precision")
    assert [(row.name, row.counts) for row in table.rows] == [
        ("mean of the findings", "125"),
        ("pleural effusion", "30 / 125"),
        ("lung nodule", "0 / 120"),
    ]
    assert [cells(row) for row in table.rows] == [[0.7, None], [0.7, 0.5], [None, None]]
    assert table.has_positives
    assert table.row_kind == "finding"
    assert table.footnotes == (("a", "mean of 1 of 2 findings"), ("b", "undefined: one class only"))
    assert [cell.marks for row in table.rows for cell in row.cells] == [("a",), (), (), (), ("b",), ("b",)]
    assert not table.has_best


def test_chance_is_one_line_where_all_rows_share_it(make_results, retrieval_metrics):
    (table,) = result_tables([make_results(*retrieval_metrics())])
    assert [row.name for row in table.rows] == ["image to report", "report to image"]
    assert table.chance == ("0.008", "0.040", "63.0")
    assert table.sides == ()
    assert not table.has_positives
    assert table.row_kind == "direction"
    # What holds for all is said once, without marks.
    assert table.remarks == (
        "95% intervals: patient bootstrap, percentile, 1000 resamples",
        "queries resampled, gallery fixed",
    )
    assert table.footnotes == ()


def test_chance_that_differs_has_a_column(make_results, make_metric):
    items = [
        make_metric("auroc", finding="x"),
        make_metric("average_precision", finding="x", chance=0.1),
        make_metric("average_precision", finding="y", chance=0.2),
        make_metric("macro_average_precision"),
    ]
    (table,) = result_tables([make_results(*items)])
    assert table.chance == ()
    assert table.sides == ("chance of average precision",)
    assert [(row.name, row.sides) for row in table.rows] == [
        ("mean of the findings", ("",)),
        ("x", ("0.100",)),
        ("y", ("0.200",)),
    ]


def test_models_on_other_studies_have_chances_of_their_own(make_results, make_metric):
    both = [
        make_results(*(make_metric("recall_at_1", finding=f, chance=c) for f, c in pairs), model_id=name)
        for name, pairs in (("a", (("x", 0.1), ("y", 0.2))), ("b", (("x", 0.3), ("y", 0.2))))
    ]
    assert [row.sides for row in result_tables(both)[0].rows] == [("0.100 / 0.300",), ("0.200",)]


def test_thresholds_have_a_column_and_no_footnote(make_results, make_metric):
    def items(value):
        return [
            make_metric("macro_f1", threshold_source="v"),
            make_metric(
                "f1", finding="x", threshold=value, note=f"threshold > {value}", threshold_source="v"
            ),
            make_metric("recall", finding="x", threshold=value, threshold_source="v"),
        ]

    (table,) = result_tables([make_results(*items(0.123456))])
    assert table.sides == ("threshold",)
    assert [row.sides for row in table.rows] == [("",), ("> 0.1235 / >= 0.1235",)]
    assert table.footnotes == ()
    (both,) = result_tables([make_results(*items(v), model_id=n) for n, v in (("a", 0.5), ("b", -2.0))])
    assert both.sides == ("threshold, a", "threshold, b")
    assert both.rows[1].sides == ("> 0.5 / >= 0.5", "> -2 / >= -2")


def test_notes_are_split_and_those_that_differ_in_a_count_are_one(make_results, make_metric):
    notes = [
        "chosen here; 28 patients in the class",
        "42 patients in the class",
        "chosen here; 28 of 9 left out",
    ]
    items = [make_metric(finding=f"f{i}", note=note) for i, note in enumerate(notes)]
    (table,) = result_tables([make_results(*items)])
    assert [cell.marks for row in table.rows for cell in row.cells] == [
        ("a", "b"),
        ("b",),
        ("a", "c"),
    ]  # letters in their order
    assert table.footnotes == (
        ("a", "chosen here"),
        ("b", "28 to 42 patients in the class"),
        ("c", "28 of 9 left out"),
    )


def test_another_source_of_thresholds_is_another_table(make_results, make_metric):
    items = [make_metric("f1", threshold_source=source) for source in ("validation", "test_oracle")]
    tables = result_tables([make_results(*items)])
    assert [table.provenance.threshold_source for table in tables] == ["validation", "test_oracle"]


def test_a_number_of_other_studies_has_a_row_of_its_own(make_results, make_metric):
    items = [make_metric("auroc", n=125, finding="x"), make_metric("f1", n=80, finding="x")]
    (table,) = result_tables([make_results(*items)])
    assert [(row.counts, cells(row)) for row in table.rows] == [("125", [0.8, None]), ("80", [None, 0.8])]


def test_models_stand_side_by_side(make_results, zero_shot_metrics):
    both = [
        make_results(*zero_shot_metrics(shift), model_id=name) for name, shift in (("a", 0.0), ("b", 0.11))
    ]
    (table,) = result_tables(both)
    assert table.models == ("a", "b")
    effusion = next(row for row in table.rows if row.name == "pleural effusion")
    assert cells(effusion) == pytest.approx([0.7, 0.81, 0.5, 0.61])
    # 0.65-0.75 and 0.76-0.86: apart, so b is best; once they touch, nobody is.
    assert [cell.is_best for cell in effusion.cells] == [False, True, False, True]
    near = [
        make_results(*zero_shot_metrics(shift), model_id=name) for name, shift in (("a", 0.0), ("b", 0.09))
    ]
    assert not result_tables(near)[0].has_best


def test_a_low_rank_is_the_best(make_results, make_metric):
    both = [
        make_results(make_metric("median_rank", value, 1.0), model_id=name)
        for name, value in (("far", 9.0), ("near", 3.0), ("middle", 6.0))
    ]
    (table,) = result_tables(both)
    assert [cell.is_best for cell in table.rows[0].cells] == [False, True, False]


@pytest.mark.parametrize("metric", ["something_new", "auroc_difference"])
def test_nothing_is_best_where_better_is_not_known(make_results, make_metric, metric):
    both = [
        make_results(make_metric(metric, value), model_id=name) for name, value in (("a", 0.1), ("b", 0.9))
    ]
    assert not result_tables(both)[0].has_best


def test_nothing_is_best_against_what_was_not_measured(make_results, make_metric):
    both = [
        make_results(make_metric("auroc", 0.9), model_id="a"),
        make_results(make_metric("auroc", None), model_id="b"),
        make_results(make_metric("auroc", 0.2), model_id="c"),
    ]
    assert not result_tables(both)[0].has_best


def test_many_metrics_are_several_tables(make_results, make_metric):
    names = [f"recall_at_{k}" for k in range(1, 9)]
    for num_metrics, expected in ((4, [4]), (5, [3, 2]), (8, [4, 4])):
        one = result_tables([make_results(*(make_metric(name) for name in names[:num_metrics]))])
        assert [len(table.metrics) for table in one] == expected
        assert sum([table.metrics for table in one], ()) == tuple(names[:num_metrics])
    models = [make_results(*(make_metric(name) for name in names), model_id=m) for m in "abcdefg"]
    assert [(len(t.metrics), len(t.rows[0].cells)) for t in result_tables(models)] == [(1, 7)] * 8


def test_many_footnotes_have_their_own_letters(make_results, make_metric):
    items = [make_metric("auroc", None, finding=f"f{i}", note=f"undefined: reason {i}") for i in range(28)]
    (table,) = result_tables([make_results(*items)])
    marks = [mark for mark, _ in table.footnotes]
    assert marks[:2] + marks[25:] == ["a", "b", "z", "aa", "ab"]
    assert dict(table.footnotes)["ab"] == "undefined: reason 27"


def test_results_without_a_metric_are_refused(make_results):
    with pytest.raises(ValueError, match=r"must hold a metric, got 1 without. Evaluate first"):
        result_tables([make_results()])
