import json
import shutil
from datetime import UTC, datetime

import pytest
from pydantic import ValidationError

from radtower.evaluation.bootstrap import Interval
from radtower.evaluation.results import (
    MetricResult,
    Provenance,
    Results,
    figures_folder,
    measured,
    read_results,
    write_results,
)

PROVENANCE = Provenance(dataset="phantoms", class_set="ct_rate_18", label_source="generator")
INTERVAL = Interval(0.6, 0.8, num_resamples=500)
NAN = float("nan")


def make_metric(**fields: object) -> MetricResult:
    base = {
        **PROVENANCE.model_dump(),
        **{"metric": "auroc", "value": 0.7, "ci_low": 0.6, "ci_high": 0.8, "ci_method": "b", "n": 40},
    }
    return MetricResult.model_validate({**base, **fields})


def make_results(*metrics: MetricResult) -> Results:
    created = datetime(2025, 1, 2, 3, 4, tzinfo=UTC)
    return Results(model_id="m", model_revision=None, created=created, phantom=True, metrics=metrics)


def test_results_survive_the_file(tmp_path):
    path = tmp_path / "deep" / "results.json"
    undefined = make_metric(value=None, ci_low=None, ci_high=None, note="one class only", finding="mass")
    results = make_results(make_metric(n_positive=3, threshold_source="validation"), undefined)
    write_results(results, path)
    assert read_results(path) == results
    assert [item.name for item in path.parent.iterdir()] == ["results.json"]
    content = json.loads(path.read_text())
    assert content["schema_version"] == 1
    assert content["created"] == "2025-01-02T03:04:00Z"
    assert content["metrics"][1]["value"] is None
    assert content["metrics"][0]["ci_level"] == 0.95


@pytest.mark.parametrize(
    "field", ["n", "class_set", "label_source", "dataset", "ci_low", "ci_high", "ci_method"]
)
def test_a_metric_without_its_circumstances_is_refused(field):
    content = make_metric().model_dump()
    del content[field]
    with pytest.raises(ValidationError, match=rf"{field}\n  Field required"):
        MetricResult.model_validate(content)


@pytest.mark.parametrize("field", ["class_set", "label_source", "dataset", "metric", "ci_method"])
def test_an_empty_name_is_refused(field):
    with pytest.raises(ValidationError, match=field):
        make_metric(**{field: ""})


@pytest.mark.parametrize("field", ["ci_low", "ci_high"])
def test_a_value_without_an_interval_is_refused(field):
    with pytest.raises(ValidationError, match=r"auroc must have an interval, got value 0\.7"):
        make_metric(**{field: None})


def test_an_undefined_value_needs_a_note_and_no_interval():
    with pytest.raises(ValidationError, match="got note None and 0 bounds"):
        make_metric(value=None, ci_low=None, ci_high=None)
    with pytest.raises(ValidationError, match="got note 'x' and 2 bounds"):
        make_metric(value=None, note="x")


def test_bounds_in_the_wrong_order_are_refused():
    with pytest.raises(ValidationError, match=r"got 0\.9 and 0\.8"):
        make_metric(ci_low=0.9)


@pytest.mark.parametrize("field", ["value", "ci_low"])
def test_nan_is_refused(field):
    with pytest.raises(ValidationError, match=f"{field}\n.*finite"):
        make_metric(**{field: NAN})


def test_an_unknown_field_is_refused():
    with pytest.raises(ValidationError, match="patient"):
        make_metric(patient="x")


def test_a_metric_given_twice_is_refused():
    make_results(make_metric(), make_metric(protocol="other"))
    with pytest.raises(ValidationError, match=r"got auroc \(mass\) twice"):
        make_results(make_metric(finding="mass"), make_metric(finding="mass", value=0.65))


def test_get_finds_the_one_result():
    results = make_results(
        make_metric(finding="mass", value=0.71),
        make_metric(metric="recall_at_5", direction="report_to_image", value=0.72),
        make_metric(metric="recall_at_5", direction="image_to_report", value=0.73),
        make_metric(metric="macro_auroc", value=0.74, protocol="seed"),
        make_metric(metric="macro_auroc", value=0.75, protocol="ensemble"),
    )
    assert results.get("auroc", finding="mass").value == 0.71
    assert results.get("recall_at_5", direction="image_to_report").value == 0.73
    assert results.get("macro_auroc", protocol="ensemble").value == 0.75
    with pytest.raises(ValueError, match="'macro_auroc' must be one result, got 2"):
        results.get("macro_auroc")
    with pytest.raises(KeyError, match=r"'finding': None.*Metrics: auroc, macro_auroc, recall_at_5"):
        results.get("auroc")


@pytest.mark.parametrize("version", [2, "1", None])
def test_an_unknown_schema_version_is_refused(tmp_path, version):
    path = tmp_path / "run" / "results.json"
    path.parent.mkdir()
    path.write_text(json.dumps({**json.loads(make_results().model_dump_json()), "schema_version": version}))
    with pytest.raises(ValueError, match=rf"schema_version must be 1 in run/results\.json, got {version!r}"):
        read_results(path)


