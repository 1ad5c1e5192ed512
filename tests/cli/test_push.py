"""``radtower push`` against a Hub on 127.0.0.1: what arrives, what is said, what a failure leaves behind."""

import json
import shutil
import subprocess
import sys

import pytest

from local_hub import run_local_hub
from radtower.data import publish
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor

TOKEN = "hf_local_test_token"
# All commands in one process: importing torch takes longer than all of them.
SCRIPT = """
import contextlib, io, json, os, sys, time
from huggingface_hub import HfApi  # its log is bound to the real stderr
from radtower.cli import main
time.sleep = lambda s: None
for line in sys.stdin:
    os.environ["HF_TOKEN"], arguments = json.loads(line)
    out, err = io.StringIO(), io.StringIO()
    sys.argv = ["radtower", *arguments]
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main.run()
        except SystemExit as ended:
            code = ended.code or 0
    print("did", json.dumps([code, out.getvalue(), err.getvalue()]), flush=True)
"""


@pytest.fixture
def vision(tiny_vision_config, tmp_path):
    """A trained folder, with what stays at home."""
    folder = tmp_path / "trained"
    CT3DVisionModel(tiny_vision_config).save_pretrained(folder)
    CT3DImageProcessor(spacing_mm=(3.0, 2.0, 2.5), size=(8, 8, 8)).save_pretrained(folder)
    (folder / "run.yaml").write_text("manifest: /secret/manifest.csv\n")
    return folder


