"""One wrong statement in a real report: hard negatives for training, and the error-discrimination test.

Rules over word lists (``corruption_words.yaml``); what they do not know they leave alone. Each changes one
sentence in one way, so that a negative has one kind. The four kinds but negation leave negated and normal
statements alone: "no left effusion" is not made wrong by "no right effusion". No change is made that may
leave a statement true ("bilateral effusions" to "left effusion") or that makes no sense ("linear edema").
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args

import numpy as np
import yaml

from radtower.data.reports.negation import HEDGE, NEGATION_CUE, PSEUDO_NEGATION, SIZE, flips
from radtower.data.reports.sentences import fix_article, replace_sentence
from radtower.processing.report_sentences import split_sentences

CorruptionKind = Literal["negation", "laterality", "severity", "finding", "temporal"]
KINDS: tuple[CorruptionKind, ...] = get_args(CorruptionKind)
# Advice, thanks and history are no statements about the scan.
_NO_STATEMENT = re.compile(
    r"\b(?:recommend\w*|advis\w+|suggest\w* (?:clinical|follow)|please|thank|certified|dr|prof|specialist"
    r"|clinical(?:ly)?|differential|history of|limited|follow-?up|follow up)\b",
    re.IGNORECASE,
)
_NORMAL_STATEMENT = re.compile(
    r"\b(?:normal(?:ly)?|unremarkable|intact|patent|open|natural)\b", re.IGNORECASE
)
_SIDE = re.compile(r"\b(left|right|LLL|LUL|RLL|RUL)\b", re.IGNORECASE)
_OTHER_SIDE = {"left": "right", "right": "left", "lll": "RLL", "lul": "RUL", "rll": "LLL", "rul": "LUL"}
# Sides that belong to a name, or that exist on one side only.
_FIXED_SIDE = re.compile(
    r"\b(?:left|right)[- ](?:heart|ventric\w+|atri\w+|main coronary|anterior descending|in place|behind"
    r"|aortic|sided aort\w+|middle|lobe of (?:the )?(?:liver|thyroid)|liver|hepatic|angle)\b"
    r"|\bmiddle lobe|\blingula"
    r"|\bR?ML\b|\bliver\b|\bspleen\b",
    re.IGNORECASE,
)
_BOTH = re.compile(r"\b(?:both|bilateral(?:ly)?|bibasilar|biapical)\b", re.IGNORECASE)
# Words after which a grade is part of a name, or of a range.
_FIXED_GRADE = re.compile(
    r"[ -](?:bowel|airways?|vessels?|body|and|to|or|sized|fissure|intestin\w+|number|amount|part|field)\b",
    re.IGNORECASE,
)
_RANGE = re.compile(r"(?:\bto|-) *$")
# What a finding cannot be swapped after or before: "linear atelectasis", "cyst-like lesion".
_BOUND_BEFORE = re.compile(
    r"\b(?:linear|focal|(?:sub)?segmental|discoid|plate-?like|band-?like|streaky|patchy|areas? of"
    r"|(?:non)?calcified|round(?:ed)?|spiculated|lobulated|solid|centrilobular|paraseptal|bullous|lobar"
    r"|compressive|passive|dependent|perihilar|mosaic|cavitary|cavitating|loculated|ground[- ]?glass"
    r"|reticular|nodular|interstitial|cystic)[ -](?:[\w-]+ )?$",
    re.IGNORECASE,
)
_BOUND_AFTER = re.compile(r"[ -](?:like|lesions?|formations?|structures?|areas?|appearance)\b", re.IGNORECASE)
# What does not come or go between two scans, or is no finding: nobody writes that it has improved.
_LASTING = re.compile(
    r"\b(?:granulomas?|granulomatous|calcif\w+|healed|surg\w+|postsurgical|post-?op\w*|sternotomy|clips?"
    r"|sutures?|sequela\w*|\w*scoliosis|kyphosis|osteophytes?|degenerative|spondylosis|deformit\w+|heart"
    r"|silhouette|mediastin\w+|contours?|hernia|eventration|elevat\w+|tortuous|ectatic|atherosclero\w+)\b",
    re.IGNORECASE,
)
_CHANGES = {"new", "worsened", "improved", "worsening", "improving"}
_COMPARISON = re.compile(
    r"\b(?:compar\w+|interval|previous(?:ly)?|prior|since|again|now|current\w*"
    r"|(?:has|have) (?:been )?(?:in|de)creas\w+)\b",
    re.IGNORECASE,
)
_FIXED_TIME = re.compile(
    r"[ -](?:obstructive|bronchitis|position|alignment|heart|cardiomediastinal|mediastin\w+|postop\w+|or|and"
    r"|on|respiratory|on chronic|ct|pet|thorax|exam\w*|stud\w+|scans?|review|than|in densit\w+|densit\w+)\b",
    re.IGNORECASE,
)
_NO_CHANGE = re.compile(
    r"\bno (?=(?:(?:significant|interval|appreciable|definite|obvious|substantial) )*"
    r"(?:change|difference)\b)",
    re.IGNORECASE,
)
_STABLE = re.compile(
    r"(?<!there )\b(is|are|was|were|remains?|appears?) "
    r"(?:(?:grossly|essentially|relatively|otherwise) )?(?:stable|unchanged)\b",
    re.IGNORECASE,
)
_STABLE_THING = re.compile(
    r"\bstable (?=(?:[\w-]+ ){0,3}?(?:cardiomegaly|appearance|opacit\w+|nodules?|mass|effusions?|atelectasis"
    r"|scarring|granulomas?|consolidation|edema|fractures?|deformity|changes|densit\w+|lesions?))",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Corruption:
    """A report with one error.

    ``sentence`` is the position of the changed sentence, counted by ``split_sentences`` from 0.
    """

    text: str
    kind: CorruptionKind
    sentence: int


def corrupt(text: str, kind: CorruptionKind, rng: np.random.Generator) -> Corruption | None:
    """Put one error of a kind into a report.

    Args:
        text: Report or section; anything but the changed words stays as it is.
        kind: ``negation`` (present to absent or back), ``laterality`` (side), ``severity`` (grade),
            ``finding`` (another of the same place that the report does not name) or ``temporal`` (change
            over time).
        rng: Chooses the sentence and the change.

    Returns:
        The changed report, or None where no rule applies.

    Raises:
        ValueError: If ``kind`` is unknown.
    """
    by_sentence = _all_of_kind(text, kind)
    if not by_sentence:
        return None
    position = list(by_sentence)[rng.integers(len(by_sentence))]
    options = by_sentence[position]
    return Corruption(options[rng.integers(len(options))], kind, position)


def corrupt_many(
    text: str, num: int, rng: np.random.Generator, kinds: Sequence[CorruptionKind] = KINDS
) -> list[Corruption]:
    """Return up to ``num`` different corruptions: of as many kinds, then of as many sentences, as there are.

    Raises:
        ValueError: If a kind is unknown.
    """
    options = {kind: _all_of_kind(text, kind) for kind in kinds}
    queues = {kind: _shuffled(kind, found, rng) for kind, found in options.items() if found}
    order = list(rng.permutation(list(queues)))
    made: dict[str, Corruption] = {}
    while order and len(made) < num:
        kind = order.pop(0)
        corruption = queues[kind].pop(0)
        made.setdefault(corruption.text, corruption)
        if queues[kind]:
            order.append(kind)
    return list(made.values())


@functools.cache
def word_lists() -> dict[str, Any]:
    """Content of ``corruption_words.yaml``."""
    path = resources.files("radtower.data.reports") / "corruption_words.yaml"
    content: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return content


def match_case(word: str, model: str) -> str:
    """Write ``word`` with the capitals of ``model``: first letter, or all of them."""
    if len(model) > 1 and model.isupper():
        return word.upper()
    return word[:1].upper() + word[1:] if model[:1].isupper() else word


def _all_of_kind(text: str, kind: CorruptionKind) -> dict[int, list[str]]:
    """Sentence position -> all corrupted reports."""
    if kind not in _RULES:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}, got {kind!r}.")
    found = {}
    for position, sentence in enumerate(split_sentences(text)):
        if _NO_STATEMENT.search(sentence.text):
            continue
        options = dict.fromkeys(_RULES[kind](sentence.text, text))
        wrong = [replace_sentence(text, sentence, o) for o in options if o.lower() != sentence.text.lower()]
        if wrong:
            found[position] = wrong
    return found


def _shuffled(
    kind: CorruptionKind, options: dict[int, list[str]], rng: np.random.Generator
) -> list[Corruption]:
    """All corruptions of a kind: first one per sentence, then the others; random otherwise."""
    rounds: list[tuple[int, float, Corruption]] = []
    for position, texts in options.items():
        for turn, row in enumerate(rng.permutation(len(texts))):
            rounds.append((turn, rng.random(), Corruption(texts[row], kind, position)))
    return [corruption for _, _, corruption in sorted(rounds, key=lambda entry: entry[:2])]


def _negation(sentence: str, report: str) -> Iterator[str]:
    yield from flips(sentence)


def _laterality(sentence: str, report: str) -> Iterator[str]:
    if not _is_positive(sentence) or _FIXED_SIDE.search(sentence):
        return
    sides = {found[1].lower() for found in _SIDE.finditer(sentence)}
    # "Bilateral effusions, larger on the right" and one that is bilateral besides: left alone.
    if len(sides) == 1 and not _BOTH.search(sentence):
        yield _SIDE.sub(lambda found: match_case(_OTHER_SIDE[found[1].lower()], found[1]), sentence)


def _severity(sentence: str, report: str) -> Iterator[str]:
    # A size beside the grade would give the error away.
    if not _is_positive(sentence) or SIZE.search(sentence):
        return
    for word, others in word_lists()["severity"].items():
        for found in re.finditer(rf"\b{word}\b", sentence, re.IGNORECASE):
            is_fixed = _FIXED_GRADE.match(sentence, found.end()) or _RANGE.search(sentence[: found.start()])
            if not is_fixed:
                for other in others:
                    yield _replaced(sentence, found, other)


def _finding(sentence: str, report: str) -> Iterator[str]:
    # "May be pneumonia" is not made wrong by "may be edema".
    if not _is_positive(sentence) or HEDGE.search(sentence):
        return
    for group in word_lists()["findings"]:
        for entry in group:
            if not _names(sentence, entry):
                continue
            others = [o for o in group if o is not entry and not _names(report, o)]
            for form, words in entry.items():
                for found in re.finditer(rf"(?<!covid )(?<!19 )\b{words}\b", sentence, re.IGNORECASE):
                    before = sentence[: found.start()]
                    if not _BOUND_BEFORE.search(before) and not _BOUND_AFTER.match(sentence, found.end()):
                        yield from _other_findings(sentence, found, form, others)
    yield from _other_adjectives(sentence, report)


def _other_adjectives(sentence: str, report: str) -> Iterator[str]:
    for word, replacements in word_lists()["finding_adjectives"].items():
        for found in re.finditer(rf"\b{word}\b(?! changes?)", sentence, re.IGNORECASE):
            for other in replacements:
                if other not in report.lower():
                    yield _replaced(sentence, found, other)


def _other_findings(
    sentence: str, found: re.Match[str], form: str, others: list[dict[str, str]]
) -> Iterator[str]:
    for other in others:
        if form in other:
            yield _replaced(sentence, found, other[form])
        elif form == "mass" and "one" in other:
            yield _replaced(sentence, found, other["one"])
        elif form == "one" and "mass" in other:
            # "a small effusion" -> "small thickening"
            article = re.search(r"\b[Aa]n? ((?:[\w-]+ ){0,3})$", sentence[: found.start()])
            start = article.start() if article else found.start()
            middle = article[1] if article else ""
            word = match_case(middle + other["mass"], sentence[start : start + 1])
            yield sentence[:start] + word + sentence[found.end() :]


def _names(report: str, entry: dict[str, str]) -> bool:
    return any(words in report.lower() for words in entry.values())


def _temporal(sentence: str, report: str) -> Iterator[str]:
    for found in _NO_CHANGE.finditer(sentence):
        rest = sentence[found.end() :]
        # "Change." alone would be no sentence.
        change = f"significant {rest}" if re.match(r"change|difference", rest) else rest
        yield sentence[: found.start()] + match_case(change, found[0][:1])
    if _is_positive(sentence):
        yield from _other_times(sentence)


def _other_times(sentence: str) -> Iterator[str]:
    is_lasting = _LASTING.search(sentence) is not None
    for found in () if is_lasting else _STABLE.finditer(sentence):
        is_plural = found[1].lower() in ("are", "were", "remain", "appear")
        for change in ("worsened", "improved"):
            verb = f"{'have' if is_plural else 'has'} {change}"
            yield sentence[: found.start()] + verb + sentence[found.end() :]
    for found in () if is_lasting else _STABLE_THING.finditer(sentence):
        yield _replaced(sentence, found, "worsening ")
    lists = word_lists()["temporal"]
    words = {**lists["certain"], **(lists["ambiguous"] if _COMPARISON.search(sentence) else {})}
    for word, others in words.items():
        for found in re.finditer(rf"(?<!-)\b{word}\b(?!-)", sentence, re.IGNORECASE):
            if not _FIXED_TIME.match(sentence, found.end()) and not _STABLE.search(sentence):
                for other in others:
                    if not is_lasting or other not in _CHANGES:
                        yield _replaced(sentence, found, other)


def _is_positive(sentence: str) -> bool:
    return not (
        NEGATION_CUE.search(sentence)
        or PSEUDO_NEGATION.search(sentence)
        or _NORMAL_STATEMENT.search(sentence)
    )


def _replaced(sentence: str, found: re.Match[str], word: str) -> str:
    text = sentence[: found.start()] + match_case(word, found[0]) + sentence[found.end() :]
    return fix_article(text, found.start())


_RULES: dict[str, Callable[[str, str], Iterator[str]]] = {
    "negation": _negation,
    "laterality": _laterality,
    "severity": _severity,
    "finding": _finding,
    "temporal": _temporal,
}
