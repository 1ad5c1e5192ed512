"""``radtower label --backend endpoint``, against a real server on 127.0.0.1 where something is sent."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from radtower.cli.endpoint_options import EndpointOptions
from radtower.labeling.label_table import read_labels

FINDINGS = (
    "name: own\nfindings:\n"
    "- {key: nodule, name: Nodule, definition: A nodule., prompts: [nodule]}\n"
    "- {key: effusion, name: Effusion, definition: Fluid., prompts: [effusion]}\n"
)
PRICES = "- {model: m, usd_per_million_in: 2.0, usd_per_million_out: 10.0, batch_factor: 0.5}\n"
GOOD = json.dumps(
    {"nodule": {"status": "present", "evidence": "nodule"}, "effusion": {"status": "absent", "evidence": ""}}
)


def completion():
    message = {"role": "assistant", "content": GOOD}
    usage = {"prompt_tokens": 1000, "completion_tokens": 100}
    return {"choices": [{"index": 0, "message": message, "finish_reason": "stop"}], "usage": usage}


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.requests.append(request)
        body = json.dumps(completion()).encode()
        self.send_response(429 if len(self.server.requests) in self.server.busy else 200)
        self.send_header("Retry-After", "7200")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.requests = []
    server.busy = ()  # numbers of requests that are told to come back in two hours
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def command(radtower, tmp_path):
    """Run ``radtower label`` on three reports, two of them the same."""
    (tmp_path / "findings.yaml").write_text(FINDINGS)
    (tmp_path / "prices.yaml").write_text(PRICES)
    (tmp_path / "reports.csv").write_text("study_id,report\n1,A nodule.\n2,Nothing.\n3,A  nodule.\n")
    arguments = ("-o", tmp_path / "labels.parquet", "--backend", "endpoint", "--model", "m")
    arguments += ("--findings", tmp_path / "findings.yaml", "--prices", tmp_path / "prices.yaml")
    return lambda *more: radtower("label", tmp_path / "reports.csv", *arguments, *more)


def address(server):
    return ("--base-url", f"http://127.0.0.1:{server.server_address[1]}/v1")


def test_reports_are_labeled_with_cost_and_the_flags_reach_the_request(command, server, tmp_path):
    flags = ("--max-tokens", "300", "--logprobs", "--field", "seed=3", "--concurrency", "2", "--timeout", "5")
    done = command(*address(server), *flags, "--max-cost", "1")
    assert (done.code, done.err.count("failed")) == (0, 0)
    assert "2 of 2 unique reports labeled" in done.out
    assert "Tokens in 2,000, out 200; cost 0.0060 USD; dropped quotes 1" in done.out
    request = server.requests[0]
    assert (request["max_tokens"], request["logprobs"], request["seed"]) == (300, True, 3)
    assert read_labels(tmp_path / "labels.parquet").frame["report_id"].tolist() == ["1", "2"]


def test_a_server_that_asks_for_a_long_wait_is_waited_for_as_long_as_allowed_and_named(command, server):
    server.busy = (1,)
    done = command(*address(server), "--max-retry-after", "1")
    assert done.code == 0
    assert "asked to wait up to 7200 s (Retry-After), and 1 s were waited at most" in done.out


def test_a_cap_holds_over_all_runs(command, server):
    done = command(*address(server), "--max-cost", "0.0065", "--max-tokens", "200", "--concurrency", "1")
    assert done.code == 1
    assert "budget" in done.out
    assert "failed: the rest: the next request can cost" in done.err
    again = command(*address(server), "--max-cost", "0.0065", "--max-tokens", "200", "--concurrency", "1")
    assert "with 0.0030 of 0.0065 USD spent" in again.err
    assert len(server.requests) == 1


def test_a_dry_run_estimates_and_sends_nothing(command, server, tmp_path):
    done = command("--dry-run", "--requests-per-minute", "1", "--json")
    estimate = json.loads(done.out)
    assert (done.code, estimate["num_reports"], estimate["minutes"]) == (0, 2, 2.0)
    assert estimate["batch_cost_usd"] == pytest.approx(estimate["cost_usd"] / 2)
    assert "minutes: unknown" in command("--dry-run").out
    assert server.requests == []
    assert not (tmp_path / "labels.parquet").exists()


def test_a_dry_run_counts_with_the_tokenizer_of_the_model(command, tmp_path, tiny_tokenizer):
    tiny_tokenizer.save_pretrained(tmp_path / "tokenizer")
    rough = json.loads(command("--dry-run", "--json").out)
    exact = json.loads(command("--dry-run", "--json", "--tokenizer", tmp_path / "tokenizer").out)
    assert exact["tokens_out"] == rough["tokens_out"]
    assert exact["tokens_in"] != rough["tokens_in"]


def test_a_batch_is_written_read_and_what_is_left_is_asked_online(command, server, tmp_path):
    written = command("--batch-write", tmp_path / "requests.jsonl")
    assert written.code == 0
    assert "num_requests: 2" in written.out
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    response = {"status_code": 200, "body": completion()}
    results = [
        {"custom_id": requests[1]["custom_id"], "response": None, "error": {"code": "batch_expired"}},
        {"custom_id": requests[0]["custom_id"], "response": response, "error": None},
    ]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, results)))
    read = command("--batch-read", tmp_path / "results.jsonl")
    assert read.code == 1
    assert "1 of 2 unique reports labeled" in read.out
    assert "cost 0.0015 USD" in read.out
    assert "failed: 2: batch:batch_expired" in read.err
    online = command(*address(server))
    assert (online.code, len(server.requests)) == (0, 1)
    assert "2 of 2 unique reports labeled" in online.out


def test_a_batch_that_is_read_twice_is_paid_for_once(command, tmp_path):
    command("--batch-write", tmp_path / "requests.jsonl")
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    unusable = completion()
    unusable["choices"][0]["message"]["content"] = "present"
    lines = [
        {"custom_id": request["custom_id"], "response": {"status_code": 200, "body": body}}
        for request, body in zip(requests, (completion(), unusable), strict=True)
    ]
    for name, request_id in (("one", "a"), ("copy", "a"), ("second batch", "b")):
        content = "\n".join(json.dumps({"id": request_id, **line}) for line in lines)
        (tmp_path / name).write_text(content)
    for name, cost in (("one", "0.0030"), ("one", "0.0030"), ("copy", "0.0030"), ("second batch", "0.0045")):
        read = command("--batch-read", tmp_path / name)
        assert read.code == 1
        assert f"cost {cost} USD" in read.out
        assert "failed: 2: batch:not_json" in read.err


def test_what_a_batch_file_holds_is_written_once_until_its_result_was_read(command, tmp_path):
    def write(name, *flags):
        done = command("--batch-write", tmp_path / name, "--json", *flags)
        assert done.code == 0, done.err
        lines = (tmp_path / name).read_text().splitlines() if (tmp_path / name).exists() else []
        return json.loads(done.out), [json.loads(line)["custom_id"] for line in lines]

    first, ids = write("first.jsonl")
    assert (first["num_requests"], first["num_left_out"]) == (2, 0)
    second, nothing = write("second.jsonl")
    assert (nothing, second["batch_files"], second["num_left_out"]) == ([], [], 2)
    assert second["left_out"] == [f"2 in {tmp_path / 'first.jsonl'}, whose results were not read"]
    said = command("--batch-write", tmp_path / "second.jsonl").out
    assert f"2 in {tmp_path / 'first.jsonl'}" in said
    assert "--batch-again" in said
    # Other questions are another generation.
    assert len(write("other.jsonl", "--max-tokens", "300")[1]) == 2

    error = {"code": "batch_expired"}
    line = {"id": "a", "custom_id": ids[0], "response": None, "error": error}
    (tmp_path / "results").write_text(json.dumps(line))
    command("--batch-read", tmp_path / "results")
    third, again = write("third.jsonl")
    assert (again, third["num_left_out"]) == (ids[:1], 1)
    # Results that are read a second time say nothing about the new file.
    command("--batch-read", tmp_path / "results")
    assert write("fourth.jsonl")[0]["num_left_out"] == 2
    fifth, everything = write("fifth.jsonl", "--batch-again")
    assert (everything, fifth["num_left_out"]) == (ids, 0)
    assert write("sixth.jsonl")[0]["left_out"] == [
        f"2 in {tmp_path / 'fifth.jsonl'}, whose results were not read"
    ]
    assert b"nodule." not in (tmp_path / "labels.parquet.ledger" / "ledger.sqlite").read_bytes()


def test_asking_for_what_a_batch_file_holds_is_said_to_be_paid_for_twice(command, server, tmp_path):
    assert "paid for twice" not in command("--batch-write", tmp_path / "requests.jsonl").out
    said = "2 of those to ask are in batch files whose results were not read: asked now as well"
    assert said in command("--dry-run").out
    assert said in command(*address(server)).out
    assert "paid for twice" not in command(*address(server)).out


def test_results_of_another_prompt_are_refused(command, tmp_path):
    command("--batch-write", tmp_path / "requests.jsonl")
    requests = [json.loads(line) for line in (tmp_path / "requests.jsonl").read_text().splitlines()]
    lines = [{"custom_id": request["custom_id"], "response": None} for request in requests]
    (tmp_path / "results.jsonl").write_text("\n".join(map(json.dumps, lines)))
    done = command("--batch-read", tmp_path / "results.jsonl", "--max-tokens", "7")
    assert done.code == 2
    assert "got 2 of 2 that are not" in done.err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "--base-url must be given"),
        (
            {"dry_run": True, "batch_write": "x"},
            "only one of these must be given, got --dry-run, --batch-write",
        ),
        ({"base_url": "http://x", "max_cost": 1.0}, "--max-cost must come with --prices, got 1.0"),
        (
            {"batch_write": "x", "prices": "y", "max_cost": 1.0},
            "--max-cost must not come with --batch-write, got 1",
        ),
        ({"base_url": "http://x", "batch_again": True}, "--batch-again must come with --batch-write, got it"),
        ({"base_url": "http://x", "field": ("a",)}, "--field must be NAME=JSON, got 'a'"),
        ({"base_url": "http://x", "field": ("a=low",)}, "--field must be NAME=JSON, got 'a=low'"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        EndpointOptions(model="m", **options)


def test_flags_of_an_endpoint_are_refused_for_another_backend(radtower, tmp_path):
    arguments = ("-o", tmp_path / "labels.parquet", "--model", "m", "--dry-run", "--max-cost", "1")
    done = radtower("label", tmp_path / "reports.csv", *arguments)
    assert done.code == 2
    assert "--backend must be endpoint for --max-cost, --dry-run, got encoder" in done.err
