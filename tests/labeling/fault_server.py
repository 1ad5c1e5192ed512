"""A server process that answers with faults: ``python fault_server.py LOG FAULT_SHARE DELAY_S KEY ...``.

It prints its port, and appends a line ``REPORT IS_REPAIR ANSWER`` to LOG for every answer, before it is sent.
What it answers depends on the report and on how often it was asked about it, so every run is the same.
"""

import asyncio
import json
import random
import re
import sys
from collections import Counter
from datetime import UTC, datetime
from email.utils import format_datetime
from pathlib import Path

STATUSES = ("present", "absent", "uncertain", "not_mentioned")
USABLE = ("good", "prose", "invented_evidence")
BAD_REPLY = ("truncated", "wrong_enum", "missing", "extra", "wrong_language", "empty")
TRANSPORT = ("busy", "busy_until", "error_500", "hang", "reset", "not_http_json")
ALWAYS = {37: "wrong_enum", 77: "too_large", 177: "missing"}  # report % 200 -> its only answer


def report_text(number: int) -> str:
    return f"Report {number} of the chest. No further findings in this examination."


def status_of(number: int, finding: int) -> str:
    return STATUSES[(number * 7 + finding * 3 + number // 4) % 4]


def answer_kind(report: int, times_asked: int, fault_share: float) -> str:
    if fault_share and report % 200 in ALWAYS:
        return ALWAYS[report % 200]
    draw = random.Random(f"{report} {times_asked}")
    return draw.choice(USABLE[1:] + BAD_REPLY + TRANSPORT) if draw.random() < fault_share else "good"


def reply(report: int, kind: str, keys: list[str]) -> str:
    answer = {}
    for number, key in enumerate(keys):
        status = status_of(report, number)
        quote = "" if status == "not_mentioned" else f"Report {report} of the chest."
        answer[key] = {"status": status, "evidence": quote}
    first, second = list(answer)[:2]
    if kind == "invented_evidence":
        answer[first] = {**answer[first], "evidence": "never said"}
    elif kind == "wrong_enum":
        answer[second]["status"] = "maybe"
    elif kind == "wrong_language":
        answer = {key: {"status": "vorhanden", "evidence": ""} for key in answer}
    elif kind == "missing":
        del answer[second]
    elif kind == "extra":
        answer["fracture"] = answer[first]
    text = json.dumps(answer)
    return {
        "prose": f"Sure! Here it is:\n```json\n{text}\n```\nBye.",
        "truncated": text[:-30],
        "empty": "",
    }.get(kind, text)


class Chat(asyncio.Protocol):
    """One connection; requests on it come one after the other."""

    def __init__(self, log, asked, fault_share, delay_s, keys):
        self.log, self.asked, self.keys = log, asked, keys
        self.fault_share, self.delay_s = float(fault_share), float(delay_s)

    def connection_made(self, transport):
        self.transport = transport
        self.buffer = bytearray()

    def data_received(self, data):
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        length = re.search(rb"content-length: *(\d+)", self.buffer[:end], re.IGNORECASE) if end >= 0 else None
        if length and len(self.buffer) >= end + 4 + int(length[1]):
            body = bytes(self.buffer[end + 4 :])
            self.buffer.clear()
            asyncio.get_running_loop().call_later(self.delay_s, self.answer, body)

    def answer(self, body):
        found = re.search(rb"Report (\d+) of", body)
        report = int(found[1])
        self.asked[report] += 1
        kind = answer_kind(report, self.asked[report], self.fault_share)
        self.log.write(b"%d %d %s\n" % (report, b'"role": "assistant"' in body, kind.encode()))
        if kind == "reset":
            self.transport.abort()
        elif kind != "hang":
            self.transport.write(http_answer(report, kind, self.keys))


def http_answer(report: int, kind: str, keys: list[str]) -> bytes:
    headers, status, body = "", 200, b""
    if kind == "busy":
        status, headers = 429, "Retry-After: 0.01\r\n"
    elif kind == "busy_until":
        status, headers = 503, f"Retry-After: {format_datetime(datetime.now(UTC), usegmt=True)}\r\n"
    elif kind == "error_500":
        status, body = 500, b"{}"
    elif kind == "too_large":
        status, body = 413, b"{}"
    elif kind == "not_http_json":
        body = b"<html>busy</html>"
    else:
        message = {"role": "assistant", "content": reply(report, kind, keys)}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = {"prompt_tokens": 1500, "completion_tokens": 500}
        body = json.dumps({"choices": [choice], "usage": usage}).encode()
    head = f"HTTP/1.1 {status} X\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


async def main(log_path: str, fault_share: str, delay_s: str, *keys: str) -> None:
    asked: Counter = Counter()
    with Path(log_path).open("ab", buffering=0) as log:
        server = await asyncio.get_running_loop().create_server(
            lambda: Chat(log, asked, fault_share, delay_s, keys), "127.0.0.1", 0
        )
        sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
        sys.stdout.flush()
        await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
