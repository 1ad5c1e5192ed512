"""One question to an OpenAI-compatible server: sent until it is answered, within pace and budget.

Over aiohttp: the openai client takes several times the CPU per request (benchmarks/bench_label_client.py).
"""

import asyncio
import json
import re
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import aiohttp
from yarl import URL

from radtower.labeling.chat.budget import Budget
from radtower.labeling.chat.completion import Completion, read_completion
from radtower.labeling.chat.health import ServerHealth
from radtower.labeling.chat.pacing import Pacer
from radtower.labeling.chat.retry import RATE_LIMITED, RetryPolicy, is_retried, retry_after_s

CHARACTERS_PER_TOKEN = 4.0  # of English; for pace and estimates, never for the cap
_PAUSING_STATUS = (429, 503)  # what is said to one request holds for all
_NOT_A_COMPLETION = "not_a_completion"
_IDENTIFIER = re.compile(r"[a-z][a-z_.]{1,40}")


class AskError(Exception):
    """A question that was not answered; the message is a code, ``status`` the last HTTP status, if any."""

    def __init__(self, code: str, status: int | None = None) -> None:
        super().__init__(code)
        self.status = status


@dataclass(frozen=True)
class Server:
    """Where to ask.

    Args:
        base_url: Address with its version part (``http://localhost:8000/v1``).
        timeout_s: Limit of one request, in seconds.
        key: Sent as bearer token; None for a server without keys.
        retry: When to ask again.

    Raises:
        ValueError: If the address is not one of HTTP, ``timeout_s`` is not positive, or the key is malformed.
    """

    base_url: str
    timeout_s: float
    key: str | None = field(default=None, repr=False)
    retry: RetryPolicy = field(default_factory=RetryPolicy)

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}. Give the limit in seconds.")
        parts = urlsplit(self.base_url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError(
                f"base_url must be an http or https address, got {self.base_url!r}. "
                "Write it as http://localhost:8000/v1."
            )
        if self.key is not None and (self.key != self.key.strip() or not self.key.isprintable()):
            raise ValueError(
                "key must have no control characters and no space around it, got one that has (not shown). "
                "Set the variable of --api-key-env again; often it ends with a newline."
            )

    @property
    def url(self) -> URL:
        """Where chat completions are."""
        return URL(self.base_url.rstrip("/") + "/chat/completions")

    @property
    def proxy(self) -> str | None:
        """The proxy that the environment names for this address; looked up once, not per request."""
        parts = urlsplit(self.base_url)
        if proxy_bypass(parts.netloc):
            return None
        return getproxies().get(parts.scheme)


@dataclass(frozen=True)
class Limits:
    """What the requests of a run share."""

    budget: Budget
    pacer: Pacer
    health: ServerHealth


@dataclass(eq=False)
class _Fault(Exception):
    """A try without a usable answer."""

    code: str
    status: int | None = None
    wait_s: float | None = None  # asked for by the server
    is_sent: bool = True  # a request that was sent and not answered may have been billed
    name: str = ""  # what the server calls it


class ChatClient:
    """Connections to a server, for many questions at a time; ``open`` it first and ``close`` it last.

    Args:
        server: Where to ask.
        limits: Shared by all questions.
        max_tokens: Limit of one reply, for the budget.
        expected_tokens: Usual length of a reply, for the pace.
    """

    def __init__(self, server: Server, limits: Limits, *, max_tokens: int, expected_tokens: float) -> None:
        self._server = server
        self._limits = limits
        self._max_tokens = max_tokens
        self._expected_tokens = expected_tokens
        self._url, self._proxy = server.url, server.proxy
        self._session: aiohttp.ClientSession | None = None
        self._longest_wait_s = 0.0  # asked for, and not granted

    @property
    def notes(self) -> list[str]:
        """Sentences for the user."""
        if not self._longest_wait_s:
            return []
        return [
            f"The server asked to wait up to {self._longest_wait_s:g} s (Retry-After), and "
            f"{self._server.retry.retry_after_cap_s:g} s were waited at most: raise --max-retry-after, or "
            "run again later."
        ]

    async def open(self) -> None:
        """Prepare connections; inside the event loop that will use them."""
        headers = {"Content-Type": "application/json"}
        if self._server.key is not None:
            headers["Authorization"] = f"Bearer {self._server.key}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            cookie_jar=aiohttp.DummyCookieJar(),
            headers=headers,
            timeout=aiohttp.ClientTimeout(total=self._server.timeout_s),
        )

    async def close(self) -> None:
        """Close the connections."""
        if self._session is not None:
            await self._session.close()

    async def ask(
        self,
        body: bytes,
        on_cost: Callable[[float], None],
        ask_instead: Callable[[int | None], Awaitable[Completion | None]] | None = None,
    ) -> Completion:
        """Send a question until it is answered.

        Args:
            body: The request.
            on_cost: Called with what each try counts in the budget, in USD, also if the try was lost; never
                without a price. Whoever keeps the sum keeps the cap over runs.
            ask_instead: Awaited with the HTTP status of each failed try, if it has one; a completion that it
                gives is the answer.

        Raises:
            AskError: If it is not, after all retries or at once.
            StopLabeling: If no other question would be either.
        """
        retry = self._server.retry
        attempt = 0
        limited_since: float | None = None
        while True:
            try:
                return await self._try(body, on_cost)
            except _Fault as fault:
                if ask_instead is not None and (other := await ask_instead(fault.status)) is not None:
                    return other
                if fault.status == RATE_LIMITED and limited_since is None:
                    limited_since = time.monotonic()
                limited_s = 0.0 if limited_since is None else time.monotonic() - limited_since
                is_last_try = retry.is_used_up(attempt, fault.status, limited_s)
                self._record(fault, is_last_try)
                is_worth_it = fault.status is None or is_retried(fault.status)
                if is_last_try or not is_worth_it:
                    raise AskError(fault.code, fault.status) from None
                await self._wait(fault, attempt)
                attempt += 1

    async def ask_once(self, body: bytes, on_cost: Callable[[float], None]) -> Completion | None:
        """Send a question a single time; None if it is not answered, which says nothing about the server."""
        try:
            return await self._try(body, on_cost)
        except _Fault:
            return None

    async def _try(self, body: bytes, on_cost: Callable[[float], None]) -> Completion:
        tokens = len(body) / CHARACTERS_PER_TOKEN + self._expected_tokens
        # No tokenizer makes more tokens than there are bytes.
        reserved = await self._limits.budget.reserve(len(body), self._max_tokens)
        cost: float | None = 0.0  # until it is sent
        try:
            await self._limits.pacer.wait_turn(tokens)
            cost = None
            completion = await self._send(body)
            if completion.usage is not None:
                used = completion.usage
                self._limits.pacer.correct(tokens, used.prompt_tokens + used.completion_tokens)
                cost = self._cost_usd(completion)
        except _Fault as fault:
            cost = None if fault.is_sent else 0.0
            raise
        finally:
            settled = self._limits.budget.settle(reserved, cost)
            if self._limits.budget.price is not None:
                on_cost(settled)
        self._limits.health.record_success()
        return completion

    def _cost_usd(self, completion: Completion) -> float | None:
        """What an answer cost; None where price or tokens are not known."""
        price, usage = self._limits.budget.price, completion.usage
        if price is None or usage is None:
            return None
        return price.cost_usd(usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens)

    async def _send(self, body: bytes) -> Completion:
        assert self._session is not None, "open() comes first"
        try:
            async with self._session.post(
                self._url, data=body, proxy=self._proxy, allow_redirects=False
            ) as response:
                content = await response.read()
        except TimeoutError:
            raise _Fault("timeout") from None
        except aiohttp.ClientConnectorError:
            raise _Fault("connection", is_sent=False) from None
        except (aiohttp.ClientError, OSError):
            raise _Fault("connection") from None
        if response.status != 200:
            wait_s = self._granted(retry_after_s(response.headers))
            name = _error_name(content)
            raise _Fault(f"http_{response.status}", response.status, wait_s, is_sent=False, name=name)
        completion = read_completion(content)
        if completion is None:
            raise _Fault(_NOT_A_COMPLETION)
        return completion

    def _record(self, fault: _Fault, is_last_try: bool) -> None:
        health = self._limits.health
        if fault.status is not None:
            health.record_status(fault.status, fault.name, is_last_try)
        elif fault.code == _NOT_A_COMPLETION:
            health.record_status(200, is_last_try=is_last_try)
        else:
            health.record_silence(fault.code, is_last_try, fault.is_sent)

    def _granted(self, asked_s: float | None) -> float | None:
        cap_s = self._server.retry.retry_after_cap_s
        if asked_s is None or asked_s <= cap_s:
            return asked_s
        self._longest_wait_s = max(self._longest_wait_s, asked_s)
        return cap_s

    async def _wait(self, fault: _Fault, attempt: int) -> None:
        retry = self._server.retry
        if fault.wait_s is not None and fault.status in _PAUSING_STATUS:
            self._limits.pacer.pause(fault.wait_s)
        elif fault.wait_s is not None:
            await asyncio.sleep(fault.wait_s)
        # A server that names short waits and does not keep them must not be asked without end.
        if fault.wait_s is None or attempt >= retry.max_retries:
            await asyncio.sleep(retry.backoff_s(attempt))


def _error_name(content: bytes) -> str:
    """Return the identifier of an error, such as ``context_length_exceeded``; never its sentence."""
    try:
        error = json.loads(content)["error"]
        name = error["code"] or error["type"]
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""
    return name if isinstance(name, str) and _IDENTIFIER.fullmatch(name) else ""
