"""Overhead of asking an endpoint about many reports, beside the openai client and datatrove.

    pip install openai datatrove aiosqlite aiofiles orjson
    python benchmarks/bench_label_client.py

A server in a process of its own answers every chat request after 20 ms with 18 findings. At 64 requests in
flight it could answer 3,200 reports per second; printed is the share of that which each client reaches, and
the CPU time a report costs it, which does not depend on what else the machine does to the clock. All ask the
same question and read the same reply with the same parser:

- radtower: label_reports, as ``radtower label`` does, from the first question to the last answer stored;
  ``whole_share`` also counts what comes before and after: reports hashed, label table written;
- sockets: constant bytes, replies not read: what this server on this machine can answer at all;
- aiohttp: the bare library, a JSON body per request;
- openai: openai.AsyncOpenAI without retries;
- datatrove: InferenceRunner in endpoint mode, with its request cache and JSONL writer.

One works at a time, in turns. Linux only. Prints one JSON document.
"""

import argparse
import asyncio
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from pathlib import Path
from statistics import median
from typing import Any

# Labeling through an endpoint needs no model: without this, PyTorch is loaded and its objects are in the way.
os.environ["RADTOWER_DEFER_MODELS"] = "1"

from radtower.labeling.endpoint import EndpointLabeler
from radtower.labeling.findings import load_findings
from radtower.labeling.labeler import label_reports
from radtower.labeling.parsing import parse_reply
from radtower.labeling.prompts import build_messages, response_schema
from radtower.labeling.report_labels import ReportLabels

FINDINGS = load_findings("ct_rate_18")
QUOTES = ("Small nodule in the left lung.", "No pleural effusion.", "")
FILLER = "The heart is normal in size and the mediastinum is unremarkable. " * 18  # about 300 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reports", type=int, default=10_000)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--delay-ms", type=float, default=20.0)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--clients", nargs="+", default=list(CLIENTS), choices=list(CLIENTS))
    parser.add_argument("--worker", nargs=2, metavar=("CLIENT", "PORT"), help=argparse.SUPPRESS)
    parser.add_argument("--server", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.server:
        asyncio.run(serve(arguments.delay_ms / 1000))
    elif arguments.worker:
        name, port = arguments.worker
        print(json.dumps(measure(name, int(port), arguments.reports, arguments.concurrency)))
    else:
        print(json.dumps(run_turns(arguments), indent=1))


def run_turns(arguments: argparse.Namespace) -> dict[str, Any]:
    """Let the clients work in turns, each in a fresh process, with a fresh server."""
    possible = arguments.concurrency / (arguments.delay_ms / 1000)
    common = ["--reports", str(arguments.reports), "--concurrency", str(arguments.concurrency)]
    common += ["--delay-ms", str(arguments.delay_ms)]
    turns: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.clients}
    for _ in range(arguments.turns):
        for name in arguments.clients:
            load = os.getloadavg()[0]
            server = subprocess.Popen([sys.executable, __file__, "--server", *common], stdout=subprocess.PIPE)
            try:
                assert server.stdout is not None
                port = server.stdout.readline().decode().strip()
                command = [sys.executable, __file__, "--worker", name, port, *common]
                result = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
            finally:
                server.kill()
                server.wait()
            turns[name].append({**result, "load_before": load})
    summary = {
        name: {
            "reports_per_s": round(median(turn["reports_per_s"] for turn in results)),
            "share_of_possible": round(median(turn["reports_per_s"] for turn in results) / possible, 3),
            "whole_share": round(median(turn["whole_reports_per_s"] for turn in results) / possible, 3),
            "best_share": round(max(turn["reports_per_s"] for turn in results) / possible, 3),
            "cpu_us_per_report": round(median(turn["cpu_us_per_report"] for turn in results)),
            "least_cpu_us_per_report": round(min(turn["cpu_us_per_report"] for turn in results)),
            "peak_memory_mib": round(max(turn["peak_memory_mib"] for turn in results)),
        }
        for name, results in turns.items()
    }
    about = {
        "reports": arguments.reports,
        "concurrency": arguments.concurrency,
        "delay_ms": arguments.delay_ms,
    }
    return {**about, "possible_per_s": possible, "cores": os.cpu_count(), "clients": summary, "turns": turns}


