"""What is sent: the bytes of a chat request. All that does not depend on the report is serialized once."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

from radtower.labeling.findings import FindingsSet
from radtower.labeling.prompts import (
    build_messages,
    delimit_report,
    repair_messages,
    response_schema,
    system_prompt,
)

# Four statuses begin with four letters; a token of each, with and without a space, is in the first ten.
NUM_TOP_LOGPROBS = 10
# Which of them a server heeds is its own affair.
_LIMITS = ("max_tokens", "max_completion_tokens")


class Questions:
    """Request bodies about any report.

    Args:
        model: Model name as the server knows it.
        findings: The list to ask about.
        max_tokens: Limit of one reply.
        with_logprobs: Ask for token log-probabilities.
        fields: Further fields of the request, such as ``{"reasoning_effort": "low"}``; they replace ours, and
            None leaves a field out (``{"max_tokens": None, "max_completion_tokens": 4096}``).

    Raises:
        ValueError: If ``fields`` holds what this class writes (model, messages, response_format or stream),
            asks for several replies (``n``), or has a limit that is no positive integer.
    """

    def __init__(
        self,
        model: str,
        findings: FindingsSet,
        *,
        max_tokens: int,
        with_logprobs: bool = False,
        fields: Mapping[str, Any] | None = None,
    ) -> None:
        reserved = sorted(set(fields or {}) & {"model", "messages", "response_format", "stream"})
        if reserved:
            raise ValueError(f"fields must not hold {', '.join(reserved)}, got {reserved}. Leave them out.")
        if (fields or {}).get("n") not in (None, 1):
            raise ValueError(
                f"field n must be 1, got {(fields or {})['n']!r}. One reply is read: leave it out."
            )
        options: dict[str, Any] = {"temperature": 0.0, "max_tokens": max_tokens}
        if with_logprobs:
            options |= {"logprobs": True, "top_logprobs": NUM_TOP_LOGPROBS}
        options |= fields or {}
        options = {name: value for name, value in options.items() if value is not None}
        self.max_reply_tokens = _largest_limit(options)
        """The longest reply that a request allows, in tokens; None where it names no limit."""
        schema = {"name": "findings", "strict": True, "schema": response_schema(findings)}
        constraint = {"response_format": {"type": "json_schema", "json_schema": schema}}
        system = {"role": "system", "content": system_prompt(findings)}
        self._head = f'{{"model": {json.dumps(model)}, "messages": [{json.dumps(system)}'.encode()
        self._tail = f"], {json.dumps(options)[1:]}".encode() if options else b"]}"
        self._constrained_tail = f"], {json.dumps({**options, **constraint})[1:]}".encode()

    def ask(self, report: str, *, is_constrained: bool) -> bytes:
        """Return the first question about a report; constrained: with the JSON schema of the answer."""
        return self._body([{"role": "user", "content": delimit_report(report)}], is_constrained)

    def repair(self, report: str, reply: str, problem: str, *, is_constrained: bool) -> bytes:
        """Return the question that hands an unusable reply back."""
        messages = [{"role": "user", "content": delimit_report(report)}, *repair_messages(reply, problem)]
        return self._body(messages, is_constrained)

    def _body(self, messages: list[dict[str, str]], is_constrained: bool) -> bytes:
        # ASCII: json escapes the rest, so that a lone surrogate in a report cannot break the request.
        serialized = "".join(f", {json.dumps(message)}" for message in messages).encode()
        return self._head + serialized + (self._constrained_tail if is_constrained else self._tail)


def _largest_limit(options: Mapping[str, Any]) -> int | None:
    limits = [options[name] for name in _LIMITS if name in options]
    for limit in limits:
        if type(limit) is not int or limit < 1:
            raise ValueError(
                f"limits of a reply must be integers of at least 1, got {limit!r}. Fix the field."
            )
    return max(limits, default=None)


def prompt_digest(findings: FindingsSet) -> str:
    """Return twelve hex digits that change with the wording of any question or the schema."""
    parts = [build_messages("", findings), repair_messages("", ""), response_schema(findings)]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]
