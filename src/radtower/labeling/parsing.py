"""The reply of a generative LLM -> status and evidence per finding, or a reason for refusal."""

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, create_model

from radtower.labeling.findings import FindingsSet, Status

_THINKING = re.compile(r"<think>.*?</think>", re.DOTALL)


class ParseFailure(StrEnum):
    """Why a reply was refused; counted, and stored in the label table."""

    EMPTY = "empty"
    NOT_JSON = "not_json"
    AMBIGUOUS = "ambiguous"
    DUPLICATE_KEY = "duplicate_key"
    MISSING_FINDING = "missing_finding"
    EXTRA_FINDING = "extra_finding"
    WRONG_STATUS = "wrong_status"
    WRONG_SHAPE = "wrong_shape"
    CUT_OFF = "cut_off"
    REFUSED = "refused"


class LabelParseError(ValueError):
    """A reply that cannot be used. The message never quotes the reply, which may quote the report."""

    def __init__(self, reason: ParseFailure, message: str) -> None:
        super().__init__(message)
        self.reason = reason


@dataclass(frozen=True)
class ParsedReply:
    """A valid reply, findings in the order of the set.

    ``evidence`` holds verbatim quotes (whitespace collapsed), or None where there is none.
    """

    status: dict[str, Status]
    evidence: dict[str, str | None]
    num_dropped_evidence: int


class _Entry(BaseModel):
    model_config = ConfigDict(extra="ignore")

    status: Status
    evidence: str | None = None


class _ExactEntry(BaseModel):
    model_config = ConfigDict(extra="forbid")

    status: Status
    evidence: str


@lru_cache(maxsize=8)
def _exact_reply(keys: tuple[str, ...]) -> TypeAdapter[BaseModel]:
    """Return the validator of the reply that was asked for; JSON text goes through it in one step."""
    fields: dict[str, Any] = {f"finding_{n}": (_ExactEntry, Field(alias=key)) for n, key in enumerate(keys)}
    return TypeAdapter(create_model("Reply", __config__=ConfigDict(extra="forbid"), **fields))


def parse_reply(reply: str, report: str, findings: FindingsSet) -> ParsedReply:
    """Read a reply that should be one JSON object, possibly wrapped in prose or a code fence.

    A quote that is not in the report is dropped and counted: the status stands, the evidence does not.

    Args:
        reply: What the model wrote.
        report: The text the model was given.
        findings: The list it was asked about; its answer must hold each exactly once.

    Raises:
        LabelParseError: With the reason, if the reply cannot be used.
    """
    entries = _read_exact(reply, findings.keys) or _read_wrapped(reply, findings)
    quotes = {key: entry.evidence and " ".join(entry.evidence.split()) for key, entry in entries.items()}
    evidence = {key: quote if quote and _has(report, quote) else None for key, quote in quotes.items()}
    return ParsedReply(
        status={key: entry.status for key, entry in entries.items()},
        evidence=evidence,
        num_dropped_evidence=sum(quotes[key] != "" for key, quote in evidence.items() if quote is None),
    )


def _read_exact(reply: str, keys: tuple[str, ...]) -> dict[str, _ExactEntry] | None:
    """Return the entries of a reply that is nothing but what was asked for; None for any other."""
    # JSON may repeat a key, and pydantic would take the last. Every finding takes five strings: where there
    # are no more quotes than those (an escape could hide one), nothing is repeated.
    if reply.count('"') != 10 * len(keys) or "\\" in reply:
        return None
    try:
        answer = _exact_reply(keys).validate_json(reply)
    except ValidationError:
        return None
    return dict(zip(keys, answer.__dict__.values(), strict=True))


def _read_wrapped(reply: str, findings: FindingsSet) -> dict[str, _ExactEntry]:
    answer = _find_answer(reply, findings)
    missing = [key for key in findings.keys if key not in answer]
    if missing:
        raise LabelParseError(ParseFailure.MISSING_FINDING, f"it has no entry for {', '.join(missing)}.")
    if len(answer) > len(findings.keys):
        num_extra = len(answer) - len(findings.keys)
        raise LabelParseError(ParseFailure.EXTRA_FINDING, f"it has {num_extra} keys that were not asked for.")
    entries = {key: _validate_entry(key, answer[key]) for key in findings.keys}
    return {
        key: _ExactEntry(status=entry.status, evidence=entry.evidence or "") for key, entry in entries.items()
    }


def _has(report: str, quote: str) -> bool:
    # A report comes normalized, so the second look is for what does not.
    return quote in report or quote in " ".join(report.split())


def _validate_entry(key: str, value: object) -> _Entry:
    try:
        return _Entry.model_validate(value)
    except ValidationError as error:
        is_status = any(
            detail["loc"] == ("status",) and detail["type"] == "enum" for detail in error.errors()
        )
    if is_status:
        message = f"the status of {key} must be one of {', '.join(Status)}."
        raise LabelParseError(ParseFailure.WRONG_STATUS, message)
    message = f"the entry of {key} must be an object with a status and an evidence string."
    raise LabelParseError(ParseFailure.WRONG_SHAPE, message)


def _find_answer(reply: str, findings: FindingsSet) -> dict[str, Any]:
    """Return the one object of the reply that names a finding; a draft in a thinking block does not count."""
    text = _THINKING.sub("", reply)
    if not text.strip():
        raise LabelParseError(ParseFailure.EMPTY, "it is empty.")
    objects = _objects_in(text)
    # In a reply that was cut off, the inner objects are whole: they name no finding, so they are no answer.
    answers = [candidate for candidate in objects if set(candidate) & set(findings.keys)]
    if answers and any(answer != answers[0] for answer in answers):
        raise LabelParseError(ParseFailure.AMBIGUOUS, f"it holds {len(answers)} different answers.")
    if answers:
        return answers[0]
    raise LabelParseError(
        ParseFailure.NOT_JSON, "it holds no complete JSON object with the findings as keys."
    )


def _objects_in(text: str) -> list[dict[str, Any]]:
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys)
    objects = []
    start = text.find("{")
    while start != -1:
        try:
            value, end = decoder.raw_decode(text, start)
        except LabelParseError:
            raise
        except ValueError:  # no JSON, or a number too long for Python
            end = start + 1
        except RecursionError:
            break  # nothing sensible is nested that deep, and every level would be tried again
        else:
            objects.append(value)
        start = text.find("{", end)
    return objects


def _unique_keys(pairs: Iterable[tuple[str, Any]]) -> dict[str, Any]:
    pairs = list(pairs)
    if len(dict(pairs)) < len(pairs):
        raise LabelParseError(ParseFailure.DUPLICATE_KEY, "an object in it has the same key twice.")
    return dict(pairs)
