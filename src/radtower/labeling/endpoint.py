"""Labels from any server that speaks the OpenAI chat protocol, many requests at a time. Extra: ``label``.

One report per question, all findings at once. The server is asked for a JSON schema and never trusted.
"""

import asyncio
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import KW_ONLY, dataclass, field
from typing import Any

from radtower.labeling.chat.asker import Asker, Spent
from radtower.labeling.chat.budget import Budget, Price
from radtower.labeling.chat.chat_client import ChatClient, Limits, Server
from radtower.labeling.chat.event_loop import SteppedLoop
from radtower.labeling.chat.health import ServerHealth
from radtower.labeling.chat.pacing import Pacer
from radtower.labeling.chat.questions import Questions, prompt_digest
from radtower.labeling.chat.retry import RetryPolicy
from radtower.labeling.findings import FindingsSet
from radtower.labeling.prompts import PROMPT_VERSION
from radtower.labeling.report_labels import ReportLabels, StopLabeling

# A key, a status and, for some findings, a short quote.
TOKENS_PER_FINDING = 35


@dataclass
class EndpointLabeler:
    """A labeler backend behind an OpenAI-compatible server (OpenAI, vLLM, Ollama, llama.cpp, ...).

    A report costs one question, and one more when the reply cannot be used. What still fails is returned as
    an error with its reason; no reason holds text of the report, of the reply or of the key.

    Args:
        base_url: Address of the server, with its version part (``http://localhost:8000/v1``).
        model: Model name as the server knows it.
        findings: The list to ask about.
        api_key_env: Name of the environment variable that holds the key; None for a server without keys.
        timeout_s: Limit of one request, in seconds.
        max_tokens: Limit of one reply; 18 findings with quotes take about 600 tokens.
        concurrency: Requests in flight at most.
        requests_per_minute: Limit of the service; None for none.
        tokens_per_minute: Limit of the service, input and output together; None for none.
        retry: When a request is sent again.
        with_logprobs: Ask for token log-probabilities and turn them into scores.
        fields: Further fields of every request; None leaves one of ours out.
        price: What tokens cost; None where unknown.
        max_cost_usd: Cap on the cost of all runs of this generation; never exceeded. Needs a price.
        spent_usd: What earlier runs spent of it.

    Raises:
        ValueError: If the environment variable is not set, or a number is out of its range.
    """

    base_url: str
    model: str
    findings: FindingsSet
    _: KW_ONLY
    api_key_env: str | None = None
    timeout_s: float = 120.0
    max_tokens: int = 4096
    concurrency: int = 16
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    retry: RetryPolicy = field(default_factory=RetryPolicy)
    with_logprobs: bool = False
    fields: Mapping[str, Any] = field(default_factory=dict)
    price: Price | None = None
    max_cost_usd: float | None = None
    spent_usd: float = 0.0
    name: str = field(default="endpoint", init=False)
    prompt_version: str | None = field(default=PROMPT_VERSION, init=False)

    def __post_init__(self) -> None:
        for name in ("concurrency", "max_tokens"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}. Give a larger one.")
        self.questions = Questions(
            self.model,
            self.findings,
            max_tokens=self.max_tokens,
            with_logprobs=self.with_logprobs,
            fields=self.fields,
        )
        if self.max_cost_usd is not None and self.questions.max_reply_tokens is None:
            raise ValueError(
                "max_cost_usd must come with a limit of the reply, got fields without one. "
                "Give max_tokens or max_completion_tokens."
            )
        # Refuses now what it would refuse at the first report.
        self._server()
        self._limits()
        self._notes: dict[str, None] = {}

    @property
    def expected_tokens(self) -> float:
        """Usual length of a reply; for pace and estimates, never for the cap."""
        return float(min(TOKENS_PER_FINDING * len(self.findings.keys), self.max_tokens))

    @property
    def model_id(self) -> str:
        """Model name as the server knows it."""
        return self.model

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        """What the answers depend on beside model and prompt version."""
        return {
            "prompt": prompt_digest(self.findings),
            "max_tokens": self.max_tokens,
            "with_logprobs": self.with_logprobs,
            "fields": json.dumps(dict(self.fields), sort_keys=True),
        }

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        """Label reports, at most ``concurrency`` at a time; see ``LabelerBackend``.

        Raises:
            StopLabeling: When the cap is reached, the server is gone, or it refuses everything.
        """
        with self._opened() as run:
            yield from run.answers(reports)

    def label_into(self, reports: Iterable[str], store: Callable[[int, ReportLabels], None]) -> None:
        """Label reports and store each answer before the next request of its place in the queue is sent.

        Faster than :meth:`label`, whose answers are taken in bursts: all requests then fall into step, and
        server and client wait for each other. What is asked and not stored is in flight, in both.

        Args:
            reports: As in :meth:`label`.
            store: Takes position and labels; what it raises ends the run.

        Raises:
            StopLabeling: As in :meth:`label`.
        """
        with self._opened() as run:
            run.store_answers(reports, store)

    def notes(self) -> list[str]:
        """Return sentences about what the server did not do as asked, each once."""
        return list(self._notes)

    @contextmanager
    def _opened(self) -> Iterator["_Run"]:
        limits = self._limits()
        client = ChatClient(
            self._server(),
            limits,
            max_tokens=self.questions.max_reply_tokens or self.max_tokens,
            expected_tokens=self.expected_tokens,
        )
        asker = Asker(client, self.questions, self.findings)
        run = _Run(asker, limits.health, client)
        try:
            yield run
        finally:
            run.close()
            self._notes |= dict.fromkeys([*asker.notes, *client.notes])
            # The next run of this object goes on from here.
            self.spent_usd = limits.budget.spent_usd

    def _server(self) -> Server:
        key = None if self.api_key_env is None else os.environ.get(self.api_key_env)
        if self.api_key_env is not None and not key:
            raise ValueError(
                f"api_key_env must name a variable that is set, got {self.api_key_env!r}. "
                "Export it, or pass None for a server without keys."
            )
        return Server(self.base_url, self.timeout_s, key, self.retry)

    def _limits(self) -> Limits:
        return Limits(
            budget=Budget(self.price, self.max_cost_usd, self.spent_usd),
            pacer=Pacer(self.requests_per_minute, self.tokens_per_minute),
            health=ServerHealth(self.concurrency),
        )


