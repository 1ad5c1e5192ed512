"""Sentences of a report as spans of its text."""

import re
from dataclasses import dataclass

# Quotation marks and bullets separate the items of a CT-RATE impression.
_BREAK = re.compile(r'(?<=[.!?])\s+(?=[A-Z("]|\d+[.)]\s)|(?<=[a-z)])\.+(?=[A-Z][a-z])|["\u2022\u00b7]')
_EXTRA_STOPS = re.compile(r"([.!?])[\s.]+$")
_LIST_NUMBER = re.compile(r"\s*\d+[.)]?\s*")
_LEADING_NUMBER = re.compile(r"\d+[.)]\s+")
_SAYS_SOMETHING = re.compile(r"[A-Za-z]{2}")


@dataclass(frozen=True)
class Sentence:
    """``text`` is ``report[start:end]``, with its full stop and without a list number or bullet."""

    text: str
    start: int
    end: int


def split_sentences(report: str) -> list[Sentence]:
    """Return the sentences of a report in order; what has no word is none.

    Putting a changed sentence back between ``start`` and ``end`` leaves the rest as it was.
    """
    bounds = [0]
    for found in _BREAK.finditer(report):
        # A full stop without a space after it belongs to the sentence before it.
        bounds += [found.end(), found.end()] if found.group()[0] == "." else [found.start(), found.end()]
    bounds.append(len(report))
    spans = zip(bounds[::2], bounds[1::2], strict=True)
    return [sentence for sentence in (_trimmed(report, *span) for span in spans) if sentence is not None]


def _trimmed(report: str, start: int, end: int) -> Sentence | None:
    text = report[start:end]
    leading = _LEADING_NUMBER.match(text.lstrip())
    offset = len(text) - len(text.lstrip()) + (leading.end() if leading else 0)
    # Open-i ends many reports with ". ." or "..".
    body = _EXTRA_STOPS.sub(r"\1", text[offset:].rstrip())
    if _LIST_NUMBER.fullmatch(body) or not _SAYS_SOMETHING.search(body):
        return None
    return Sentence(body, start + offset, start + offset + len(body))
