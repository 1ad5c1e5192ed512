"""``radtower evaluate retrieval --read-outs``: labels of found reports, beside answers without the scan."""

import json
from importlib.util import find_spec

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from radtower.evaluation.results import read_results
from radtower.evaluation.rows import read_query_rows
from radtower.labeling.label_table import LabelRow, write_labels
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.report_text import report_sha256

# report: split, nodule, effusion; the last one is not labeled.
STUDIES = {
    "small nodule": ("test", "present", "absent"),
    "There is effusion": ("test", "not_mentioned", "present"),
    "no effusion": ("test", "uncertain", "absent"),
    "no nodule": ("test", "absent", "not_mentioned"),
    "nodule present": ("train", "present", "absent"),
    "There is nodule": ("train", "present", "not_mentioned"),
    "There is present": ("train", None, None),
}
FINDINGS = "name: two\nbase: ct_rate_18\nkeys: [lung_nodule, pleural_effusion]\n"
KEYS = ("lung_nodule", "pleural_effusion")
QUICK = ("--k", 1, "--k", 2, "--resamples", 20, "--protocol", "exact-row")


@pytest.fixture
def tower(tiny_image_clip, tmp_path):
    tiny_image_clip.save_pretrained(tmp_path / "tower")
    return tmp_path / "tower"


@pytest.fixture
def manifest(tmp_path):
    rng = np.random.default_rng(0)
    rows = []
    for number, (report, (split, *_)) in enumerate(STUDIES.items()):
        Image.fromarray(rng.integers(0, 256, (18, 20), dtype=np.uint8)).save(tmp_path / f"i{number}.png")
        rows.append((f"s{number}", f"p{number}", f"i{number}.png", report, split))
    frame = pd.DataFrame(rows, columns=["study_id", "patient_id", "image_path", "report", "split"])
    frame.to_csv(tmp_path / "manifest.csv", index=False)
    return tmp_path / "manifest.csv"


@pytest.fixture
def flags(tmp_path):
    rows = [
        LabelRow(
            report_id=report,
            report_sha256=report_sha256(report),
            status=dict(zip(KEYS, statuses, strict=True)),
            score=dict.fromkeys(KEYS),
            evidence=dict.fromkeys(KEYS),
            labeler="encoder",
            model_id="m",
            prompt_version=None,
            findings_set="two",
        )
        for report, (_, *statuses) in STUDIES.items()
        if None not in statuses
    ]
    write_labels(rows, tmp_path / "labels.parquet")
    (tmp_path / "two.yaml").write_text(FINDINGS)
    return ("--read-outs", "--labels", tmp_path / "labels.parquet", "--findings", tmp_path / "two.yaml")


def _run(radtower, tower, manifest, *options):
    output = manifest.parent / "results.json"
    return radtower("evaluate", "retrieval", tower, manifest, "-o", output, *QUICK, *options), output


def test_found_reports_are_measured_beside_the_baselines(
    radtower, tower, manifest, flags, tmp_path, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "160")
    done, output = _run(radtower, tower, manifest, *flags)
    assert done.code == 0, done.err
    results = read_results(output)
    reports = [report for report, (split, *_) in STUDIES.items() if split == "test"]
    model = MedCLIPModel.from_pretrained(tower).eval()
    similarity = model.compute_similarities([tmp_path / f"i{n}.png" for n in range(4)], reports).numpy()
    said = [{0}, {1}, set(), set()]
    # The third report hedges about the nodule: only its effusion counts.
    known = [{0, 1}, {0, 1}, {1}, {0, 1}]
    expected = []
    for row, found in enumerate(similarity.argmax(axis=1)):
        named, true = said[found] & known[row], said[row] & known[row]
        expected.append(len(named & true) / len(named | true) if named | true else 1.0)

    def get(metric, **where):
        return results.get(metric, direction="image_to_report", **where)

    item = get("label_jaccard", protocol="top 1")
    assert (item.n, item.value, item.direction) == (4, pytest.approx(np.mean(expected)), "image_to_report")
    assert item.class_set == "two, 2 findings"
    assert item.label_source == "labels.parquet by encoder m; not mentioned is absent, uncertain is masked"
    assert item.dataset == "manifest.csv, test split"
    # The most common report names a nodule: right once, of four.
    common = get("label_jaccard_baseline", protocol="top 1; most common report")
    assert common.value == pytest.approx((1 + 0 + 1 + 0) / 4)
    assert get("label_jaccard_difference", protocol="top 1; model minus random report").n == 4
    assert get("label_f1", finding="lung_nodule").n == 3
    assert get("label_jaccard", protocol="best of top 2").value >= item.value
    assert results.get("recall_at_1", direction="image_to_report").n == 4
    rows = read_query_rows(results, output).frame
    assert rows[rows["metric"] == "label_jaccard"]["value"].tolist() == pytest.approx(expected)
    shown = next(line for line in done.out.splitlines() if line.startswith("\u2502 Jaccard"))
    assert f"{item.value:.2f} ({item.ci_low:.2f}-{item.ci_high:.2f})" in shown
    assert f"{common.value:.2f} ({common.ci_low:.2f}-{common.ci_high:.2f})" in shown
    gain = get("label_jaccard_difference", protocol="top 1; model minus most common report")
    cells = [cell.strip() for cell in shown.split("\u2502")[1:-1]]
    assert cells[5] == f"{gain.value:+.2f} ({gain.ci_low:+.2f} to {gain.ci_high:+.2f})"
    assert "reports found, best of top 2" in done.out
    assert "macro precision" not in done.out
    assert "reports found, top 1, by finding" in done.out
    for report in STUDIES:
        assert report not in done.out + done.err + output.read_text()


