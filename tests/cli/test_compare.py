import json

import pytest
from typer.testing import CliRunner

from radtower.cli.main import app
from radtower.evaluation.comparison.comparison import Comparisons
from radtower.evaluation.results import MetricResult, Provenance, Results, write_results


def write(path, value: float, **changes):
    provenance = Provenance(dataset="toy", class_set="toy", label_source="drawn")
    metric = MetricResult(
        **provenance.model_dump(),
        metric="macro_auroc",
        value=value,
        ci_low=0.0,
        ci_high=1.0,
        ci_method="x",
        n=9,
    )
    parts = {
        "model_id": path.stem,
        "model_revision": None,
        "created": "2026-01-02T03:04:05Z",
        "phantom": False,
    }
    write_results(Results.model_validate({**parts, "metrics": (metric,), **changes}), path)
    return str(path)


@pytest.fixture
def files(tmp_path):
    return [write(tmp_path / f"{name}.json", value) for name, value in (("a", 0.5), ("b", 0.75), ("c", 0.25))]


def run(*arguments):
    return CliRunner().invoke(app, ["compare", *arguments], env={"COLUMNS": "200"})


def test_all_are_compared_with_the_first(files, tmp_path):
    target = tmp_path / "new" / "comparison.json"
    done = run(*files, "-o", str(target))
    assert done.exit_code == 0, done.output
    assert "A: a, evaluated 2026-01-02 03:04" in done.stdout
    assert "B: b" in done.stdout
    assert "C - A" in done.stdout
    assert "0.750 (0.000 to 1.000)" in done.stdout
    assert "[1] no paired interval: rows are not there" in done.stdout
    assert done.stdout.endswith(f"Written: {target}\n")
    assert "Research use only, not for diagnosis." in done.stdout
    written = Comparisons.model_validate_json(target.read_text())
    assert [c.second.model_id for c in written.comparisons] == ["b", "c"]
    assert [c.differences[0].second.value for c in written.comparisons] == [0.75, 0.25]


def test_json_is_one_document_on_stdout(files):
    done = run(*files[:2], "--json")
    content = json.loads(done.stdout)
    assert content["use"] == "Research use only, not for diagnosis."
    assert content["comparisons"][0]["differences"][0]["first"]["value"] == 0.5


def test_markdown_is_printed(files):
    done = run(*files[:2], "--markdown")
    assert done.stdout.startswith("## B against A")
    assert "| macro auroc | 9 | 0.500 (0.000 to 1.000) |" in done.stdout


def test_what_cannot_be_compared_is_refused_before_work(files, tmp_path):
    for arguments, message in (
        ([files[0]], "results must be 2 to 26 files, got 1"),
        ([*files, "--markdown", "--json"], "must not both be given"),
        ([*files, "-o", files[1]], "-o must not be one of the results, got 'b.json'"),
        ([*files, "-o", str(tmp_path / "x.csv")], "-o must be a file that ends in .json"),
        ([files[0], str(tmp_path / "none.json")], "got no none.json there"),
    ):
        error = run(*arguments).exception
        assert isinstance(error, (ValueError, FileNotFoundError))
        assert message in str(error)
