"""``radtower export-metric`` and ``push-metric`` as installed, against a Hub on 127.0.0.1."""

import json
import subprocess
import sys

import pytest

COMMAND = "import sys; sys.argv[0] = 'radtower'; from radtower_command import main; main()"
LOAD = """
import evaluate, sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "radtower":
            raise ImportError("radtower is not here")
sys.meta_path.insert(0, Refuse())
recall = evaluate.load("tester/retrieval_recall")
print(recall.compute(predictions=[[0.9, 0.1], [0.8, 0.2]], references=[[0], [1]])["recall_at_1"])
"""


@pytest.fixture
def run(local_hub, tmp_path):
    def run(code, *arguments, token="hf_local_test_token"):
        # The count of downloads goes to another server.
        variables = {"COLUMNS": "200", "HF_UPDATE_DOWNLOAD_COUNTS": "0"}
        return subprocess.run(
            [sys.executable, "-c", code, *map(str, arguments)],
            env=local_hub.environment(tmp_path / "home", token) | variables,
            capture_output=True,
            text=True,
        )

    return run


def test_a_metric_is_pushed_as_a_private_space(run, local_hub):
    done = run(COMMAND, "push-metric", "retrieval_recall", "tester/retrieval_recall", "--json")
    assert done.returncode == 0, done.stderr
    repo = local_hub.repo("spaces", "tester/retrieval_recall")
    assert json.loads(done.stdout) == {
        "repo_id": "tester/retrieval_recall",
        "url": f"{local_hub.url}/spaces/tester/retrieval_recall",
        "commit": repo.commits[1].oid,
        "is_private": True,
        "num_changed": len(repo.files) - 1,
        "num_deleted": 0,
        "pull_request_url": None,
    }
    assert repo.is_private
    assert len(repo.commits) == 2
    created = next(request.json for request in local_hub.of("POST", "repos/create"))
    assert created["sdk"] == "gradio"
    assert {"README.md", "app.py", "requirements.txt", "retrieval_recall.py", "score_ranks.py"} < set(
        repo.files
    )
    assert b'evaluate.load("tester/retrieval_recall")' in repo.files["README.md"]


@pytest.mark.slow
def test_evaluate_loads_a_private_space_by_its_id(run, local_hub):
    done = run(COMMAND, "push-metric", "retrieval_recall", "tester/retrieval_recall")
    assert done.returncode == 0, done.stderr
    assert f"Pushed to {local_hub.url}/spaces/tester/retrieval_recall (private)" in done.stdout
    loaded = run(LOAD)
    assert loaded.returncode == 0, loaded.stderr
    assert loaded.stdout.splitlines()[-1] == "0.5"
    assert local_hub.of("GET", "/spaces/tester/retrieval_recall/resolve/main/score_ranks.py")


def test_what_cannot_be_pushed_is_one_line(run, local_hub):
    for arguments, token, message in (
        (("retrieval_recall", "tester/retrieval_recall"), None, "a token of the Hub must be set"),
        (("retrieval_recall", "tester/recall"), "hf_local_test_token", "must be OWNER/retrieval_recall"),
    ):
        done = run(COMMAND, "push-metric", *arguments, token=token)
        assert done.returncode == 2
        assert message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert not local_hub.repos


def test_a_metric_is_exported(radtower, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = radtower("export-metric", "multi_label_auroc", "-o", "out/multi_label_auroc")
    assert done.code == 0, done.err
    assert "Exported out/multi_label_auroc" in done.out
    assert 'In out: evaluate.load("./multi_label_auroc")' in done.out
    assert (tmp_path / "out" / "multi_label_auroc" / "multi_label_auroc.py").is_file()
    refused = radtower("export-metric", "auroc", "-o", "other")
    assert refused.code == 2
    assert "the metric must be one of multi_label_auroc" in refused.err
