"""Metrics leave as folders that load, and whose cards run, where this package cannot be imported."""

import json
import os
import re
import subprocess
import sys

import pytest
from huggingface_hub import RepoCard

from radtower.hub_cards.metrics.metric_export import export_metric, loaded_by, metric_names

CODE = {
    "multi_label_auroc": {
        *("multi_label_auroc.py", "metrics.py", "bootstrap.py", "confusion.py", "ranked_scores.py"),
        *("masked_target.py", "module_values.py"),
    },
    "retrieval_map": {
        "retrieval_map.py",
        "bootstrap.py",
        "module_values.py",
        "precisions.py",
        "searched_items.py",
    },
    "retrieval_recall": {
        "retrieval_recall.py",
        "bootstrap.py",
        "module_values.py",
        "score_ranks.py",
        "searched_items.py",
    },
}
ORDER = ("multi_label_auroc", "retrieval_recall", "retrieval_map")  # as LOAD takes them
WITHOUT_RADTOWER = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "radtower":
            raise ImportError("radtower is not here")
sys.meta_path.insert(0, Refuse())
"""
LOAD = """
import evaluate, json
auroc, recall, mean = (evaluate.load(path) for path in sys.argv[1:])
scores = [[0.9, 0.2], [0.4, 0.7], [0.6, 0.1]]
ids = {"patient_ids": ["a", "b", "c"], "num_resamples": 20}
print(json.dumps([
    auroc.compute(predictions=scores, references=[[1, 0], [1, 0], [0, 0]], **ids),
    recall.compute(predictions=scores, references=[[0], [0], [1]], **ids),
    mean.compute(predictions=scores, references=[[0], [0], [1]], **ids),
    "radtower" in sys.modules,
]))
"""


def run(code, folder, *arguments, **variables):
    """Run code beside an export, offline, with caches of its own."""
    kept = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "HF_ENDPOINT")}
    done = subprocess.run(
        [sys.executable, "-W", "error::SyntaxWarning", "-c", WITHOUT_RADTOWER + code, *map(str, arguments)],
        cwd=folder,
        env=kept | {"HF_HOME": str(folder / "home"), "HF_EVALUATE_OFFLINE": "1"} | variables,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture
def exported(tmp_path):
    for name in CODE:
        export_metric(name, tmp_path / name)
    return tmp_path


def test_every_metric_is_code_card_page_and_requirements(exported):
    assert metric_names() == sorted(CODE)
    for name, code in CODE.items():
        folder = exported / name
        assert {path.name for path in folder.iterdir()} == {
            *code,
            *("README.md", "app.py", "requirements.txt"),
        }
        for path in folder.glob("*.py"):
            assert "radtower." not in path.read_text()
        assert f'/ "{name}.py"' in (folder / "app.py").read_text()
        compile((folder / "app.py").read_text(), "app.py", "exec")


def test_the_main_file_names_all_that_evaluate_has_to_copy(exported):
    for name, code in CODE.items():
        text = (exported / name / f"{name}.py").read_text()
        named = set(re.findall(r"^from \.(\w+) import [^#\n]*$", text, flags=re.MULTILINE))
        assert {f"{module}.py" for module in named} == code - {f"{name}.py"}


@pytest.mark.parametrize("name", CODE)
def test_the_card_is_that_of_a_space(exported, name):
    card = RepoCard.load(exported / name / "README.md", repo_type="space")
    data = card.data.to_dict()
    assert (data["title"], data["sdk"], data["app_file"]) == (name.replace("_", " "), "gradio", "app.py")
    assert (data["license"], data["pinned"]) == ("apache-2.0", False)
    assert data["tags"] == ["evaluate", "metric", "radiology", "radtower"]
    assert f'evaluate.load("./{name}")' in card.text
    assert "Research use only, not for diagnosis" in card.text
    assert "patient_ids (list)" in card.text
    assert "year={" in card.text
    assert "{{" not in card.text


def test_an_export_loads_its_own_code(exported, load_metric):
    recall = load_metric(exported / "retrieval_recall")
    assert recall.compute(predictions=[[0.9, 0.2], [0.4, 0.7]], references=[[0], [0]])["recall_at_1"] == 0.5
    helper = sys.modules[type(recall)._compute.__globals__["searched"].__module__]
    assert helper.__name__.startswith("evaluate_modules.metrics.retrieval_recall.")


@pytest.mark.slow
def test_exports_load_where_radtower_is_not(exported):
    values = json.loads(run(LOAD, exported, *(f"./{name}" for name in ORDER)))
    auroc, recall, mean, has_radtower = values
    assert not has_radtower
    assert (auroc["auroc"], auroc["macro_auroc"]) == ({"0": 0.5, "1": None}, 0.5)
    assert len(auroc["macro_auroc_ci"]) == 2
    assert (recall["recall_at_1"], mean["map_at_1"]) == (pytest.approx(1 / 3), pytest.approx(1 / 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("multi_label_auroc", r"0\.\d+"),
        ("retrieval_recall", r"0\.6666666666666666 0\.75 3"),
        ("retrieval_map", r"0\.6666666666666666 0\.75 3"),
    ],
)
def test_the_code_of_the_card_runs(exported, name, printed):
    blocks = re.findall(r"```python\n(.*?)```", (exported / name / "README.md").read_text(), flags=re.DOTALL)
    assert len(blocks) == 2
    assert re.fullmatch(printed, run("\n".join(blocks), exported).splitlines()[-1])


def test_an_earlier_export_is_replaced_and_nothing_else(exported):
    folder = exported / "retrieval_map"
    (folder / "app.py").write_text("old")
    assert export_metric("retrieval_map", folder) == folder
    assert (folder / "app.py").read_text() != "old"
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(
        FileExistsError, match="output must be new or an earlier export of retrieval_map, got"
    ):
        export_metric("retrieval_map", folder)
    with pytest.raises(FileExistsError, match="an earlier export of retrieval_recall"):
        export_metric("retrieval_recall", exported / "multi_label_auroc")
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(path.name for path in exported.iterdir()) == sorted(CODE)


def test_a_folder_of_another_name_is_loaded_by_its_file(tmp_path):
    folder = export_metric("retrieval_map", tmp_path / "mine")
    assert loaded_by("retrieval_map", folder) == "./mine/retrieval_map.py"
    card = (folder / "README.md").read_text()
    assert 'evaluate.load("./mine/retrieval_map.py")' in card


def test_other_names_are_refused(tmp_path):
    with pytest.raises(
        KeyError, match="one of multi_label_auroc, retrieval_map, retrieval_recall, got 'auroc'"
    ):
        export_metric("auroc", tmp_path / "x")
    with pytest.raises(
        ValueError, match=r"must be OWNER/retrieval_map, got me/recall: evaluate\.load looks for"
    ):
        export_metric("retrieval_map", tmp_path / "x", "me/recall")
    assert not (tmp_path / "x").exists()
