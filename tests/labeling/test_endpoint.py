import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from radtower.labeling.endpoint import EndpointLabeler
from radtower.labeling.findings import Status, load_findings
from radtower.labeling.labeler import label_reports
from radtower.labeling.prompts import PROMPT_VERSION

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])
REPORT = "Small pleural effusion. Secret Person."
GOOD = json.dumps(
    {
        "pleural_effusion": {"status": "present", "evidence": "Small pleural effusion"},
        "emphysema": {"status": "not_mentioned", "evidence": "no such words"},
    }
)


class ScriptedServer(ThreadingHTTPServer):
    """Answers the n-th request with the n-th step of the script: a reply text, or (HTTP code, body)."""

    daemon_threads = True

    def __init__(self, *script: str | tuple[int, str]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.requests: list[dict] = []
        self.keys: list[str | None] = []

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"


class _Handler(BaseHTTPRequestHandler):
    server: ScriptedServer

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.requests.append(json.loads(body))
        self.server.keys.append(self.headers["Authorization"])
        step = self.server.script[len(self.server.requests) - 1]
        if step == "hang":
            self.server.release.wait(5)
            return
        code, text = step if isinstance(step, tuple) else (200, completion(step))
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, *_: object) -> None:
        pass


def completion(content: str | None, usage: bool = True) -> str:
    message = {"role": "assistant", "content": content}
    answer = {
        "id": "1",
        "object": "chat.completion",
        "created": 0,
        "model": "m",
        "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
    }
    if usage:
        answer["usage"] = {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107}
    return json.dumps(answer)


@pytest.fixture
def serve(monkeypatch) -> Iterator:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setenv("TEST_KEY", "sk-secret")
    opened = []

    def start(*script: str | tuple[int, str], **options) -> tuple[ScriptedServer, EndpointLabeler]:
        server = ScriptedServer(*script)
        server.release = threading.Event()
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        labeler = EndpointLabeler(server.base_url, "m", FINDINGS, api_key_env="TEST_KEY", **options)
        opened.append((server, labeler))
        return server, labeler

    yield start
    for server, labeler in opened:
        labeler.close()
        server.release.set()
        server.shutdown()
        server.server_close()


def test_a_good_reply_is_one_request_with_schema_key_and_report(serve):
    server, labeler = serve(GOOD)
    labels = labeler.label_report(REPORT)
    assert labels.error is None
    assert labels.status == {"pleural_effusion": Status.PRESENT, "emphysema": Status.NOT_MENTIONED}
    assert labels.evidence == {"pleural_effusion": "Small pleural effusion", "emphysema": None}
    assert labels.num_dropped_evidence == 1
    assert labels.score == {"pleural_effusion": None, "emphysema": None}
    assert (labels.tokens_in, labels.tokens_out) == (100, 7)
    (request,) = server.requests
    assert server.keys == ["Bearer sk-secret"]
    assert (request["model"], request["temperature"]) == ("m", 0.0)
    assert REPORT in request["messages"][1]["content"]
    schema = request["response_format"]["json_schema"]["schema"]
    assert schema["required"] == ["pleural_effusion", "emphysema"]


def test_a_fenced_reply_needs_no_repair(serve):
    server, labeler = serve(f"Here:\n```json\n{GOOD}\n```")
    assert labeler.label_report(REPORT).status["pleural_effusion"] is Status.PRESENT
    assert len(server.requests) == 1


def test_a_broken_reply_is_repaired_by_one_question(serve):
    server, labeler = serve(GOOD[:40], GOOD)
    labels = labeler.label_report(REPORT)
    assert labels.status["pleural_effusion"] is Status.PRESENT
    assert (labels.tokens_in, labels.tokens_out) == (200, 14)
    first, second = server.requests
    assert second["messages"][:2] == first["messages"]
    assert second["messages"][2] == {"role": "assistant", "content": GOOD[:40]}
    assert "no complete JSON object" in second["messages"][3]["content"]


def test_a_reply_broken_twice_is_an_error_with_the_last_reason(serve):
    server, labeler = serve("no", GOOD.replace("not_mentioned", "Secret"))
    labels = labeler.label_report(REPORT)
    assert labels.error == "reply:wrong_status"
    assert labels.status == {"pleural_effusion": None, "emphysema": None}
    assert (labels.tokens_in, labels.tokens_out) == (200, 14)
    assert len(server.requests) == 2


