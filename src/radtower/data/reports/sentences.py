"""Sentences of a report as spans, and the small grammar that changing one of them needs."""

import re
from dataclasses import dataclass

# Quotation marks and bullets separate the items of a CT-RATE impression.
_BREAK = re.compile(r'(?<=[.!?])\s+(?=[A-Z("]|\d+[.)]\s)|(?<=[a-z)])\.+(?=[A-Z][a-z])|["\u2022\u00b7]')
_EXTRA_STOPS = re.compile(r"([.!?])[\s.]+$")
_LIST_NUMBER = re.compile(r"\s*\d+[.)]?\s*")
_LEADING_NUMBER = re.compile(r"\d+[.)]\s+")
_SAYS_SOMETHING = re.compile(r"[A-Za-z]{2}")
# Nouns that take an article in the singular; the others of these reports ("edema") take none.
_COUNTABLE = re.compile(
    r"(?:[\w/-]+ ){0,5}?(?:abnormality|aneurysm|bulla|cavity|collection|cyst|density|effusion|embolus|finding"
    r"|fracture|granuloma|hernia|infiltrate|lesion|lymph node|mass|metastasis|nodule|opacity|plaque"
    r"|pneumothorax|process|shift|tumor)(?=[ ,.;:]|$)"
)


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


def replace_sentence(report: str, sentence: Sentence, text: str) -> str:
    """Return the report with ``text`` in the place of one of its sentences."""
    return report[: sentence.start] + text + report[sentence.end :]


def capitalized(text: str) -> str:
    """First letter in upper case."""
    return text[:1].upper() + text[1:]


def uncapitalized(text: str) -> str:
    """First letter in lower case, unless the word is an abbreviation or a name such as XXXX or T12."""
    word = re.match(r"[\w-]+", text)
    keeps = word is None or not word.group()[1:].islower()
    return text if keeps and (word is None or len(word.group()) > 1) else text[:1].lower() + text[1:]


def with_article(phrase: str) -> str:
    """Put "a" or "an" before a noun phrase that needs one: "small effusion" -> "a small effusion"."""
    if re.match(r"(?:an?|the|any|some|evidence|definite evidence)\b", phrase) or not _COUNTABLE.match(phrase):
        return phrase
    return f"{article_for(phrase)} {phrase}"


def article_for(phrase: str) -> str:
    """The indefinite article of a phrase."""
    return "an" if phrase[:1].lower() in "aeiou" else "a"


def fix_article(text: str, position: int) -> str:
    """Make "a" or "an" before ``position`` agree with the word that stands there."""
    before = re.search(r"\b([Aa])n?\s+$", text[:position])
    if before is None:
        return text
    article = article_for(text[position:])
    if before[1] == "A":
        article = article.capitalize()
    return f"{text[: before.start()]}{article} {text[position:]}"


def _trimmed(report: str, start: int, end: int) -> Sentence | None:
    text = report[start:end]
    leading = _LEADING_NUMBER.match(text.lstrip())
    offset = len(text) - len(text.lstrip()) + (leading.end() if leading else 0)
    # Open-i ends many reports with ". ." or "..".
    body = _EXTRA_STOPS.sub(r"\1", text[offset:].rstrip())
    if _LIST_NUMBER.fullmatch(body) or not _SAYS_SOMETHING.search(body):
        return None
    return Sentence(body, start + offset, start + offset + len(body))
