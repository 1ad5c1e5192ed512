"""HTTP of the Hub: requests are read, recorded, made to fail where a test wants it, and routed."""

import json
import re
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit

from .endpoints import ROUTES, HubError
from .faults import Fault
from .state import TOKEN, LocalHub, Request


@contextmanager
def run_local_hub(hub: LocalHub | None = None) -> Iterator[LocalHub]:
    """Serve until the block ends; then nobody listens, and connections that are open break.

    Args:
        hub: One that was served before, to be served again, at its address. None is a new one.
    """
    port = 0 if hub is None else int(hub.url.rpartition(":")[2])
    hub = LocalHub() if hub is None else hub
    hub.closed.clear()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", port), handler)
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.closed.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # else each answer waits 40 ms for the acknowledgment of its headers
    hub: LocalHub

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def handle(self) -> None:
        # A client that was done early; ValueError: a connection that a fault broke.
        with suppress(ConnectionError, ValueError):
            super().handle()

    def do_GET(self) -> None:
        self._answer("GET")

    def do_HEAD(self) -> None:
        self._answer("HEAD")

    def do_POST(self) -> None:
        self._answer("POST")

    def do_PUT(self) -> None:
        self._answer("PUT")

    def _answer(self, method: str) -> None:
        token = (self.headers.get("Authorization") or "").removeprefix("Bearer ") or None
        parts = urlsplit(self.path)
        fault = self.hub.take_fault(method, unquote(parts.path))
        if fault is not None and fault.delay_s:
            self.hub.closed.wait(fault.delay_s)
        if self.hub.closed.is_set():  # a client that kept its connection
            self._break()
            return
        if fault is not None and fault.is_reset:
            self.rfile.read(int(self.headers.get("Content-Length") or 0) // 2)
            self._break()
            return
        body = self._read_body()
        with self.hub.lock:
            self.hub.requests.append(Request(method, unquote(parts.path), body, token))
            if fault is not None and self._is_failed(fault):
                return
            try:
                self._route(method, parts.path, parts.query, body, token)
            except HubError as error:
                self.send(error.status, json.dumps({"error": error.message}).encode(), error.headers)

    def _is_failed(self, fault: Fault) -> bool:
        if fault.action is not None:
            fault.action()
        if fault.is_answer_lost:
            self.send = self._send_nothing  # type: ignore[method-assign]
        if fault.status is not None:
            self.send(fault.status, b'{"error": "planted fault"}', dict(fault.headers))
        return fault.status is not None

    def _read_body(self) -> bytes:
        if "chunked" not in (self.headers.get("Transfer-Encoding") or ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)

    def _route(self, method: str, path: str, query: str, body: bytes, token: str | None) -> None:
        for verbs, pattern, needs_token, action in ROUTES:
            match = re.fullmatch(pattern, path)  # before it is unquoted: branches may have slashes
            if match and method in verbs:
                if needs_token and token != TOKEN:
                    raise HubError(self.hub.refused_tokens.get(token or "", 401))
                groups = {name: unquote(part) for name, part in match.groupdict().items() if part}
                action(self, {**groups, "query": query, "token": token}, body)
                return
        raise HubError(404)

    def send(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        """Answer with bytes."""
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def send_json(self, content: Any, status: int = 200) -> None:
        """Answer with JSON."""
        self.send(status, json.dumps(content).encode(), {"Content-Type": "application/json"})

    def _send_nothing(self, status: int, content: bytes, headers: dict[str, str] | None = None) -> None:
        self._break()

    def _break(self) -> None:
        """Close the connection so that the client sees a reset and no end."""
        self.close_connection = True
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.rfile.close()
        self.connection.close()
