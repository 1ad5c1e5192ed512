"""The stock Trainer with the callback, as a process against a Hub on 127.0.0.1 that comes and goes."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from local_hub import TOKEN, run_local_hub

TRAININGS = Path(__file__).with_name("trainings.py")
PENDING = "import sys; from radtower.cli import main; sys.argv = ['radtower', *sys.argv[1:]]; main.run()"


@pytest.fixture
def start(local_hub, tmp_path):
    """Run Python with arguments; returns what came of it."""

    def start(*arguments):
        return subprocess.run(
            [sys.executable, *map(str, arguments)],
            env=local_hub.environment(tmp_path / "home") | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"},
            capture_output=True,
            text=True,
        )

    return start


def _messages(hub):
    return [commit.message for commit in hub.repo("models", "tester/tower").commits]


def _texts(folder):
    return [path for path in folder.rglob("*") if path.is_file() and TOKEN.encode() in path.read_bytes()]


def test_the_stock_trainer_pushes_checkpoints_and_the_model_with_its_tag(start, local_hub, tmp_path):
    done = start(TRAININGS, "whole", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    repo = local_hub.repo("models", "tester/tower")
    messages = [commit.message for commit in repo.commits]
    # A slow Hub gets the newest of those that wait; the model of the end is the checkpoint of step 3.
    assert messages[0] == "initial commit"
    assert set(messages[1:]) <= {"Training: step 2", "Training: step 3", "Training: the model after 3 steps"}
    assert repo.tags == {"v1": repo.commits[-1].oid}
    assert repo.is_private
    weights = (tmp_path / "out" / "checkpoint-3" / "model.safetensors").read_bytes()
    assert repo.files["model.safetensors"] == weights
    assert {"README.md", "modeling_ct3d.py", "preprocessor_config.json"} < set(repo.files)
    assert "Pushed 'Training: the model after 3 steps' to" in done.stdout
    assert not list((tmp_path / "out" / "pushes").glob("[0-9]*"))
    assert not _texts(tmp_path / "out")
    assert TOKEN not in done.stdout + done.stderr


@pytest.mark.slow
def test_a_hub_that_dies_does_not_end_the_training_and_pending_sends_the_rest_once(
    start, local_hub, tmp_path
):
    local_hub.fail("POST", "/commit/", 503, times=None)
    done = start(TRAININGS, "lost", tmp_path / "out")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "trained"), done.stderr
    assert "Send them with radtower push --pending." in done.stdout
    assert done.stdout.count("A push failed, and waits: ") == 1
    entries = sorted((tmp_path / "out" / "pushes").glob("[0-9]*/push.json"))
    orders = [json.loads(path.read_text()) for path in entries]
    assert orders[-1]["message"] == "Training: the model after 3 steps"
    assert orders[-1]["target"] == {"branch": None, "tag": "v1", "is_pull_request": False}
    assert local_hub.repo("models", "tester/tower").commits[1:] == []
    local_hub.faults.clear()
    sent = start("-c", PENDING, "push", "--pending", tmp_path / "out")
    assert (sent.returncode, sent.stdout.splitlines()[-1]) == (0, "0 pushes wait"), sent.stderr
    repo = local_hub.repo("models", "tester/tower")
    assert [commit.message for commit in repo.commits[1:]] == ["Training: the model after 3 steps"]
    assert repo.tags == {"v1": repo.commits[-1].oid}
    num_requests = len(local_hub.requests)
    again = start("-c", PENDING, "push", "--pending", tmp_path / "out", "--json")
    assert json.loads(again.stdout) == {"sent": [], "waiting": {}}
    assert len(local_hub.requests) == num_requests
    assert not _texts(tmp_path / "out")


@pytest.mark.slow
def test_a_training_goes_on_without_the_network_and_when_it_is_resumed_sends_what_waited(tmp_path):
    out = tmp_path / "out"
    with run_local_hub() as hub:
        variables = hub.environment(tmp_path / "home") | {"HF_HUB_DISABLE_PROGRESS_BARS": "1"}
        command = [sys.executable, str(TRAININGS)]
        process = subprocess.Popen(
            [*command, "cut", str(out)], env=variables, stdout=subprocess.PIPE, text=True
        )
        deadline = time.monotonic() + 100
        while ("models", "tester/tower") not in hub.repos or len(_messages(hub)) < 2:
            assert time.monotonic() < deadline
            time.sleep(0.02)
    (out / "network-is-gone").touch()
    said, _ = process.communicate(timeout=100)
    assert (process.returncode, said.splitlines()[-1]) == (0, "trained")
    assert f"the Hub must be within reach, got ConnectError from {hub.url}" in said
    assert _messages(hub) == ["initial commit", "Training: step 2"]
    with run_local_hub(hub):
        resumed = subprocess.run(
            [*command, "resumed", str(out)], env=variables, capture_output=True, text=True
        )
    assert resumed.returncode == 0, resumed.stderr
    messages = _messages(hub)
    # A state that waits may be overtaken by a newer one, a tag is not. The last checkpoint is the model.
    assert messages[:3] == ["initial commit", "Training: step 2", "Training: the model after 3 steps"]
    repo = hub.repo("models", "tester/tower")
    assert repo.tags == {"v1": repo.commits[2].oid, "v2": repo.commits[-1].oid}
    weights = {step: (out / f"checkpoint-{step}" / "model.safetensors").read_bytes() for step in (3, 5)}
    assert [repo.at(tag).files["model.safetensors"] for tag in ("v1", "v2")] == [weights[3], weights[5]]
    assert not list((out / "pushes").glob("[0-9]*"))


@pytest.mark.slow
def test_what_a_killed_training_left_is_sent_once_and_without_it(start, local_hub, tmp_path):
    done = start(TRAININGS, "killed", tmp_path / "out")
    assert done.returncode == -signal.SIGKILL
    assert not local_hub.requests
    sent = start("-c", PENDING, "push", "--pending", tmp_path / "out")
    assert sent.returncode == 0, sent.stderr
    repo = local_hub.repo("models", "tester/tower")
    assert len(repo.commits) == 2
    assert repo.commits[1].message.startswith("Training: ")
    assert "model.safetensors" in repo.files
    assert len(local_hub.of("POST", "/commit/")) == 1