def measure(name: str, port: int, num_reports: int, concurrency: int) -> dict[str, float]:
    """Label reports with one client, and check that all were."""
    with tempfile.TemporaryDirectory() as folder:
        whole = Stopwatch()
        with whole:
            asking = (
                CLIENTS[name](f"http://127.0.0.1:{port}", num_reports, concurrency, Path(folder)) or whole
            )
    return {
        "reports_per_s": num_reports / asking.wall_s,
        "whole_reports_per_s": num_reports / whole.wall_s,
        "cpu_us_per_report": asking.cpu_s / num_reports * 1e6,
        "whole_cpu_us_per_report": whole.cpu_s / num_reports * 1e6,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


class Stopwatch:
    """Time on the clock and on the CPU, in seconds."""

    def __enter__(self) -> None:
        self.wall_s, self.cpu_s = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.wall_s, self.cpu_s = time.perf_counter() - self.wall_s, time.process_time() - self.cpu_s


class TimedLabeler(EndpointLabeler):
    """Measures from the first question to the last answer that was taken."""

    def label_into(self, reports: Iterable[str], store: Callable[[int, ReportLabels], None]) -> None:
        self.asking = Stopwatch()
        with self.asking:
            super().label_into(reports, store)


def report_text(number: int) -> str:
    return f"Report {number}. {' '.join(QUOTES[:2])} {FILLER}".strip()


def request_of(report: str) -> dict[str, Any]:
    schema = {"name": "findings", "strict": True, "schema": response_schema(FINDINGS)}
    return {
        "messages": build_messages(report, FINDINGS),
        "temperature": 0.0,
        "max_tokens": 4096,
        "response_format": {"type": "json_schema", "json_schema": schema},
    }


class Reports:
    """Texts made when they are asked for; readable twice."""

    def __init__(self, num_reports: int) -> None:
        self.num_reports = num_reports

    def __iter__(self) -> Iterator[tuple[str, str]]:
        return ((str(number), report_text(number)) for number in range(self.num_reports))


def with_radtower(address: str, num_reports: int, concurrency: int, folder: Path) -> Stopwatch:
    labeler = TimedLabeler(f"{address}/v1", "m", FINDINGS, concurrency=concurrency)
    summary = label_reports(Reports(num_reports), labeler, FINDINGS, folder / "labels.parquet")
    assert summary.num_labeled == num_reports
    return labeler.asking


def with_aiohttp(address: str, num_reports: int, concurrency: int, folder: Path) -> None:
    import aiohttp

    async def run() -> None:
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=concurrency)) as session:

            async def ask(report: str) -> str:
                body = {"model": "m", **request_of(report)}
                async with session.post(f"{address}/v1/chat/completions", json=body) as response:
                    return (await response.json())["choices"][0]["message"]["content"]

            await ask_all(ask, num_reports, concurrency)

    asyncio.run(run())


def with_sockets(address: str, num_reports: int, concurrency: int, folder: Path) -> None:
    """No client at all: the same bytes over and over, replies counted and not read."""
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"model": "m", **request_of(report_text(0))}).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n\r\n"
    request = head.encode() + body

    async def work(numbers: Iterator[int]) -> None:
        reader, writer = await asyncio.open_connection(host, int(port))
        for _ in numbers:
            writer.write(request)
            reply = (await reader.readuntil(b"\r\n\r\n")).lower()
            await reader.readexactly(int(reply.split(b"content-length:")[1].split(b"\r\n")[0]))
        writer.close()
        await writer.wait_closed()

    async def run() -> None:
        numbers = iter(range(num_reports))
        await asyncio.gather(*(work(numbers) for _ in range(concurrency)))

    asyncio.run(run())


