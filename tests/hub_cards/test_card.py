import json
import re
from dataclasses import asdict

import pytest
from huggingface_hub import ModelCard

from radtower.hub_cards.card_sections.training_section import read_run_record, target_rule
from radtower.hub_cards.export import export_model
from radtower.training.runs import ClipRun, LabelerRun, VisionRun

NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?")


def _export(make_model_folder, kind, tmp_path, **options):
    return export_model(make_model_folder(kind), tmp_path / "towers-of-hope", **options)


def _section(card, title):
    return card.split(f"\n## {title}\n")[1].split("\n## ")[0]


def _numbers_in(content):
    """Every number of a JSON document, and those in its texts, as the card may print them."""
    if isinstance(content, dict):
        return {number for value in content.values() for number in _numbers_in(value)}
    if isinstance(content, list):
        return {number for value in content for number in _numbers_in(value)}
    if isinstance(content, bool) or content is None:
        return set()
    if isinstance(content, str):
        return set(NUMBER.findall(content))
    return {str(content), f"{content:.3f}", str(round(content, 4))}


def test_no_number_of_the_results_is_not_in_results_json(make_model_folder, make_results, tmp_path):
    results = make_results()
    folder = _export(make_model_folder, "medclip", tmp_path, results=results)
    rows = [line for line in _section((folder / "README.md").read_text(), "Results").splitlines() if line]
    # The level of the interval and the k of a recall belong to the names of columns and metrics.
    found = set(NUMBER.findall("\n".join(rows).replace("95 % CI", "").replace("at 5", "")))
    assert {"0.718", "0.614", "0.828", "31", "0.652", "29", "0.417", "17"} <= found
    assert found <= _numbers_in(json.loads(results.read_text()))
    assert rows[2] == (
        "| macro auroc prompt ensemble | 0.718 | 0.614 to 0.828 | 31 | two findings | truth of the phantom "
        "| phantom scans |"
    )
    assert rows[4].startswith("| auroc nodule prompt ensemble | undefined | undefined: one class only | 17 |")
    assert rows[5].startswith("| recall at 5 image to report prompt ensemble | 0.417 | 0.301 to 0.534 |")


def test_metadata_is_read_back_by_the_hub_library(make_model_folder, make_results, tmp_path):
    results = make_results()
    folder = _export(make_model_folder, "medclip", tmp_path, results=results, license_id="apache-2.0")
    data = ModelCard.load(folder / "README.md").data
    assert (data.license, data.library_name) == ("apache-2.0", "transformers")
    assert data.pipeline_tag == "zero-shot-image-classification"
    assert data.tags == ["radiology", "radtower", "medclip", "research-only"]
    assert data.model_name == "towers-of-hope"
    assert [(r.metric_type, r.metric_value, r.metric_name) for r in data.eval_results] == [
        ("macro_auroc", 0.7184, "macro_auroc prompt ensemble"),
        ("recall_at_5", 0.4167, "recall_at_5 image_to_report prompt ensemble"),
    ]
    assert {(r.dataset_type, r.dataset_name) for r in data.eval_results} == {("phantom", "phantom scans")}


@pytest.mark.parametrize(
    ("kind", "task"),
    [
        ("ct3d_bare", "image-feature-extraction"),
        ("ct3d", "image-classification"),
        ("llm_mean", "feature-extraction"),
        ("llm_mean_classifier", "text-classification"),
    ],
)
def test_is_listed_under_the_task_of_its_class(make_model_folder, tmp_path, kind, task):
    folder = _export(make_model_folder, kind, tmp_path)
    assert ModelCard.load(folder / "README.md").data.pipeline_tag == task


def test_states_a_license_only_if_one_was_given(make_model_folder, tmp_path):
    text = (_export(make_model_folder, "ct3d_bare", tmp_path) / "README.md").read_text()
    assert "\nlicense" not in text
    assert "| license of the data | not stated by the publisher |" in text
    assert ModelCard(text).data.license is None


def test_says_so_when_nothing_was_measured(make_model_folder, tmp_path):
    card = (_export(make_model_folder, "llm_mean", tmp_path) / "README.md").read_text()
    assert _section(card, "Results").strip() == "Nothing was measured on this model yet."
    assert ModelCard(card).data.eval_results is None


@pytest.mark.parametrize("kind", ["medclip", "ct3d_classifier", "llm_mean"])
@pytest.mark.parametrize("phantom", [True, False])
def test_says_that_phantoms_are_no_patients(make_model_folder, make_results, tmp_path, kind, phantom):
    folder = _export(make_model_folder, kind, tmp_path, results=make_results(phantom))
    card = (folder / "README.md").read_text()
    assert ("measured on synthetic" in card) is phantom
    assert "Research use only. Not for diagnosis, and not a medical device." in card


