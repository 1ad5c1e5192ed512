import pytest

from radtower.evaluation.reports.result_tables import result_tables
from radtower.evaluation.reports.text_tables import markdown_tables
from radtower.evaluation.reports.variants import SCRIPT, Variant, section_of, variant_names, variant_of
from radtower.evaluation.retrieval.images.legacy_ct_clip import VARIANTS


@pytest.mark.parametrize(
    ("metric", "protocol", "variant", "shared"),
    [
        ("auroc", "prompts", Variant("tower"), ("auroc", "prompts")),
        ("auroc", None, Variant("tower"), ("auroc", None)),
        (
            "label_f1_baseline",
            "best of top 5; random report",
            Variant("tower", "random report"),
            ("label_f1", "best of top 5"),
        ),
        (
            "macro_label_f1_difference",
            "top 1; model minus most common report",
            Variant("tower", "most common report", is_difference=True),
            ("macro_label_f1", "top 1"),
        ),
        ("mrr_difference", "model minus bm25", Variant("tower", "bm25", is_difference=True), ("mrr", None)),
        (
            "recall_at_5_difference",
            "equal texts; with abnormal ones; model minus a; b",
            Variant("tower", "a; b", is_difference=True),
            ("recall_at_5", "equal texts; with abnormal ones"),
        ),
        (
            "mean_jaccard_at_5_oracle_baseline",
            "CT-CLIP script, list emptied",
            Variant("tower", "label oracle", way="list emptied"),
            ("mean_jaccard_at_5", "CT-CLIP script"),
        ),
        # What is not of these kinds keeps its name.
        ("f1_baseline", "prompts", Variant("tower"), ("f1_baseline", "prompts")),
        ("auroc_difference", "prompts", Variant("tower"), ("auroc_difference", "prompts")),
        ("f1", "a; b", Variant("tower"), ("f1", "a; b")),
    ],
)
def test_a_number_is_told_from_whose_it_is(make_metric, metric, protocol, variant, shared):
    found, item = variant_of("tower", make_metric(metric, protocol=protocol))
    assert found == variant
    assert (item.metric, item.protocol) == shared
    assert (item.value, item.n, item.ci_low) == (0.8, 125, 0.75)


def test_all_ways_of_the_script_are_one_section(make_metric):
    found = [variant_of("tower", make_metric(protocol=way)) for way in VARIANTS]
    assert {section_of(item) for _, item in found} == {("scans, test split", "manual", SCRIPT)}
    assert [f"{SCRIPT}, {variant.way}" for variant, _ in found] == list(VARIANTS)


def test_models_come_first_and_a_difference_behind_its_baseline():
    one = [
        Variant("a"),
        Variant("a", "random", is_difference=True),
        Variant("a", "bm25"),
        Variant("a", "random"),
    ]
    assert list(variant_names(one).values()) == ["a", "random", "a minus random", "bm25"]
    two = [*one, Variant("b"), Variant("b", "random")]
    assert list(variant_names(two).values()) == [
        *("a", "b", "random (a)", "random (b)", "a minus random", "bm25 (a)"),
    ]
    ways = [Variant("a", "oracle", way="1"), Variant("a", way="2"), Variant("a", way="1")]
    assert list(variant_names(ways).values()) == ["1, a", "1, oracle", "2, a"]


@pytest.fixture
def read_outs(make_metric):
    """What is found beside one baseline, with differences, of which one is clear; and one finding."""

    def make(shift=0.0):
        found = {"protocol": "top 1", "direction": "image_to_report"}
        other = {**found, "protocol": "top 1; random report", "note": "one draw per volume"}
        minus = {**found, "protocol": "top 1; model minus random report"}
        return [
            make_metric("macro_label_f1", 0.5 + shift, **found),
            make_metric("label_jaccard", 0.4, **found),
            make_metric("label_f1", 0.6, finding="lung_nodule", n_positive=9, **found),
            make_metric("macro_label_f1_baseline", 0.3, **other),
            make_metric("label_jaccard_baseline", 0.38, **other),
            make_metric("macro_label_f1_difference", 0.2 + shift, **minus),
            make_metric("label_jaccard_difference", 0.02, **minus),
        ]

    return make


