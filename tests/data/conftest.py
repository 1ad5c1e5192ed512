"""Pushes in a process of their own: the client reads its settings when it is imported.

Hub and process serve all tests, one after the other: starting them takes longer than what is tested.
"""

import json
import subprocess
import sys

import pytest

from local_hub import run_local_hub

SCRIPT = """
import json, os, shutil, sys, time, traceback
from pathlib import Path
from radtower.data import hub_requests
from radtower.data.publish import PushTarget, push_folder

folder = Path(sys.argv[1])
waits = []
time.sleep = waits.append  # nobody waits here; what would be waited for is told
hub_requests.SILENCE_S = 0.7
def push(files, repo_id, token="hf_local_test_token", target=None, repo_type="dataset", **options):
    waits.clear()
    os.environ.pop("HF_TOKEN", None)
    if token:
        os.environ["HF_TOKEN"] = token
    shutil.rmtree(folder, ignore_errors=True)
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    try:
        done = push_folder(
            folder, repo_id, repo_type=repo_type, message="say", target=PushTarget(**target or {}), **options
        )
    except Exception as error:
        told = error
        while told is not None:  # everything that a traceback can tell, even what ours hide
            print("".join(traceback.format_exception(told, chain=False)))
            told = told.__context__
        return [type(error).__name__, str(error), list(waits)]
    return {**vars(done), "waits": list(waits)}
for line in sys.stdin:
    arguments, options = json.loads(line)
    print("did", json.dumps(push(*arguments, **options)), flush=True)
"""


def _start(hub, home, folder):
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, str(folder)],
        env=hub.environment(home) | {"RADTOWER_DEFER_MODELS": "1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def _ask(process, call):
    process.stdin.write(json.dumps(call) + "\n")
    process.stdin.flush()


def _answer(process):
    """What the push returned; logs and tracebacks come before it, without the token."""
    for line in process.stdout:
        assert "hf_local_test_token" not in line
        assert "Bearer" not in line
        if line.startswith("did "):
            return json.loads(line[4:])
    raise AssertionError("the process that pushes has ended")


@pytest.fixture(scope="session")
def _pushing(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pushing")
    with run_local_hub() as hub:
        process = _start(hub, folder / "home", folder / "folder")
        yield hub, process
        process.communicate()


@pytest.fixture
def hub(_pushing):
    """An empty Hub, which ``push`` talks to."""
    _pushing[0].forget()
    return _pushing[0]


@pytest.fixture
def push(_pushing):
    """Push [files, repo_id] with options; returns what was published or [error, its message, waits in s]."""

    def run(*arguments, **options):
        _ask(_pushing[1], (arguments, options))
        return _answer(_pushing[1])

    return run


@pytest.fixture
def start_push(tmp_path):
    """Start one push in a new process, which a test may kill, to a Hub that may be another."""

    def start(hub, *arguments, **options):
        process = _start(hub, tmp_path / "home", tmp_path / "folder")
        _ask(process, (arguments, options))
        return process, lambda: _answer(process)

    return start