def test_labels_of_a_table_with_its_own_ids_and_source(radtower, tower, manifest, flags, tmp_path):
    table = pd.DataFrame({"scan": ["s0", "s1"], "lung_nodule": [1, 0], "pleural_effusion": [0, 1]})
    table.to_csv(tmp_path / "table.csv", index=False)
    options = ("--read-outs", "--labels", tmp_path / "table.csv", "--label-id", "scan", *flags[-2:])
    done, output = _run(radtower, tower, manifest, *options, "--label-source", "two readers")
    assert done.code == 0, done.err
    item = read_results(output).get("label_jaccard", direction="image_to_report", protocol="top 1")
    assert (item.n, item.label_source) == (2, "two readers")
    assert "2 volumes without labels of their report left out" in item.note
    assert "not measured: labels of the most common report: no report of the training split" in done.err


def test_without_the_flag_nothing_is_added(radtower, tower, manifest, flags):
    done, output = _run(radtower, tower, manifest, "--json")
    assert done.code == 0, done.err
    assert {m["metric"] for m in json.loads(done.out)["metrics"]} == {
        *("recall_at_1", "recall_at_2", "median_rank", "mrr")
    }
    assert read_results(output).not_measured == ()


def test_what_does_not_fit_is_refused_before_the_scans_are_read(radtower, tower, manifest, flags, tmp_path):
    def refusal(*options):
        done, output = _run(radtower, tower, manifest, *options)
        assert (done.code, output.exists()) == (2, False)
        assert "Embedding" not in done.err
        return " ".join(done.err.split())

    assert "--text-metric must come with --read-outs" in refusal("--text-metric", "bleu")
    assert "which can send reports to a server" in refusal(*flags, "--text-metric", "crimson")
    assert "labels must have a column of at least one finding" in refusal("--read-outs")
    done = radtower(
        "evaluate", "retrieval", tower, manifest, "-o", tmp_path / "r.json", "--task", "images", *flags
    )
    assert "--read-outs must come with the task pairs, got images" in " ".join(done.err.split())
    frame = pd.read_csv(manifest)
    frame["report"] = frame["report"].where(frame["split"] == "train", frame["report"] + " again")
    frame.to_csv(manifest, index=False)
    assert "labels must be there for reports of the test split, got none for 4 volumes" in refusal(*flags)


@pytest.mark.skipif(find_spec("radeval") is not None, reason="the extra radeval is installed")
def test_the_extra_is_named_where_it_is_missing(radtower, tower, manifest, flags):
    done, _ = _run(radtower, tower, manifest, *flags, "--text-metric", "bleu")
    assert done.code == 2
    assert "pip install 'radtower[radeval]'" in " ".join(done.err.split())


@pytest.mark.skipif(find_spec("radeval") is None, reason="the extra radeval is not installed")
@pytest.mark.filterwarnings("default")
def test_texts_are_scored_where_radeval_is(radtower, tower, manifest, flags):
    done, output = _run(radtower, tower, manifest, *flags, "--text-metric", "rouge", "--json")
    assert done.code == 0, done.err
    assert json.loads(done.out) == json.loads(output.read_text())
    item = read_results(output).get("report_rouge1", direction="image_to_report", protocol="top 1")
    assert (item.n, item.class_set) == (4, "none")
