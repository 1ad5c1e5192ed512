import contextlib
import json
import socket
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

HANG, RESET = "<hang>", "<reset>"


class ScriptedServer(ThreadingHTTPServer):
    """An OpenAI-compatible server that answers the n-th request with the n-th step, the last one for ever.

    A step is a reply, fields of a completion, (status, body), (status, body, headers), HANG or RESET, or a
    function that makes one of the request.
    """

    daemon_threads = True

    def __init__(self, *script: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = script
        self.requests: list[dict] = []
        self.keys: list[str | None] = []
        self.release = threading.Event()
        self.num_now = self.num_most = 0
        self.lock = threading.Lock()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next_step(self, request: dict, key: str | None) -> Any:
        with self.lock:
            self.requests.append(request)
            self.keys.append(key)
            step = self.script[min(len(self.requests), len(self.script)) - 1]
            return step(request) if callable(step) else step

    def handle_error(self, request: Any, client_address: Any) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was interrupted is no error
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: ScriptedServer

    def do_POST(self) -> None:
        assert self.path == "/v1/chat/completions"
        body = self.rfile.read(int(self.headers["Content-Length"]))
        step = self.server.next_step(json.loads(body), self.headers["Authorization"])
        if step == HANG:
            self.server.release.wait(60)
            self.close_connection = True
        elif step == RESET:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()
            self.close_connection = True
        else:
            self.answer(*step) if isinstance(step, tuple) else self.answer(200, completion(step))

    def answer(self, status: int, body: str, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body.encode())), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body.encode())

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):  # a reset connection cannot be flushed
            super().finish()

    def log_message(self, *_: object) -> None:
        pass


def completion(step: str | dict) -> str:
    fields = {"content": step} if isinstance(step, str) else step
    message = {"role": "assistant", "content": fields.get("content"), "refusal": fields.get("refusal")}
    choice = {"index": 0, "finish_reason": fields.get("finish_reason", "stop"), "message": message}
    if "logprobs" in fields:
        choice["logprobs"] = fields["logprobs"]
    usage = fields.get("usage", {"prompt_tokens": 100, "completion_tokens": 7, "total_tokens": 107})
    answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
    return json.dumps(answer | ({"usage": usage} if usage else {}))


@pytest.fixture
def chat_server(monkeypatch: pytest.MonkeyPatch) -> Iterator:
    """Start scripted servers: ``chat_server(*steps)``."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    servers = []

    def start(*script: Any) -> ScriptedServer:
        server = ScriptedServer(*script)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.release.set()
        server.shutdown()
        server.server_close()