def test_a_file_that_is_no_object_is_refused(tmp_path):
    (tmp_path / "results.json").write_text("[]")
    with pytest.raises(ValueError, match=r"schema_version must be 1 in .*/results\.json, got None"):
        read_results(tmp_path / "results.json")


@pytest.mark.parametrize("content", [b"{", b"\xff\xfe\x00"])
def test_a_file_that_is_no_json_is_refused_by_name(tmp_path, content):
    path = tmp_path / "run" / "results.json"
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"^run/results\.json must be the JSON of an evaluation, got"):
        read_results(path)


def test_a_tampered_metric_is_refused(tmp_path):
    path = tmp_path / "run" / "results.json"
    write_results(make_results(make_metric()), path)
    content = json.loads(path.read_text())
    del content["metrics"][0]["n"]
    path.write_text(json.dumps(content))
    told = (
        r"^run/results\.json must have every field of results, got metrics\.0\.n: Field required\. Evaluate"
    )
    with pytest.raises(ValueError, match=told):
        read_results(path)
    del content["phantom"]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"got phantom: Field required and 1 more\. Evaluate again"):
        read_results(path)
    path.write_text(json.dumps({**content, "phantom": True, "metrics": [], "created": "yesterday"}))
    with pytest.raises(ValueError, match=r"run/results\.json must .* got created: Input should be"):
        read_results(path)


def test_created_needs_a_time_zone():
    with pytest.raises(ValidationError, match="timezone"):
        Results(model_id="m", model_revision=None, created="2025-01-02T03:04:00", phantom=True, metrics=())


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path, monkeypatch):
    path = tmp_path / "results.json"
    write_results(make_results(make_metric()), path)
    rows = [tmp_path / f"results.{kind}.parquet" for kind in ("scores", "queries")]
    for row in rows:
        row.write_bytes(b"rows of the last run")
    pictures = _pictures_of(path)

    def fail(_: int) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("os.fsync", fail)
    with pytest.raises(OSError, match="disk full"):
        write_results(make_results(), path)
    assert sorted(tmp_path.iterdir()) == sorted([path, pictures, *rows])
    assert len(list(pictures.iterdir())) == 2
    assert len(read_results(path).metrics) == 1


def test_pictures_of_the_last_run_go_and_what_is_not_ours_stays(tmp_path):
    path = tmp_path / "results.json"
    pictures = _pictures_of(path)
    write_results(make_results(make_metric()), path)
    assert [item.name for item in tmp_path.iterdir()] == ["results.json"]
    for change in ("notes.txt", None):
        _pictures_of(path)
        if change:
            (pictures / change).touch()
        else:  # pictures without captions are not of an evaluation
            (pictures / "captions.json").unlink()
        write_results(make_results(), path)
        assert (pictures / "map.png").is_file()
        shutil.rmtree(pictures)
    _pictures_of(tmp_path / "elsewhere.json")
    pictures.symlink_to(tmp_path / "elsewhere.figures")
    write_results(make_results(), path)
    assert (tmp_path / "elsewhere.figures" / "map.png").is_file()


def _pictures_of(path):
    folder = figures_folder(path)
    folder.mkdir()
    for name in ("captions.json", "map.png"):
        (folder / name).touch()
    return folder


def test_a_measured_number_carries_everything():
    result = measured("auroc", 0.7, INTERVAL, PROVENANCE, n=40, n_positive=4, finding="mass", note="why")
    assert (result.value, result.ci_low, result.ci_high, result.ci_level) == (0.7, 0.6, 0.8, 0.95)
    assert result.ci_method == "patient bootstrap, percentile, 500 resamples"
    assert (result.n, result.n_positive, result.finding, result.note) == (40, 4, "mass", "why")
    assert (result.dataset, result.class_set, result.label_source) == ("phantoms", "ct_rate_18", "generator")


def test_undefined_resamples_are_said():
    result = measured("auroc", 0.7, Interval(0.6, 0.8, num_resamples=500, num_undefined=12), PROVENANCE, n=40)
    assert result.note == "12 of 500 resamples undefined and left out"


@pytest.mark.parametrize(("value", "is_outside"), [(0.59, True), (0.6, False), (0.8, False), (0.81, True)])
def test_a_value_outside_its_interval_is_pointed_out(value, is_outside):
    result = measured("macro_auroc", value, Interval(0.6, 0.8, num_resamples=500), PROVENANCE, n=9)
    note = "the value lies outside its percentile interval: there are too few patients for one"
    assert result.note == (note if is_outside else None)


def test_nan_becomes_null_with_its_reason():
    result = measured("auroc", NAN, INTERVAL, PROVENANCE, n=40, note="x")
    assert (result.value, result.ci_low, result.ci_high) == (None, None, None)
    assert result.note == "x; undefined: one class only"


def test_a_number_without_an_interval_becomes_null_with_its_reason():
    result = measured("auroc", 0.7, Interval(NAN, NAN), PROVENANCE, n=40)
    assert (result.value, result.ci_low) == (None, None)
    assert "no interval: fewer than two patients" in result.note
