import json

import pytest

pytest.importorskip("matplotlib")

from radtower.cli import extras
from radtower.evaluation.results import MetricResult, Results, read_results, write_results


@pytest.fixture
def results(tmp_path):
    metric = MetricResult(
        metric="auroc", value=0.8, ci_low=0.7, ci_high=0.9, ci_method="bootstrap", n=9, n_positive=3,
        finding="x", dataset="d", class_set="c", label_source="manual",
    )  # fmt: skip
    path = tmp_path / "results.json"
    created = "2026-01-01T00:00:00Z"
    write_results(
        Results(model_id="tower", model_revision=None, created=created, phantom=False, metrics=(metric,)),
        path,
    )
    return path


def test_writes_page_tables_and_pictures(radtower, results, tmp_path):
    folder = tmp_path / "new" / "report"
    done = radtower("report", results, "-o", folder, "--title", "My page", "--command", "radtower evaluate x")
    assert (done.code, done.err) == (0, "")
    assert f"Page: {folder / 'report.html'}" in done.out.replace("\n", " ")
    assert "Beside it: tables.md, tables.tex, forest-1.png" in done.out
    page = (folder / "report.html").read_text()
    assert "<title>My page</title>" in page
    assert "radtower evaluate x" in page
    assert "0.800 (0.700-0.900)" in (folder / "tables.md").read_text()


def test_many_names_fit_a_terminal(radtower, results, tmp_path):
    of_one = read_results(results)
    metrics = tuple(of_one.metrics[0].model_copy(update={"protocol": f"protocol {i}"}) for i in range(4))
    write_results(of_one.model_copy(update={"metrics": metrics}), results)
    lines = radtower("report", results, "-o", tmp_path / "out").out.splitlines()[-2:]
    assert lines[0] == "Beside it: tables.md, tables.tex, forest-1.png, forest-2.png, forest-3.png,"
    assert lines[1] == "  forest-4.png, pictures.json"


def test_json_names_what_was_written(radtower, results, tmp_path):
    done = radtower("report", results, "-o", tmp_path / "out", "--json")
    written = json.loads(done.out)["written"]
    assert [path.rsplit("/", 1)[1] for path in written] == [
        "report.html",
        "tables.md",
        "tables.tex",
        "forest-1.png",
        "pictures.json",
    ]


def test_unusable_input_is_one_line(radtower, results, tmp_path):
    done = radtower("report", tmp_path / "none.json", "-o", tmp_path / "out")
    assert (done.code, done.out) == (2, "")
    assert done.err.startswith("error: results must be a file, got no none.json there")
    done = radtower("report", results, "-o", results)
    assert (done.code, "-o must be a folder" in done.err) == (2, True)


def test_says_which_extra_is_missing(radtower, results, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "plots", ("no_such_module",))
    done = radtower("report", results, "-o", tmp_path / "out")
    assert (done.code, "extra 'plots'" in done.err) == (2, True)
