"""The promise of the endpoint, with real processes: faults of all kinds, two kills, nothing lost."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from radtower.labeling.findings import load_findings
from radtower.labeling.label_table import read_labels

KEYS = load_findings("ct_rate_18").keys
SERVER = Path(__file__).with_name("fault_server.py")
CONCURRENCY = 64
COMMAND = "from radtower_command import main; main()"


@pytest.fixture(scope="module")
def fault_server():
    spec = importlib.util.spec_from_file_location("fault_server", SERVER)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def serve(tmp_path):
    """Start the server in a process of its own; returns its port."""
    processes = []

    def start(log, fault_share, delay_s):
        command = [sys.executable, SERVER, log, str(fault_share), str(delay_s), *KEYS]
        process = subprocess.Popen(command, stdout=subprocess.PIPE)
        processes.append(process)
        return int(process.stdout.readline())

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def start_labeling(table, output, port):
    flags = ["--backend", "endpoint", "--model", "m", "--base-url", f"http://127.0.0.1:{port}/v1"]
    flags += ["--concurrency", str(CONCURRENCY), "--timeout", "1", "--max-retries", "10"]
    arguments = ["label", str(table), "-o", str(output), *flags]
    environment = {**os.environ, "NO_PROXY": "127.0.0.1"}
    return subprocess.Popen(
        [sys.executable, "-c", COMMAND, *arguments],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def kill_when_asked(process, log, num_requests):
    while log.stat().st_size == 0 or log.read_bytes().count(b"\n") < num_requests:
        assert process.poll() is None, "it ended before it could be killed"
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()


def read_log(log):
    lines = [line.split() for line in log.read_text().splitlines()]
    return [(int(report), is_repair == "1", kind) for report, is_repair, kind in lines]


def num_asked_again(requests, fault_server):
    """Requests about a report after the last answer that it needed."""
    complete, again = set(), 0
    for report, is_repair, kind in requests:
        again += report in complete
        if kind in fault_server.USABLE or (is_repair and kind in fault_server.BAD_REPLY):
            complete.add(report)
    return again


@pytest.mark.parametrize("num_reports", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_whatever_the_server_does_and_whenever_we_are_killed_no_report_is_lost_or_asked_twice(
    fault_server, serve, tmp_path, num_reports
):
    log, table, output = tmp_path / "log", tmp_path / "reports.csv", tmp_path / "labels.parquet"
    log.touch()
    texts = [fault_server.report_text(number) for number in range(num_reports)]
    table.write_text("study_id,report\n" + "".join(f"s{n},{text}\n" for n, text in enumerate(texts)))
    port = serve(log, 0.3, 0.005)
    for share in (0.3, 0.8):
        kill_when_asked(start_labeling(table, output, port), log, int(share * num_reports))
        assert not output.exists()
    assert start_labeling(table, output, port).wait() == 1  # some failed

    requests = read_log(log)
    assert num_asked_again(requests, fault_server) <= 2 * CONCURRENCY
    kinds = Counter(kind for _, _, kind in requests)
    assert set(kinds) >= {*fault_server.USABLE, *fault_server.BAD_REPLY, *fault_server.TRANSPORT}

    frame = read_labels(output).frame.set_index("report_id")
    assert list(frame.index) == [f"s{number}" for number in range(num_reports)]
    always = {37: "reply:wrong_status", 77: "http_413", 177: "reply:missing_finding"}
    unlucky = 0
    for number, (error, status) in enumerate(zip(frame["error"], frame["status"], strict=True)):
        if number % 200 in always:
            assert error == always[number % 200]
        elif isinstance(error, str):
            assert error.startswith("reply:")  # two bad replies in a row
            unlucky += 1
        else:
            assert status == {key: fault_server.status_of(number, n) for n, key in enumerate(KEYS)}
    assert unlucky < 0.06 * num_reports

    # Once more: only what was not answered is asked again, and no bad reply is paid for a second time.
    assert start_labeling(table, output, port).wait() == 1
    assert {kind for _, _, kind in read_log(log)[len(requests) :]} == {"too_large"}
