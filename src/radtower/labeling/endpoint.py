"""Labels from any server that speaks the OpenAI chat protocol. Needs the extra ``label``.

One report per question, all findings at once. The server is asked for a JSON schema and never trusted.
"""

import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import openai
from openai.types.chat import ChatCompletion

from radtower.labeling.findings import FindingsSet
from radtower.labeling.parsing import LabelParseError, ParsedReply, parse_reply
from radtower.labeling.prompts import PROMPT_VERSION, build_messages, repair_messages, response_schema
from radtower.labeling.report_labels import ReportLabels


@dataclass
class _Usage:
    tokens_in: int | None = None
    tokens_out: int | None = None

    def add(self, completion: ChatCompletion) -> None:
        if completion.usage is not None:
            self.tokens_in = (self.tokens_in or 0) + completion.usage.prompt_tokens
            self.tokens_out = (self.tokens_out or 0) + completion.usage.completion_tokens


class _EndpointError(Exception):
    """A reason code; raised and caught in this file."""


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
        max_tokens: Limit of one reply; 18 findings with quotes take about 900 tokens.

    Raises:
        ValueError: If the environment variable is not set, or ``timeout_s`` is not positive.
    """

    base_url: str
    model: str
    findings: FindingsSet
    api_key_env: str | None = None
    timeout_s: float = 120.0
    max_tokens: int = 4096
    name: str = field(default="endpoint", init=False)
    prompt_version: str | None = field(default=PROMPT_VERSION, init=False)

    def __post_init__(self) -> None:
        if self.timeout_s <= 0:
            raise ValueError(f"timeout_s must be positive, got {self.timeout_s}. Give the limit in seconds.")
        key = "none" if self.api_key_env is None else os.environ.get(self.api_key_env)
        if not key:
            raise ValueError(
                f"api_key_env must name a variable that is set, got {self.api_key_env!r}. "
                "Export it, or pass None for a server without keys."
            )
        self._client = openai.OpenAI(
            base_url=self.base_url, api_key=key, timeout=self.timeout_s, max_retries=0
        )
        self._asks_for_schema = True

    @property
    def model_id(self) -> str:
        """Model name as the server knows it."""
        return self.model

    @property
    def settings(self) -> Mapping[str, str | int | float | bool | None]:
        """What the answers depend on beside model and prompt."""
        return {"max_tokens": self.max_tokens}

    def label(self, reports: Iterable[str]) -> Iterator[tuple[int, ReportLabels]]:
        """Label reports one after the other; see ``label_report``."""
        return ((position, self.label_report(report)) for position, report in enumerate(reports))

    def label_report(self, report: str) -> ReportLabels:
        """Label one report; never raises for what the server does."""
        usage = _Usage()
        messages = build_messages(report, self.findings)
        try:
            parsed = self._ask_and_repair(messages, report, usage)
        except (_EndpointError, LabelParseError) as error:
            reason = f"reply:{error.reason}" if isinstance(error, LabelParseError) else str(error)
            return ReportLabels.failed(
                self.findings.keys, reason, tokens_in=usage.tokens_in, tokens_out=usage.tokens_out
            )
        return ReportLabels(
            status=dict(parsed.status),
            # A generated word is not a probability.
            score=dict.fromkeys(self.findings.keys),
            evidence=parsed.evidence,
            tokens_in=usage.tokens_in,
            tokens_out=usage.tokens_out,
            num_dropped_evidence=parsed.num_dropped_evidence,
        )

    def close(self) -> None:
        """Close the connections."""
        self._client.close()

    def _ask_and_repair(self, messages: list[dict[str, str]], report: str, usage: _Usage) -> ParsedReply:
        reply = self._ask(messages, usage)
        try:
            return parse_reply(reply, report, self.findings)
        except LabelParseError as error:
            follow_up = [*messages, *repair_messages(reply, str(error))]
        return parse_reply(self._ask(follow_up, usage), report, self.findings)

    def _ask(self, messages: list[dict[str, str]], usage: _Usage) -> str:
        try:
            completion = self._complete(messages)
        except openai.APIStatusError as error:
            raise _EndpointError(f"http_{error.status_code}") from None
        except openai.APITimeoutError:
            raise _EndpointError("timeout") from None
        except openai.APIConnectionError:
            raise _EndpointError("connection") from None
        except (openai.OpenAIError, ValueError):
            raise _EndpointError("not_a_completion") from None
        if not isinstance(completion, ChatCompletion) or not completion.choices:
            raise _EndpointError("not_a_completion")
        usage.add(completion)
        return completion.choices[0].message.content or ""

    def _complete(self, messages: list[dict[str, str]]) -> ChatCompletion:
        request: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "temperature": 0.0,
            "max_tokens": self.max_tokens,
        }
        if not self._asks_for_schema:
            return self._client.chat.completions.create(**request)
        schema = {"name": "findings", "strict": True, "schema": response_schema(self.findings)}
        constrained = {**request, "response_format": {"type": "json_schema", "json_schema": schema}}
        try:
            return self._client.chat.completions.create(**constrained)
        except (openai.BadRequestError, openai.UnprocessableEntityError):
            completion = self._client.chat.completions.create(**request)
        # Only after it worked without: the refusal may have been about something else.
        self._asks_for_schema = False
        return completion