def test_baselines_and_differences_are_rows_of_one_table(make_results, read_outs):
    (table,) = result_tables([make_results(*read_outs())])
    assert table.provenance.protocol == "top 1"
    assert table.models == ("tower",)
    assert table.metrics == ("label_f1", "label_jaccard")
    shown = [
        (row.name, [None if cell.item is None else cell.item.value for cell in row.cells])
        for row in table.rows
    ]
    mean = "mean of the findings, image to report"
    assert shown == [
        (f"{mean}: tower", [0.5, None]),
        (f"{mean}: random report", [0.3, None]),
        (f"{mean}: tower minus random report", [0.2, None]),
        ("image to report: tower", [None, 0.4]),
        ("image to report: random report", [None, 0.38]),
        ("image to report: tower minus random report", [None, 0.02]),
        ("lung nodule, image to report", [0.6, None]),
    ]
    marks = [[cell.marks for cell in row.cells if cell.item is not None] for row in table.rows]
    assert marks == [[()], [("a",)], [("*",)], [()], [("a",)], [()], [()]]
    assert table.footnotes == (
        ("*", "the interval of the paired difference excludes 0"),
        ("a", "one draw per volume"),
    )


def test_a_note_that_all_but_the_differences_have_is_said_once(make_results, make_metric):
    note = "gallery fixed"
    items = [
        make_metric("mrr", note=note),
        make_metric("mrr_baseline", protocol="x; random", note=note),
        make_metric("mrr", protocol="x", note=note),
        make_metric("mrr_difference", 0.01, protocol="x; model minus random"),
    ]
    table = result_tables([make_results(*items)])[1]
    assert len(table.rows) == 3
    assert table.remarks[1:] == (note,)
    assert table.footnotes == ()


def test_a_difference_below_zero_is_clear_and_an_undefined_one_is_not(make_results, make_metric):
    minus = {"protocol": "model minus bm25"}
    items = [
        make_metric("mrr"),
        make_metric("mrr_difference", -0.2, **minus),
        make_metric("ndcg_difference", None, **minus),
    ]
    (table,) = result_tables([make_results(*items)])
    assert [cell.marks for cell in table.rows[1].cells] == [("*",), ("a",)]


def test_the_file_of_a_baseline_stands_between_the_model_and_the_difference(make_results, make_metric):
    model = make_results(
        make_metric("mrr", 0.7, protocol="equal texts"),
        make_metric("mrr_difference", 0.2, protocol="equal texts; model minus bm25"),
    )
    baseline = make_results(make_metric("mrr", 0.5, protocol="equal texts"), model_id="bm25")
    (table,) = result_tables([model, baseline])
    assert [(row.name, row.cells[0].item.value) for row in table.rows] == [
        ("all: tower", 0.7),
        ("all: bm25", 0.5),
        ("all: tower minus bm25", 0.2),
    ]
    assert table.models == ("tower, bm25",)


def test_no_number_of_two_models_is_lost_in_the_rows(make_results, read_outs):
    runs = [make_results(*read_outs(shift), model_id=name) for name, shift in (("a", 0.0), ("b", 0.1))]
    tables = result_tables(runs)
    values = [cell.item.value for t in tables for row in t.rows for cell in row.cells if cell.item]
    assert sorted(values) == sorted(item.value for run in runs for item in run.metrics)
    names = [row.name for table in tables for row in table.rows]
    assert len(set(names)) == len(names) == 14


def test_a_mark_is_inert_in_markdown(make_results, read_outs):
    text = markdown_tables([make_results(*read_outs())])
    assert r"| 0.200 (0.150-0.250) (\*) |" in text
    assert r"(\*) the interval of the paired difference excludes 0." in text