@pytest.fixture(scope="module")
def process(tmp_path_factory):
    """A Hub, a process that takes commands, and the folder where all that it leaves behind is."""
    folder = tmp_path_factory.mktemp("process")
    with run_local_hub() as hub, (folder / "log.txt").open("w") as log:
        variables = {"COLUMNS": "200", "HF_DEBUG": "1", "RADTOWER_DEFER_MODELS": "1"}
        variables |= {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "HF_HUB_VERBOSITY": "debug"}
        process = subprocess.Popen(
            [sys.executable, "-c", SCRIPT],
            env=hub.environment(folder / "home") | variables,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
        yield hub, process, folder
        process.communicate()


@pytest.fixture
def hub(process):
    """The Hub, empty."""
    process[0].forget()
    return process[0]


@pytest.fixture
def run(process):
    """Run a command; returns exit code, stdout and stderr."""

    def run(*arguments, token=TOKEN):
        _, started, _ = process
        started.stdin.write(json.dumps([token, list(map(str, arguments))]) + "\n")
        started.stdin.flush()
        line = next(line for line in started.stdout if line.startswith("did "))
        return json.loads(line[4:])

    return run


def test_a_model_is_exported_checked_and_pushed_where_it_is_wanted(run, hub, vision):
    repo = "tester/tower"
    done = [
        run("push", vision, repo, "--json", "--license", "mit", "--message", "First", "--tag", "v1"),
        run("push", vision, repo, "--license", "mit"),
        run("push", vision, repo, "--license", "apache-2.0", "--branch", "side"),
        run("push", vision, repo, "--license", "apache-2.0", "--pr"),
        run("push", vision, "tester/open", "--public"),
    ]
    assert [code for code, _, _ in done] == [0] * 5, done
    held = hub.repo("models", repo)
    assert [commit.message for commit in held.commits] == ["initial commit", "First"]
    files = {name: len(content) for name, content in held.files.items() if name != ".gitattributes"}
    assert json.loads(done[0][1]) == {
        "repo_id": repo,
        "kind": "model",
        "files": files,
        "url": f"{hub.url}/{repo}",
        "commit": held.commits[1].oid,
        "is_private": True,
        "num_changed": len(files),
        "num_deleted": 0,
        "pull_request_url": None,
    }
    assert held.tags == {"v1": held.commits[1].oid}
    assert b"license: mit" in held.files["README.md"]
    assert {"model.safetensors", "modeling_ct3d.py", "preprocessor_config.json"} < set(files)
    assert "run.yaml" not in files
    where = f"{hub.url}/{repo} (private)"
    assert f"Exported for the push: {len(files)} files, " in done[1][1]
    assert f"Pushed to {where} before, nothing has changed since: commit {held.commits[1].oid}" in done[1][1]
    assert f"Pushed to {where}, commit {held.at('side').oid}: files: 2 changed, 0 deleted\n" in done[2][1]
    assert f"Pull request: {hub.url}/{repo}/discussions/1\n" in done[3][1]
    assert b"license: apache-2.0" in held.at("refs/pr/1").files["README.md"]
    assert not hub.repo("models", "tester/open").is_private
    assert len(hub.of("PUT", "/lfs/")) == 1  # the weights, once
    assert b"/secret" not in hub.everything_sent()


def test_the_token_is_nowhere_that_a_failing_push_leaves_behind(run, hub, process, vision, tmp_path):
    hub.fail("PUT", "/lfs/", status=403)
    hub.fail("POST", "/preupload/", is_reset=True)
    hub.fail("POST", "/commit/", status=503, times=8)
    push = ("push", vision, "tester/tower")
    done = [
        run(*push),
        run(*push),
        run(*push, "--pr"),
        run(*push, "--tag", "a b"),
        run(*push, token="hf_other"),
    ]
    messages = ("HTTP 403", "HTTP 503", "HTTP 503", "tag must be a name", "HTTP 401 from the Hub")
    for (code, out, err), message in zip(done, messages, strict=True):
        assert (code, out) == (2, "")
        assert err.startswith("error: ")
        assert message in err
        assert len(err.splitlines()) == 1
    sent = {request.token for request in hub.requests}
    assert {TOKEN, "hf_other"} <= sent
    left = [path for folder in (process[2], tmp_path) for path in folder.rglob("*") if path.is_file()]
    assert b"Send: curl" in (process[2] / "log.txt").read_bytes()  # the most that the client can say
    for content in (*(path.read_bytes() for path in left), json.dumps(done).encode(), hub.everything_sent()):
        assert TOKEN.encode() not in content
        assert b"hf_other" not in content
    assert not list(tmp_path.glob(".radtower-push-*"))


def test_an_export_and_an_adapter_are_pushed_as_what_they_are(run, hub, vision, tmp_path):
    assert run("export", vision, "-o", tmp_path / "export")[0] == 0
    code, out, err = run("push", tmp_path / "export", "tester/tower")
    assert (code, err) == (0, "")
    assert out.startswith("An export as it is: ")
    (tmp_path / "adapter").mkdir()
    (tmp_path / "adapter" / "adapter_config.json").write_text('{"base_model_name_or_path": "tester/base"}')
    shutil.copy(vision / "model.safetensors", tmp_path / "adapter" / "adapter_model.safetensors")
    before = len(hub.repo("models", "tester/tower").files)
    code, out, err = run("push", tmp_path / "adapter", "tester/tower")
    assert out.startswith("An adapter, without its base model: 3 files, ")
    # Left there, the model would be loaded in place of the base model.
    assert f": files: 3 changed, {before - 2} deleted" in out
    assert set(hub.repo("models", "tester/tower").files) == {
        *(".gitattributes", "README.md"),
        *("adapter_config.json", "adapter_model.safetensors"),
    }


def test_a_dry_run_says_what_would_go_up(radtower, vision, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    done = radtower("push", vision, "me/tower", "--dry-run")
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("Exported for the push: ")
    assert done.out.endswith(" MB\nNothing was pushed\n")
    said = json.loads(radtower("push", vision, "me/tower", "--dry-run", "--json").out)
    assert said["files"]["model.safetensors"] == (vision / "model.safetensors").stat().st_size
    assert (said["url"], said["commit"]) == (None, None)


def test_a_message_that_names_somebody_is_refused(run, hub, vision):
    code, _, err = run("push", vision, "tester/tower", "--message", "Scans of Dr. Miller", "--dry-run")
    assert code == 2
    assert "error: message must hold nothing that may identify a patient, got what looks like a name." in err
    assert not hub.requests


def test_without_a_token_nothing_is_exported(radtower, vision, monkeypatch):
    monkeypatch.setattr(publish, "get_token", lambda: None)
    done = radtower("push", vision, "me/tower")
    assert (done.code, "a token of the Hub must be set, got none" in done.err) == (2, True)


def test_what_the_privacy_check_finds_needs_a_reason(radtower, vision):
    config = json.loads((vision / "config.json").read_text())
    config["note"] = "Seen by Dr. Miller."
    (vision / "config.json").write_text(json.dumps(config))
    done = radtower("push", vision, "me/tower", "--dry-run")
    assert done.code == 2
    assert "got 1 name: config.json (name). Remove it" in done.err
    assert "Miller" not in done.err
    done = radtower("push", vision, "me/tower", "--dry-run", "--allow-phi-findings", "A test.")
    assert done.code == 0
    assert "Allowed, and recorded in privacy.json: 1 name\n" in done.out


@pytest.mark.parametrize("command", [("push",), ("push-labels",), ("push-metric",), ("index", "push")])
def test_every_push_takes_branch_tag_and_pull_request(radtower, command):
    told = radtower(*command, "x", "me/x", "--pr", "--tag", "v1")
    assert told.code == 2
    help_text = radtower(*command, "--help").out
    for option in ("--branch", "--tag", "--pr", "--public"):
        assert option in help_text
