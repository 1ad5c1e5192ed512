import json

import pytest

from radtower.hub_cards.labels.agreement_table import agreement_text, read_agreement

GIVEN = {
    "dataset": "gold_reports",
    "class_set": "two_findings",
    "label_source": "two readers",
    "threshold_source": "status of the label table",
    "protocol": "labeler endpoint; prompt v1",
    "ci_level": 0.95,
    "ci_method": "percentile, 50 resamples",
    "n": 57,
    "note": None,
}


def _item(metric, value=None, low=None, high=None, **fields):
    return GIVEN | {"metric": metric, "value": value, "ci_low": low, "ci_high": high} | fields


METRICS = [
    _item("auroc", 0.91263, 0.88, 0.94, finding="pleural_effusion", n=43, n_positive=11),
    _item("macro_auroc", 0.98314, 0.97121, 0.99017, note="mean of 1 of 2 findings"),
    _item("f1", finding="nodule", n_positive=0, note="undefined: one class"),
    _item("f1", 0.8, 0.75, 0.85, finding="pleural_effusion", n=41, n_positive=11),
    _item("exact_row", 0.70175, 0.6, 0.8, n=31),
]


def test_findings_are_rows_and_metrics_columns_with_interval_and_n():
    text = agreement_text({"metrics": METRICS})
    assert text.splitlines() == [
        "Data: gold_reports; class set: two_findings; label source: two readers; thresholds: status of the "
        "label table; labeler endpoint; prompt v1; in brackets 95 % intervals (percentile, 50 resamples).",
        "",
        "| finding | n | present | auroc | f1 |",
        "| --- | --- | --- | --- | --- |",
        "| pleural effusion | 43 | 11 | 0.913 (0.880 to 0.940) | 0.800 (0.750 to 0.850), n 41 |",
        "| nodule | 57 | 0 |  | undefined: one class |",
        "| mean of the findings | 57 |  | 0.983 (0.971 to 0.990) |  |",
        "",
        "- exact row: 0.702 (0.600 to 0.800), n 31",
        "- mean of 1 of 2 findings: auroc",
    ]


def test_a_note_says_what_it_is_about():
    def left_out(num):
        return f"{num} of 2000 resamples undefined and left out"

    keys = ("lung_nodule", "edema", "effusion")
    items = [_item("ece", 0.1, 0, 0.2, finding=key, note="few reports") for key in keys]
    items += [
        _item("f1", 0.5, 0.4, 0.6, finding="lung_nodule", note=f"by hand; {left_out(88)}"),
        _item("f1", 0.5, 0.4, 0.6, finding="edema", note=f"by hand; {left_out(1)}"),
        _item("f1", 0.5, 0.4, 0.6, finding="effusion", note=None),
        _item("macro_f1", 0.5, 0.4, 0.6, note=f"mean of 3 of 3 findings; {left_out(7)}"),
        _item("macro_ece", 0.1, 0, 0.2, note="mean of 3 of 3 findings; few reports"),
    ]
    lines = agreement_text({"metrics": items}).splitlines()
    cells = {line.split(" | ")[0].strip("| "): line.rstrip(" |").rpartition(" | ")[2] for line in lines}
    assert cells["lung nodule"] == "0.500 (0.400 to 0.600), 88 undefined"
    assert cells["edema"] == "0.500 (0.400 to 0.600), 1 undefined"
    assert cells["effusion"] == "0.500 (0.400 to 0.600)"
    assert cells["mean of the findings"] == "0.500 (0.400 to 0.600), 7 undefined"
    assert [line for line in lines if line.startswith("- ")] == [
        "- few reports: ece",
        "- by hand: f1 of lung nodule, edema",
        "- mean of 3 of 3 findings: f1; ece",
        "- undefined: so many of 2000 resamples, not in the interval",
    ]


def test_a_note_about_everything_stands_alone():
    note = "2 reports without silver labels left out"
    items = [_item(metric, 0.5, 0.4, 0.6, finding="edema", note=note) for metric in ("auroc", "f1")]
    items.append(_item("kappa", finding="edema", note=f"{note}; undefined: no positive"))
    lines = agreement_text({"metrics": items}).splitlines()
    assert [line for line in lines if line.startswith("- ")] == [f"- {note}"]


def test_each_comparison_has_a_table_of_its_own():
    other = _item(
        "auroc", 0.5, 0.4, 0.6, finding="nodule", label_source="RadBERT (output of a model, not gold)"
    )
    parts = agreement_text({"metrics": [*METRICS, other], "not_measured": ["edema: no gold", "x"]}).split(
        "Data: "
    )
    assert len(parts) == 3
    assert "label source: RadBERT (output of a model, not gold)" in parts[2]
    assert "| nodule | 57 |  | 0.500 (0.400 to 0.600) |" in parts[2]
    assert parts[2].endswith("Not measured: edema: no gold; x.")


@pytest.mark.parametrize("measured", [None, {"metrics": []}])
def test_nothing_measured_is_said(measured):
    assert agreement_text(measured) == "Not measured."


def test_results_of_another_labeler_are_refused(tmp_path):
    path = tmp_path / "results.json"
    path.write_text(json.dumps({"metrics": METRICS, "phantom": False, "model_id": "a/b, /home/me/labeler"}))
    assert read_agreement(path, ["/data/labeler", "a/b"])["metrics"] == METRICS
    with pytest.raises(ValueError, match=r"of these labels, 'a/c', got those of 'a/b, labeler'"):
        read_agreement(path, ["a/c"])


@pytest.mark.parametrize(
    ("measured", "of_table"),
    [("0123456789ab", "ba9876543210"), (None, "0123456789ab"), ("0123456789ab", None)],
)
def test_results_of_other_settings_are_refused(tmp_path, measured, of_table):
    path = tmp_path / "results.json"
    content = {"metrics": METRICS, "phantom": False, "model_id": "a/b", "model_revision": measured}
    path.write_text(json.dumps(content))
    assert read_agreement(path, ["a/b"], measured)["metrics"] == METRICS
    with pytest.raises(ValueError, match="results must be of the generation of these labels") as error:
        read_agreement(path, ["a/b"], of_table)
    assert f"labels, {of_table or 'none'}, got {measured or 'none'}. Evaluate" in str(error.value)


def test_results_must_be_a_results_file(tmp_path):
    assert read_agreement(None, ["a/b"]) is None
    with pytest.raises(FileNotFoundError, match=r"results must be a file, got .*nowhere\.json"):
        read_agreement(tmp_path / "nowhere.json", ["a/b"])
    (tmp_path / "other.json").write_text(json.dumps({"metrics": []}))
    with pytest.raises(ValueError, match=r"results must be a results\.json, got other\.json"):
        read_agreement(tmp_path / "other.json", ["a/b"])
