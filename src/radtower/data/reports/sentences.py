"""The small grammar that changing a sentence of a report needs."""

import re

from radtower.processing.report_sentences import Sentence

# Nouns that take an article in the singular; the others of these reports ("edema") take none.
_COUNTABLE = re.compile(
    r"(?:[\w/-]+ ){0,5}?(?:abnormality|aneurysm|bulla|cavity|collection|cyst|density|effusion|embolus|finding"
    r"|fracture|granuloma|hernia|infiltrate|lesion|lymph node|mass|metastasis|nodule|opacity|plaque"
    r"|pneumothorax|process|shift|tumor)(?=[ ,.;:]|$)"
)


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
