"""``radtower evaluate text``: what is printed is what is written."""

import json
import os
from pathlib import Path

import pandas as pd
import pytest

from radtower.cli import extras
from radtower.data.layouts.report_sets import read_openi_reports
from radtower.data.reports.report_corpus import write_report_table
from radtower.evaluation.results import read_results
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder


@pytest.fixture
def encoder_folder(tiny_llm_folder, tmp_path) -> Path:
    encoder = LLMBiEncoder.from_llm(tiny_llm_folder, pooling="mean", max_length=256)
    encoder.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"


@pytest.fixture
def table(tmp_path) -> Path:
    rows = 30
    frame = pd.DataFrame(
        {
            "study_id": [f"s{row}" for row in range(rows)],
            "patient_id": [f"p{row}" for row in range(rows)],
            "split": ["train", "validation", "test"] * 10,
            "findings": [f"There is a nodule of {row} mm." for row in range(rows)],
            "impression": [f"Small left nodule, {row} mm. No effusion." for row in range(rows)],
            "nodule": [1, 1, 0] * 10,
        }
    )
    frame.to_csv(tmp_path / "table.csv", index=False)
    return tmp_path / "table.csv"


def test_a_model_is_measured_beside_its_baselines(radtower, encoder_folder, tiny_llm_folder, table, tmp_path):
    output = tmp_path / "out" / "results.json"
    options = ("--untrained", tiny_llm_folder, "--resamples", 20, "--task", "retrieval", "--task", "negation")
    done = radtower("evaluate", "text", encoder_folder, table, "-o", output, *options)
    assert done.code == 0, done.err
    results = read_results(output)
    assert results.model_id == "encoder"
    names = {"bm25", f"untrained-{tiny_llm_folder.name}"}
    assert {path.name for path in output.parent.iterdir()} == {
        "results.json",
        *(f"results.{name}.json" for name in names),
    }
    item = results.get("mrr", direction="findings_to_impression", protocol="equal texts are hits")
    assert (item.n, item.dataset) == (10, "table (test)")
    assert f"{item.value:.2f} ({item.ci_low:.2f}-{item.ci_high:.2f})" in done.out
    assert "recall@5" in done.out
    assert "excludes 0" in done.out
    assert read_results(output.with_name("results.bm25.json")).model_id == "bm25"


def test_json_holds_model_and_baselines(radtower, encoder_folder, table, tmp_path):
    options = ("--baseline", encoder_folder, "--no-bm25", "--resamples", 20, "--task", "negation", "--json")
    done = radtower("evaluate", "text", encoder_folder, table, "-o", tmp_path / "r.json", *options)
    assert done.code == 2
    assert "got ['encoder', 'encoder']" in done.err
    done = radtower("evaluate", "text", encoder_folder, table, "-o", tmp_path / "r.json", *options[2:])
    content = json.loads(done.out)
    assert content["baselines"] == {}
    assert [m["metric"] for m in content["model"]["metrics"]] == ["negation_sensitivity"]
    assert content["model"]["metrics"][0]["n"] == read_results(tmp_path / "r.json").metrics[0].n


def test_an_unknown_task_or_split_is_refused(radtower, encoder_folder, table, tmp_path):
    arguments = ("evaluate", "text", encoder_folder, table, "-o", tmp_path / "r.json")
    assert "got ['bleu']" in radtower(*arguments, "--task", "bleu").err
    assert "got 'dev'" in radtower(*arguments, "--split", "dev").err
    assert not (tmp_path / "r.json").exists()


def test_what_could_not_be_written_is_refused_before_the_work(radtower, encoder_folder, table, tmp_path):
    arguments = ("evaluate", "text", encoder_folder, table, "--task", "negation", "--no-bm25", "-o")
    assert "-o must be a file that ends in .json, got 'r.txt'" in radtower(*arguments, tmp_path / "r.txt").err
    (tmp_path / "file").write_text("")
    done = radtower(*arguments, tmp_path / "file" / "r.json")
    assert (done.code, "Measuring" in done.err) == (2, False)
    done = radtower(*arguments, tmp_path / "r.json", "--label-source", " ")
    assert "--label-source must say who gave the labels" in done.err


def test_a_limit_a_phantom_and_a_task_without_questions(radtower, encoder_folder, table, tmp_path):
    options = ("--no-bm25", "--resamples", 20, "--limit", 4, "--phantom")
    done = radtower("evaluate", "text", encoder_folder, table, "-o", tmp_path / "r.json", *options)
    assert done.code == 0, done.err
    results = read_results(tmp_path / "r.json")
    assert results.phantom
    assert {m.n for m in results.metrics if m.metric == "mrr"} == {4}
    assert "Not measured: error discrimination, findings_impression: no kind of error has 10" in done.out
    assert len(results.not_measured) == done.out.count("Not measured: ") == 5
    assert "phantom results" in done.out
    assert "undefined" not in done.out


def test_bm25_needs_its_extra(radtower, encoder_folder, table, tmp_path, monkeypatch):
    monkeypatch.setitem(extras.EXTRAS, "text", ("no_such_module",))
    done = radtower("evaluate", "text", encoder_folder, table, "-o", tmp_path / "r.json")
    assert done.code == 2
    assert "needs no_such_module from the extra 'text'" in done.err


@pytest.mark.slow
def test_bm25_finds_real_impressions_better_than_a_random_model(radtower, encoder_folder, tmp_path):
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to a folder with real reports")
    reports = Path(os.environ["RADTOWER_REAL_DATA"]) / "openi_reports" / "reports.csv"
    write_report_table(read_openi_reports(reports), tmp_path / "table.parquet")
    output = tmp_path / "results.json"
    options = ("--task", "retrieval", "--resamples", 200)
    done = radtower("evaluate", "text", encoder_folder, tmp_path / "table.parquet", "-o", output, *options)
    assert done.code == 0, done.err
    key = {"direction": "impression_to_findings", "protocol": "equal texts are hits"}
    words = read_results(tmp_path / "results.bm25.json").get("recall_at_10", **key)
    model = read_results(output).get("recall_at_10", **key)
    assert (words.n, model.n) == (356, 356)
    assert words.ci_low > model.ci_high
    assert words.value > 0.4
