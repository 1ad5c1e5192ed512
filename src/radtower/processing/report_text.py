"""Clean, hash, split and join report texts; plain str -> str, no labels and no tokens.

No message holds report text: a caller that logs an error must not leak a report.
"""

import hashlib
import re
import unicodedata

SECTIONS = ("findings", "impression", "other")
HEADINGS = {
    "findings": ("findings?", "observations?"),
    "impression": ("impressions?", "conclusions?", "opinion", "summary"),
    "other": (
        "indications?",
        "(?:clinical )?history",
        "clinical (?:information|indications?)",
        "reason for (?:exam(?:ination)?|study)",
        "techniques?",
        "comparisons?",
        "exam(?:ination)?",
        "procedure",
        "recommendations?",
    ),
}
NOT_GIVEN = re.compile(r"not given\.?", re.IGNORECASE)  # what CT-RATE writes into an empty cell
PLAIN_CHARACTERS = str.maketrans(
    {
        **dict.fromkeys("\u2010\u2011\u2012\u2013\u2014\u2015\u2212\ufe58\ufe63\uff0d", "-"),
        **dict.fromkeys("\u2018\u2019\u201a\u2032", "'"),
        **dict.fromkeys("\u201c\u201d\u201e\u2033", '"'),
        **dict.fromkeys("\u00ad\u200b\u200c\u200d\u2060\ufeff\x00", None),  # soft hyphen, zero width
    }
)
_ITEM_NUMBER = re.compile(r"(?:^|(?<=[\s.;]))(\d{1,4})[.)](?=\s)")
_WORD = re.compile(r"[\w%+<>=/-]+(?:\.\d+)?")
_NAMES = "|".join(f"(?P<{section}>{'|'.join(names)})" for section, names in HEADINGS.items())
# A heading opens a line or follows the end of a sentence, and has a colon or a line of its own.
# In "with these findings: ..." the word stands inside a sentence.
_HEADING = re.compile(
    rf"(?:^|(?<=[.;!?]))[ \t#*_]*(?:{_NAMES})[ \t*_]*(?::[ \t*_]*|$)", re.IGNORECASE | re.MULTILINE
)


def normalize_report(report: str) -> str:
    """Return ``report`` with plain dashes, quotes and single spaces; ``""`` for "Not given.".

    Case, punctuation and bullets stay. Two reports are the same report when this agrees.

    Raises:
        TypeError: If ``report`` is not a string, as an empty cell of a pandas table is not.
    """
    if not isinstance(report, str):
        raise TypeError(
            f"report must be a str, got {type(report).__name__}. Replace missing reports with ''."
        )
    text = " ".join(unicodedata.normalize("NFC", report).translate(PLAIN_CHARACTERS).split())
    return "" if NOT_GIVEN.fullmatch(text) else text


def report_sha256(report: str) -> str:
    """Return the SHA-256 of the normalized report, in hexadecimal: its identity in every table."""
    return normalized_sha256(normalize_report(report))


def normalized_sha256(text: str) -> str:
    """Return ``report_sha256`` of a text that ``normalize_report`` returned, without doing that again."""
    return hashlib.sha256(text.encode()).hexdigest()


def canonical_text(text: str) -> str:
    """Lower-case words without list numbers and punctuation: equal where a reader sees no difference.

    A list counts from 1, and may begin again; "rib 4." at the end of a sentence is no item of one.
    """
    lower = text.lower()
    kept, start, following = [], 0, 1
    for found in _ITEM_NUMBER.finditer(lower):
        number = int(found[1])
        if number in (1, following):
            kept.append(lower[start : found.start()])
            start, following = found.end(), number + 1
    return " ".join(_WORD.findall(" ".join([*kept, lower[start:]])))


def split_sections(report: str) -> dict[str, str]:
    """Return the normalized text under ``findings``, ``impression`` and ``other``; ``""`` for none.

    Indication, technique, comparison and what stands before the first heading are ``other``. A report without
    any heading is all ``findings``: that is how most corpora store the body. Repeated sections are joined.
    """
    normalize_report(report)  # refuses what is not a string
    parts: dict[str, list[str]] = {section: [] for section in SECTIONS}
    headings = list(_HEADING.finditer(report))
    if not headings:
        parts["findings"].append(report)
    else:
        parts["other"].append(report[: headings[0].start()])
    ends = [heading.start() for heading in headings[1:]] + [len(report)]
    for heading, end in zip(headings, ends, strict=False):
        parts[str(heading.lastgroup)].append(report[heading.end() : end])
    return {section: _joined(texts) for section, texts in parts.items()}


def join_sections(findings: str, impression: str) -> str:
    """Return findings, then impression, normalized, with one space between; either may be empty."""
    return _joined([findings, impression])


def _joined(texts: list[str]) -> str:
    return " ".join(text for text in map(normalize_report, texts) if text)