class _Run:
    """One pass over reports: tasks in flight, and answers that wait to be taken."""

    def __init__(self, asker: Asker, health: ServerHealth, client: ChatClient) -> None:
        self._asker = asker
        self._health = health
        self._client = client
        self._loop = SteppedLoop()
        self._loop.run(client.open())
        self._done: deque[tuple[int, ReportLabels]] = deque()
        self._num_in_flight = 0
        self._stop: StopLabeling | None = None
        self._news = asyncio.Event()

    def answers(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        numbered = enumerate(reports)
        while True:
            # Texts are taken in the caller's thread, between the steps of the loop.
            while self._num_in_flight < self._room and (item := next(numbered, None)) is not None:
                self._num_in_flight += 1
                self._loop.start(self._answer(*item))
            if not self._num_in_flight:
                return
            self._news.clear()
            try:
                self._loop.run(self._news.wait())
            except KeyboardInterrupt:
                yield from self._last_answers()
                raise
            while self._done:
                yield self._done.popleft()
            if self._stop is not None:
                yield from self._last_answers()
                raise self._stop

    def store_answers(self, reports: Iterable[str], store: Callable[[int, ReportLabels], None]) -> None:
        numbered = enumerate(reports)
        while self._stop is None and not self._health.has_tried:
            if (item := next(numbered, None)) is None:
                return
            self._loop.run(self._label(*item, store))
        self._loop.run(self._store_side_by_side(numbered, store))
        if self._stop is not None:
            raise self._stop

    def _last_answers(self) -> Iterator[tuple[int, ReportLabels]]:
        """What there is, and what those in flight had spent."""
        self._loop.cancel()
        while self._done:
            yield self._done.popleft()

    def close(self) -> None:
        self._loop.cancel()
        self._loop.run(self._client.close())
        self._loop.close()

    @property
    def _room(self) -> int:
        # The first goes alone: a wrong key or address is refused once, not by every request in flight.
        return self._health.concurrency if self._health.has_tried else 1

    async def _store_side_by_side(
        self, numbered: Iterator[tuple[int, str]], store: Callable[[int, ReportLabels], None]
    ) -> None:
        async def one_after_the_other() -> None:
            while self._stop is None and (item := next(numbered, None)) is not None:
                await self._label(*item, store)

        # Not a TaskGroup: what store raises shall come out as it is; close() cancels the others.
        await asyncio.gather(*(one_after_the_other() for _ in range(self._health.concurrency)))

    async def _answer(self, position: int, report: str) -> None:
        try:
            await self._label(position, report, lambda *answer: self._done.append(answer))
        finally:
            self._num_in_flight -= 1
            self._news.set()

    async def _label(self, position: int, report: str, deliver: Callable[[int, ReportLabels], None]) -> None:
        spent = Spent()
        try:
            labels = await self._asker.label(report, spent)
        except StopLabeling as stop:
            self._stop = self._stop or stop
            if spent.tokens_in is None and not spent.cost_usd:
                return
            labels = ReportLabels.failed(self._asker.keys, stop.reason, **vars(spent))  # paid for
        except asyncio.CancelledError:
            if spent.cost_usd:
                reason = "interrupted" if self._stop is None else self._stop.reason
                deliver(position, ReportLabels.failed(self._asker.keys, reason, **vars(spent)))
            raise
        except Exception as error:
            # The type only: the message of a foreign exception may quote the report.
            labels = ReportLabels.failed(self._asker.keys, f"exception:{type(error).__name__}", **vars(spent))
        deliver(position, labels)