@pytest.mark.parametrize("code", [401, 404, 429, 500])
def test_a_refused_request_is_an_error_with_its_code(serve, code):
    server, labeler = serve((code, json.dumps({"error": {"message": f"bad key sk-secret for {REPORT}"}})))
    labels = labeler.label_report(REPORT)
    assert labels.error == f"http_{code}"
    assert (labels.tokens_in, labels.tokens_out) == (None, None)
    assert len(server.requests) == 1


def test_tokens_spent_before_a_failure_are_counted(serve):
    _, labeler = serve("no", (500, "{}"))
    labels = labeler.label_report(REPORT)
    assert (labels.error, labels.tokens_in, labels.tokens_out) == ("http_500", 100, 7)


@pytest.mark.parametrize("code", [400, 422])
def test_a_server_that_refuses_the_schema_is_asked_without_it_from_then_on(serve, code):
    server, labeler = serve((code, "{}"), GOOD, GOOD)
    assert [labels.error for _, labels in labeler.label([REPORT, REPORT])] == [None, None]
    assert ["response_format" in request for request in server.requests] == [True, False, False]


def test_a_refusal_that_is_not_about_the_schema_does_not_turn_it_off(serve):
    server, labeler = serve((400, "{}"), (400, "{}"), GOOD)
    assert [labels.error for _, labels in labeler.label([REPORT, REPORT])] == ["http_400", None]
    assert ["response_format" in request for request in server.requests] == [True, False, True]


@pytest.mark.parametrize("body", ["<html>busy</html>", "[]", "{}", '{"choices": []}'])
def test_an_answer_that_is_no_completion_is_an_error(serve, body):
    _, labeler = serve((200, body))
    assert labeler.label_report(REPORT).error == "not_a_completion"


def test_a_completion_without_text_is_asked_again_and_then_an_error(serve):
    _, labeler = serve((200, completion(None)), (200, completion(None)))
    assert labeler.label_report(REPORT).error == "reply:empty"


def test_a_server_that_counts_no_tokens_leaves_them_unknown(serve):
    _, labeler = serve((200, completion(GOOD, usage=False)))
    labels = labeler.label_report(REPORT)
    assert (labels.error, labels.tokens_in, labels.tokens_out) == (None, None, None)


def test_a_server_that_hangs_is_a_timeout(serve):
    _, labeler = serve("hang", timeout_s=0.2)
    assert labeler.label_report(REPORT).error == "timeout"


def test_a_server_that_is_gone_is_a_connection_error(serve):
    server, labeler = serve()
    server.shutdown()
    server.server_close()
    assert labeler.label_report(REPORT).error == "connection"


def test_it_is_a_backend_of_label_reports_and_leaks_nothing(serve):
    _, labeler = serve((500, "{}"), GOOD)
    rows = label_reports(
        [("a", REPORT), ("b", "Other. Small pleural effusion"), ("c", REPORT)], labeler, FINDINGS
    )
    assert [(row.report_id, row.error) for row in rows] == [("a", "http_500"), ("b", None)]
    assert (rows[1].labeler, rows[1].model_id, rows[1].prompt_version) == ("endpoint", "m", PROMPT_VERSION)
    assert "sk-secret" not in repr(labeler)
    assert "Secret" not in repr(rows)


def test_a_server_without_keys_needs_no_variable():
    labeler = EndpointLabeler("http://127.0.0.1:1/v1", "m", FINDINGS)
    labeler.close()
    assert labeler.model_id == "m"
    assert labeler.settings == {"max_tokens": 4096}


def test_a_variable_that_is_not_set_is_refused(monkeypatch):
    monkeypatch.delenv("MISSING_KEY", raising=False)
    with pytest.raises(ValueError, match="got 'MISSING_KEY'"):
        EndpointLabeler("http://127.0.0.1:1/v1", "m", FINDINGS, api_key_env="MISSING_KEY")


def test_a_timeout_that_is_not_positive_is_refused():
    with pytest.raises(ValueError, match="timeout_s must be positive, got 0"):
        EndpointLabeler("http://127.0.0.1:1/v1", "m", FINDINGS, timeout_s=0)