def with_openai(address: str, num_reports: int, concurrency: int, folder: Path) -> None:
    import openai

    async def run() -> None:
        async with openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="x", max_retries=0) as client:

            async def ask(report: str) -> str:
                completion = await client.chat.completions.create(model="m", **request_of(report))
                return completion.choices[0].message.content or ""

            await ask_all(ask, num_reports, concurrency)

    asyncio.run(run())


async def ask_all(ask: Callable[[str], Awaitable[str]], num_reports: int, concurrency: int) -> None:
    """Ask with ``concurrency`` workers, and read every reply."""
    texts = (text for _, text in Reports(num_reports))
    num_labeled = 0

    async def work() -> None:
        nonlocal num_labeled
        for report in texts:
            parse_reply(await ask(report), report, FINDINGS)
            num_labeled += 1

    await asyncio.gather(*(work() for _ in range(concurrency)))
    assert num_labeled == num_reports


def with_datatrove(address: str, num_reports: int, concurrency: int, folder: Path) -> None:
    from datatrove.data import Document
    from datatrove.pipeline.inference.run_inference import InferenceConfig, InferenceRunner
    from datatrove.pipeline.writers import JsonlWriter
    from loguru import logger

    logger.remove()
    num_labeled = 0

    async def roll_out(document: Any, generate: Callable[[dict[str, Any]], Awaitable[Any]]) -> dict[str, str]:
        nonlocal num_labeled
        result = await generate(request_of(document.text))
        parse_reply(result.text, document.text, FINDINGS)
        num_labeled += 1
        return {"text": result.text}

    config = InferenceConfig(
        server_type="endpoint",
        model_name_or_path="m",
        endpoint_url=address,
        max_concurrent_generations=concurrency,
    )
    writer = JsonlWriter(str(folder / "out"), output_filename="${rank}_${chunk_index}.jsonl")
    runner = InferenceRunner(roll_out, config, writer, checkpoints_local_dir=str(folder / "checkpoints"))
    runner.run(Document(text=text, id=number) for number, text in Reports(num_reports))
    assert num_labeled == num_reports


CLIENTS = {
    "radtower": with_radtower,
    "sockets": with_sockets,
    "aiohttp": with_aiohttp,
    "openai": with_openai,
    "datatrove": with_datatrove,
}


class Chat(asyncio.Protocol):
    """The least that an HTTP server can do: find the end of the request, wait, send a constant."""

    def __init__(self, delay_s: float, answer: bytes) -> None:
        self.delay_s, self.constant = delay_s, answer
        self.buffer = bytearray()
        self.loop = asyncio.get_running_loop()

    def connection_made(self, transport: Any) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        end = self.buffer.find(b"\r\n\r\n")
        if end < 0:
            return
        head = bytes(self.buffer[:end]).lower()
        length = int(head.split(b"content-length:")[1].split(b"\r\n")[0]) if b"content-length:" in head else 0
        if len(self.buffer) >= end + 4 + length:
            self.buffer.clear()
            # A GET asks whether the server is there.
            delay_s = self.delay_s if length else 0.0
            self.loop.call_later(delay_s, self.answer, b"connection: close" in head)

    def answer(self, is_last: bool) -> None:
        if not self.transport.is_closing():
            self.transport.write(self.constant)
            if is_last:
                self.transport.close()


async def serve(delay_s: float) -> None:
    answer = {
        key: {"status": status, "evidence": quote}
        for number, key in enumerate(FINDINGS.keys)
        for status, quote in [(("present", "absent", "not_mentioned")[number % 3], QUOTES[number % 3])]
    }
    message = {"role": "assistant", "content": json.dumps(answer)}
    usage = {"prompt_tokens": 1500, "completion_tokens": 600, "total_tokens": 2100}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    about = {"id": "1", "object": "chat.completion", "created": 0, "model": "m"}
    body = json.dumps({**about, "choices": [choice], "usage": usage}).encode()
    constant = (
        b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    )
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Chat(delay_s, constant), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    main()
