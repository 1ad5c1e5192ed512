"""``radtower evaluate labels``: what is printed is what is written, and nothing is dropped in silence."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from PIL import Image

from radtower.cli import extras
from radtower.evaluation.results import read_results
from radtower.labeling.findings import Status, load_findings
from radtower.labeling.label_table import LabelRow, stream_labels, write_labels
from radtower.processing.report_text import report_sha256

KEYS = ("emphysema", "pleural_effusion")
P, A, U, N = Status.PRESENT, Status.ABSENT, Status.UNCERTAIN, Status.NOT_MENTIONED
NUM = 24


@pytest.fixture
def write_table(tmp_path):
    """Write a label table of (id, text, statuses or None, scores or None)."""

    def write(reports, keys=KEYS, findings_set="ct_rate_18[emphysema,pleural_effusion]"):
        rows = [
            LabelRow(
                report_id=name,
                report_sha256=report_sha256(text),
                status=dict.fromkeys(keys) if statuses is None else dict(zip(keys, statuses, strict=True)),
                score=dict.fromkeys(keys) if scores is None else dict(zip(keys, scores, strict=True)),
                evidence=dict.fromkeys(keys, None if statuses is None else "secret words"),
                labeler="llm",
                model_id="/models/small-llm",
                prompt_version="scoring-1",
                findings_set=findings_set,
                error="timeout" if statuses is None else None,
            )
            for name, text, statuses, scores in reports
        ]
        write_labels(rows, tmp_path / "labels.parquet")
        return tmp_path / "labels.parquet"

    return write


def truth_of(row):
    return [row % 3 == 0, row % 2 == 0]


@pytest.fixture
def labels(write_table):
    """Right in all rows but 4, where emphysema is missed with a score of 0.01; row 7 failed."""
    reports = []
    for row in range(NUM):
        statuses = [P if present else A for present in truth_of(row)]
        scores = [0.9 if present else 0.2 for present in truth_of(row)]
        if row == 6:
            statuses[0], scores[0] = N, 0.01
        reports.append(
            (f"s{row}", f"secret words {row}", statuses, scores)
            if row != 7
            else ("s7", "secret words 7", None, None)
        )
    return write_table(reports)


def write_gold(path, rows=range(NUM), **columns):
    frame = pd.DataFrame(
        {
            "study_id": [f"s{row}" for row in rows],
            "report": [f"secret words {row}" for row in rows],
            "patient": [f"p{row // 2}" for row in rows],
            "Emphysema": [int(truth_of(row)[0]) for row in rows],
            "pleural_effusion": [int(truth_of(row)[1]) for row in rows],
        }
    )
    frame.assign(**columns).to_csv(path, index=False)
    return path


@pytest.fixture
def gold(tmp_path):
    return write_gold(tmp_path / "gold.csv", [row for row in range(NUM) if row != 7])


FAST = ("--resamples", 50)


def test_what_is_printed_is_written(radtower, labels, gold, tmp_path):
    output = tmp_path / "out" / "results.json"
    done = radtower("evaluate", "labels", labels, gold, "-o", output, "--label-source", "one reader", *FAST)
    assert (done.code, done.err) == (0, "")
    results = read_results(output)
    assert (results.model_id, results.phantom) == ("small-llm", False)
    found = results.get("auroc", "emphysema")
    assert (found.dataset, found.class_set) == ("gold", "2 of 18 findings of ct_rate_18")
    assert (found.label_source, found.threshold_source) == ("one reader", "status of the label table")
    assert found.protocol == "labeler llm; prompt scoring-1"
    assert (found.n, found.n_positive) == (23, 8)
    assert f"{found.value:.3f} ({found.ci_low:.3f}-{found.ci_high:.3f})" in done.out
    assert results.get("recall", "emphysema").value == 7 / 8
    assert "0.875" in done.out
    assert results.get("f1", "pleural_effusion").value == 1.0
    assert results.get("ece", "pleural_effusion").value == pytest.approx((12 * 0.1 + 11 * 0.2) / 23)
    assert results.get("exact_row").value == 22 / 23
    assert results.confusion["emphysema"] == {
        "present": {"present": 7, "absent": 0, "uncertain": 0, "not_mentioned": 1},
        "absent": {"present": 0, "absent": 15, "uncertain": 0, "not_mentioned": 0},
    }
    line = next(line for line in done.out.splitlines() if "0.010" in line)
    assert line.replace("\u2502", " ").split() == ["s6", "emphysema", "present", "not_mentioned", "0.010"]
    assert (
        "Gold reports: 23 compared; 0 that the labeler failed on (left-out); 0 not in the label table."
        in done.out
    )
    assert "Not measured: medical_material" not in done.out
    assert "secret" not in done.out + output.read_text()


def test_runs_with_nothing_but_the_two_tables(radtower, labels, gold, tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    done = radtower("evaluate", "labels", labels, gold, *FAST)
    assert (done.code, done.err) == (0, "")
    written = {path.name for path in tmp_path.iterdir()} - {"labels.parquet", "gold.csv"}
    assert written == {"results.json", "forest.png", "reliability.png"}
    tables = [
        line
        for line in done.out.splitlines()
        if line.strip() and line.strip()[0] in "\u250f\u2521\u2502\u2514"
    ]
    assert max(map(len, tables)) <= 80
    cells = [line.replace("\u2502", " ").split() for line in done.out.splitlines()]
    # 8 and 12 present, 15 and 11 absent; one that is present was not mentioned.
    assert ["present", "19", "0", "0", "1"] in cells
    assert ["absent", "0", "26", "0", "0"] in cells


def test_results_of_another_model_are_not_replaced_unasked(radtower, labels, gold, tmp_path):
    arguments = ("evaluate", "labels", labels, gold, "--no-plots", *FAST)
    assert radtower(*arguments).code == radtower(*arguments).code == 0
    path = tmp_path / "results.json"
    others = path.read_text().replace("small-llm", "large-llm")
    path.write_text(others)
    done = radtower(*arguments)
    assert done.code == 2
    assert "--output must be given where results.json has results of another model" in done.err
    assert path.read_text() == others
    assert radtower(*arguments, "-o", path).code == 0
    assert read_results(path).model_id == "small-llm"


def test_plots_can_be_left_out(radtower, labels, gold, tmp_path, monkeypatch):
    arguments = ("evaluate", "labels", labels, gold, *FAST)
    note = "forest.png and reliability.png are left out: they need the extra 'plots'."
    assert note not in radtower(*arguments, "--no-plots").out
    monkeypatch.setitem(extras.EXTRAS, "plots", ("no_such_module",))
    done = radtower(*arguments)
    assert (done.code, note in done.out) == (0, True)
    done = radtower(*arguments, "--json")
    assert (json.loads(done.out)["not_compared"], done.err.strip()) == ({}, note)
    assert not list(tmp_path.glob("*.png"))
    done = radtower(*arguments, "--no-plots", "--plots", tmp_path / "plots")
    assert (done.code, "--plots must not come with --no-plots" in done.err) == (2, True)


def test_a_gold_report_in_no_number_is_listed_and_exit_code_1(radtower, labels, tmp_path):
    gold = write_gold(tmp_path / "gold.csv", range(5, NUM + 2))
    done = radtower("evaluate", "labels", labels, gold, "-o", tmp_path / "r.json", *FAST)
    assert done.code == 1
    assert done.err.splitlines() == [
        "failed: s24: not in the label table",
        "failed: s25: not in the label table",
        "failed: s7: timeout",
    ]
    assert "18 compared; 1 that the labeler failed on (left-out); 2 not in the label table" in done.out
    results = read_results(tmp_path / "r.json")
    assert results.get("auroc", "emphysema").n == 18
    assert "1 reports without silver labels left out" in results.get("auroc", "emphysema").note
    assert results.not_measured == ("gold reports that the label table does not have: 2",)


def test_failures_can_count_as_wrong(radtower, labels, tmp_path):
    gold = write_gold(tmp_path / "gold.csv")
    flags = ("--failures", "wrong", *FAST)
    done = radtower("evaluate", "labels", labels, gold, "-o", tmp_path / "r.json", *flags)
    assert (done.code, done.err) == (0, "")
    results = read_results(tmp_path / "r.json")
    # Row 7 has neither finding, so both are false alarms.
    assert results.get("precision", "pleural_effusion").value == 12 / 13
    assert results.get("exact_row").value == 22 / 24
    assert results.get("f1", "emphysema").protocol.endswith("failed reports count as wrong")
    assert "24 compared; 1 that the labeler failed on (wrong)" in done.out


def test_duplicates_are_found_by_text_only(radtower, labels, tmp_path):
    reports = [f"secret  words {row % 7}" for row in range(8, NUM)]
    gold = write_gold(
        tmp_path / "g.csv", range(8, NUM), report=reports, study_id=[f"other{r}" for r in range(16)]
    )
    arguments = ("evaluate", "labels", labels, gold, "-o", tmp_path / "r.json", *FAST)
    assert "got none of 16 by report_id" in radtower(*arguments).err
    done = radtower(*arguments, "--text-column", "report")
    assert (done.code, done.err) == (0, "")
    # The rows of one text are drawn together, as those of a patient are.
    by_text = read_results(tmp_path / "r.json").get("f1", "emphysema")
    radtower(*arguments, "--text-column", "report", "--patient-column", "patient")
    by_patient = read_results(tmp_path / "r.json").get("f1", "emphysema")
    assert (by_text.n, by_text.value) == (by_patient.n, by_patient.value)
    assert (by_text.ci_low, by_text.ci_high) != (by_patient.ci_low, by_patient.ci_high)


def test_json_is_one_document_and_the_trap_goes_to_stderr(radtower, labels, tmp_path):
    gold = write_gold(tmp_path / "valid_predicted_labels.csv")
    flags = ("--json", "--disagreements", 1, *FAST)
    done = radtower("evaluate", "labels", labels, gold, "-o", tmp_path / "r.json", *flags)
    assert done.code == 1
    content = json.loads(done.out)
    assert content["not_compared"] == {"s7": "timeout"}
    assert content["disagreements"] == [
        {
            "report_id": "s6",
            "finding": "emphysema",
            "gold": "present",
            "silver": "not_mentioned",
            "score": 0.01,
            "distance": 0.99,
        }
    ]
    source = content["results"]["metrics"][0]["label_source"]
    assert source == "labels of valid_predicted_labels.csv (output of a model, not gold)"
    assert "Trap: these look like the labels that CT-RATE released" in done.err


def test_radbert_is_no_gold(radtower, labels, gold, tmp_path):
    flags = ("--label-source", "RadBERT labels", *FAST)
    done = radtower("evaluate", "labels", labels, gold, "-o", tmp_path / "r.json", *flags)
    assert done.code == 0
    assert "Trap: " in done.out.splitlines()[0]
    assert "RadBERT labels (output of a model, not gold)" in " ".join(done.out.split())


def test_plots_are_drawn(radtower, labels, gold, tmp_path):
    flags = ("--plots", tmp_path / "plots", "--phantom", "--disagreements", 0, *FAST)
    done = radtower("evaluate", "labels", labels, gold, "-o", tmp_path / "r.json", *flags)
    assert done.code == 0
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["forest.png", "reliability.png"]
    with Image.open(tmp_path / "plots" / "forest.png") as image:
        assert image.width > 900
    assert str(tmp_path / "plots" / "forest.png") in done.out
    assert "phantom results" in done.out
    assert "disagreements" not in done.out


def test_without_scores_there_is_no_reliability_plot(radtower, write_table, gold, tmp_path):
    table = write_table([(f"s{r}", f"t{r}", [P if t else U for t in truth_of(r)], None) for r in range(NUM)])
    flags = ("--plots", tmp_path / "plots", *FAST)
    done = radtower("evaluate", "labels", table, gold, "-o", tmp_path / "r.json", *flags)
    assert done.code == 0
    assert [path.name for path in (tmp_path / "plots").iterdir()] == ["forest.png"]
    assert " ece " not in done.out


def test_labels_are_compared_in_another_set(radtower, write_table, tmp_path):
    findings = load_findings("ct_rate_18")
    rng = np.random.default_rng(0)
    cells = rng.random((30, 18)) < 0.4
    table = write_table(
        [(f"s{r}", f"t{r}", [P if c else A for c in row], None) for r, row in enumerate(cells)],
        findings.keys,
        "ct_rate_18",
    )
    frame = pd.DataFrame(cells.astype(int), columns=list(findings.names))
    frame.assign(study_id=[f"s{r}" for r in range(30)]).to_csv(tmp_path / "gold.csv", index=False)
    arguments = ("evaluate", "labels", table, tmp_path / "gold.csv", "-o", tmp_path / "r.json", *FAST)
    done = radtower(*arguments, "--mapping", "ct_rate_18_to_chexpert_14")
    assert done.code == 0, done.err
    results = read_results(tmp_path / "r.json")
    assert results.get("macro_f1").class_set == "6 of 14 findings of chexpert_14"
    assert results.get("macro_f1").protocol.endswith("mapping ct_rate_18_to_chexpert_14")
    assert results.get("f1", "support_devices").value == 1.0
    assert "pneumothorax (unmapped: not labeled)" in results.not_measured
    assert "Gold is in the source set of the mapping" in done.out
    assert "Mapping: support_devices from medical_material, which is broader" in done.out
    done = radtower(*arguments, "--mapping", "ct_rate_18_to_padchest")
    assert (done.code, "Shipped: " in done.err) == (2, True)


def test_a_findings_set_of_ones_own_needs_its_file(radtower, write_table, gold, tmp_path):
    table = write_table([(f"s{r}", f"t{r}", [P, A], None) for r in range(NUM)], findings_set="mine")
    arguments = ("evaluate", "labels", table, gold, "-o", tmp_path / "r.json", *FAST)
    done = radtower(*arguments)
    assert done.code == 2
    assert "--findings must say where the findings set 'mine' is" in done.err
    (tmp_path / "mine.yaml").write_text("name: mine\nbase: ct_rate_18\nkeys: [emphysema, pleural_effusion]\n")
    assert radtower(*arguments, "--findings", tmp_path / "mine.yaml").code == 0
    assert read_results(tmp_path / "r.json").get("macro_f1").class_set == "mine"
    done = radtower(*arguments, "--findings", "chexpert_14")
    assert (done.code, "got ['emphysema']" in done.err) == (2, True)
    done = radtower(*arguments, "--findings", "nothing")
    assert "error: name_or_path must be a shipped findings set or a YAML file, got 'nothing'" in done.err


def test_another_set_of_the_same_name_is_refused(radtower, write_table, gold, tmp_path):
    own = tmp_path / "own.yaml"
    own.write_text(
        "name: ct_rate_18\nbase: ct_rate_18\nkeys: [emphysema, pleural_effusion]\n"
        "overrides: {emphysema: {definition: Other.}}\n"
    )
    table = write_table([(f"s{r}", f"t{r}", [P, A], None) for r in range(NUM)], findings_set="ct_rate_18")
    rows = [LabelRow(**row) for row in pq.read_table(table).to_pylist()]
    stream_labels(rows, table, KEYS, {"findings": load_findings(own).identity})
    arguments = ("evaluate", "labels", table, gold, "-o", tmp_path / "r.json", *FAST)
    done = radtower(*arguments)
    shipped = load_findings("ct_rate_18")
    assert done.code == 2
    assert "--findings must name the set of the labels: findings must be those that were labeled" in done.err
    assert f"{load_findings(own).identity!r}, got {shipped.subset(KEYS).identity!r}" in done.err
    done = radtower(*arguments, "--mapping", "ct_rate_18_to_ct_rate_16")
    assert (done.code, "--mapping must start from the set of the labels: find" in done.err) == (2, True)
    assert not (tmp_path / "r.json").exists()
    assert radtower(*arguments, "--findings", own).code == 0
    # Two findings, one of them redefined, are not the ct_rate_18 that is shipped.
    assert read_results(tmp_path / "r.json").get("macro_f1").class_set == load_findings(own).identity
    stream_labels(rows, table, KEYS, {"findings": shipped.subset(KEYS).identity})
    assert radtower(*arguments).code == 0
    assert read_results(tmp_path / "r.json").get("macro_f1").class_set == "2 of 18 findings of ct_rate_18"


def test_what_cannot_be_used_is_refused_and_nothing_is_written(radtower, labels, gold, tmp_path, monkeypatch):
    arguments = ("evaluate", "labels", labels, gold)
    assert (
        "-o must be a file that ends in .json, got 'r.csv'"
        in radtower(*arguments, "-o", tmp_path / "r.csv").err
    )
    bad = write_gold(tmp_path / "bad.csv", Emphysema=-1)
    done = radtower("evaluate", "labels", labels, bad, "-o", tmp_path / "r.json")
    assert (done.code, "got -1" in done.err) == (2, True)
    monkeypatch.setitem(extras.EXTRAS, "plots", ("no_such_module",))
    done = radtower(*arguments, "-o", tmp_path / "r.json", "--plots", tmp_path / "plots")
    assert (done.code, "extra 'plots'" in done.err) == (2, True)
    assert not (tmp_path / "r.json").exists()
    assert not (tmp_path / "plots").exists()


def test_the_manual_labels_of_real_reports(radtower, write_table, tmp_path):
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to a folder with real reports")
    path = Path(os.environ["RADTOWER_REAL_DATA"]) / "ctrate_reports" / "train.csv"
    frame = pd.read_csv(path)
    findings = load_findings("ct_rate_18")
    unique = frame[~frame["report_text"].map(report_sha256).duplicated()]
    # A keyword labeler that knows no negation.
    reports = [
        (
            name,
            text,
            [P if f.name.split()[-1].lower() in text.lower() else N for f in findings.findings],
            None,
        )
        for name, text in zip(unique["AccessionNo"], unique["report_text"], strict=True)
    ]
    table = write_table(reports, findings.keys, "ct_rate_18")
    flags = ("--id-column", "AccessionNo", "--text-column", "report_text", "--label-source", "manual", *FAST)
    done = radtower("evaluate", "labels", table, path, "-o", tmp_path / "r.json", *flags)
    assert (done.code, done.err) == (0, "")
    results = read_results(tmp_path / "r.json")
    # All 800 rows, the 13 duplicates included; "pleural effusion was not observed" is in most of them.
    assert results.get("f1", "pleural_effusion").n == 800 > len(unique)
    assert results.get("precision", "pleural_effusion").value < 0.5
    assert results.get("recall", "pleural_effusion").value > 0.9
    assert results.get("precision", "bronchiectasis").value > 0.5