@pytest.mark.parametrize(
    ("kind", "line"),
    [
        ("ct3d_classifier", "effusion, nodule"),
        ("ct3d_bare", "None: an encoder without a classifier."),
        ("llm_classifier", "effusion, nodule"),
        ("llm_mean", "None: an encoder without a classifier."),
    ],
)
def test_names_findings_only_of_a_model_that_scores_them(make_model_folder, tmp_path, kind, line):
    card = (_export(make_model_folder, kind, tmp_path) / "README.md").read_text()
    assert _section(card, "Findings").strip() == line
    assert ("scores 2 findings" in card) is (kind == "ct3d_classifier")


def test_states_preprocessing_in_units_and_the_install_line(make_model_folder, tmp_path):
    card = (_export(make_model_folder, "ct3d_bare", tmp_path) / "README.md").read_text()
    assert "voxels of [3.0, 2.0, 2.5] mm in (Z, Y, X) order" in card
    assert "HU windows [[-1000.0, 200.0]]" in card
    assert "pip install torch transformers pillow\n" in card
    llm = (export_model(make_model_folder("llm_latent"), tmp_path / "llm") / "README.md").read_text()
    assert "pip install torch transformers\n" in llm
    assert "latent attention pooling" in llm
    assert "| attention | every token sees the whole text |" in llm
    assert "| pooling | latent attention, 6 latents, 4 heads, v0 |" in llm
    assert "| vector | 32 numbers, not normalized: compare by cosine |" in llm
    assert '| instruction | `"{instruction}"` before a text; read, not pooled |' in llm
    assert "| prompt | none |\n" in llm
    assert "{{" not in card + llm
    assert "{%" not in card + llm


@pytest.mark.parametrize("kind", ["llm_mean_classifier", "ct3d", "medclip"])
def test_states_what_the_model_was_trained_to_say(make_model_folder, tmp_path, kind):
    trained = make_model_folder(kind)
    run = {"manifest": "/data/m.csv", "labels": None, "uncertain": None, "not_mentioned": 0.0}
    rule = (
        "\nTraining targets: present is 1, absent is 0, not mentioned is 0 and uncertain is masked out of "
        "the loss."
    )
    numbers = " Labels that were numbers in [0, 1] were the targets themselves; -100 was masked."
    scores = " Where a label had a score, the score was the target instead, whatever the state."
    labels, reports = {"labels": "/data/labels.parquet"}, {"reports": "/data/reports.csv"}
    for change, stated in (
        (labels, f"{rule}\n"),
        (labels | reports, f"{rule}\n"),
        (labels | reports | {"soft_targets": True}, f"{rule}{scores}\n"),
        ({"gold": "/data/gold.csv"}, f"{rule}{numbers}\n"),
        (reports, f"{rule}{numbers}\n"),
        ({"findings": "/data/set.yaml"}, f"{rule}{numbers}\n"),
        ({}, None),
    ):
        (trained / "run.yaml").write_text(json.dumps({"run": run | change}))
        card = (export_model(trained, tmp_path / "towers-of-hope") / "README.md").read_text()
        text = _section(card, "Training data and labels")
        assert ("Training targets" not in text) if stated is None else (stated in text)
        assert "/data" not in text


@pytest.mark.parametrize(
    ("run", "end"),
    [
        (
            LabelerRun(llm="x", manifest="m", gold="g", uncertain=0.5),
            "uncertain is 0.5. Labels that were numb",
        ),
        (LabelerRun(llm="x", reports="r", uncertain=0.5), "uncertain is 0.5. Labels that were numbers"),
        (LabelerRun(llm="x", reports="r", labels="l", soft_targets=True), "of the loss. Where a label had"),
        (
            VisionRun(manifest="m", cache="c", findings="f"),
            "masked out of the loss. Labels that were numbers",
        ),
        (ClipRun(manifest="m", cache="c", vision="v", text="t"), None),
    ],
)
def test_the_rule_is_found_in_the_records_of_all_runs_on_labels(tmp_path, run, end):
    (tmp_path / "run.yaml").write_text(json.dumps({"run": asdict(run)}))
    rule = target_rule(read_run_record(tmp_path))
    assert rule is None if end is None else end in rule


def test_a_finding_with_a_line_break_begins_no_section(make_model_folder, tmp_path):
    trained = make_model_folder("ct3d")
    config = json.loads((trained / "config.json").read_text())
    names = {"0": "a\n\n# Not a heading", "1": "{{ 7 * 7 }}"}
    (trained / "config.json").write_text(json.dumps(config | {"id2label": names}))
    card = (export_model(trained, tmp_path / "tower") / "README.md").read_text()
    assert _section(card, "Findings").strip() == "a # Not a heading, {{ 7 * 7 }}"
