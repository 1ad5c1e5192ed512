"""Say the same in other words: positives that share little surface with their report.

A model that has learned to look at words finds a rewritten report and its corrupted twin equally far from the
original. No rule touches sides, numbers or what is there.
"""

import re

import numpy as np

from radtower.data.reports.corruption import match_case, word_lists
from radtower.data.reports.negation import BE, PSEUDO_NEGATION, SEEN
from radtower.data.reports.sentences import capitalized, fix_article, uncapitalized
from radtower.processing.report_sentences import split_sentences

# What points to the sentence before it, and stays behind it.
_POINTS_BACK = re.compile(
    r"(?:It|Its|This|These|That|Those|They|Their|Other\w*|Apart|Besides|Also|However|Additionally|In addition"
    r"|Therefore|There also|The (?:largest|latter|former|other|described|mentioned|same|lesion|finding)s?"
    r"|Both of|One of|Some of|Former|Latter|Such|Similar\w*|Again|Furthermore|Moreover|Otherwise|Remaining"
    r"|Further|Hence|Thus|Here|Above|Where|Which)\b",
    re.IGNORECASE,
)
_LIST_ITEM = r"[^.;:,?!]+?(?:, [^.;:,?!]+?)*,? or [^.;:,?!]+?|[^.;:,?!]+?"
_VERB = re.compile(
    rf"\b(?:{BE}|has|have|had|remains?|appears?|may|can|shows?|{SEEN}|that|which|with|without|to|but|except|than|and)\b",
    re.IGNORECASE,
)
_NO_THING = re.compile(rf"No (?:evidence of )?({_LIST_ITEM})\.?")
_THERE_IS_NO = re.compile(rf"There (is|are|was|were) no (?:evidence of )?({_LIST_ITEM})\.?")
_NO_THING_SEEN = re.compile(rf"No ({_LIST_ITEM}) (is|are|was|were) (?:{SEEN})\.?")
_THING_NOT_SEEN = re.compile(rf"((?:[\w/()-]+ ){{1,6}}?)(is|are|was|were) not (?:{SEEN})\.?")


def rewrite(text: str, rng: np.random.Generator) -> str | None:
    """Reorder the sentences of a report, restate its negations and swap synonyms.

    A sentence that points back ("It is stable.") moves with the one before it.

    Args:
        text: Report or section.
        rng: Chooses among the ways, and the order.

    Returns:
        The rewritten report: its sentences joined by a space, without list numbers and bullets. None where
        nothing but the list numbers could be changed.
    """
    sentences = [sentence.text for sentence in split_sentences(text)]
    changed = [_with_synonyms(_restated(sentence, rng), rng) for sentence in sentences]
    if not changed:
        return None
    blocks = _blocks(sentences, changed)
    order = rng.permutation(len(blocks))
    if len(order) > 1 and (order == np.arange(len(order))).all():
        order = np.roll(order, 1)
    if changed == sentences and len(order) < 2:
        return None
    return " ".join(_closed(sentence) for row in order for sentence in blocks[row])


def _blocks(sentences: list[str], changed: list[str]) -> list[list[str]]:
    blocks: list[list[str]] = []
    for sentence, said in zip(sentences, changed, strict=True):
        if blocks and _POINTS_BACK.match(sentence):
            blocks[-1].append(said)
        else:
            blocks.append([said])
    return blocks


def _restated(sentence: str, rng: np.random.Generator) -> str:
    """Turn "No X." into "X is not seen." and the other ways round; tense and number stay."""
    if PSEUDO_NEGATION.search(sentence):
        return sentence
    for pattern, thing, verb in (
        (_NO_THING_SEEN, 1, 2),
        (_THERE_IS_NO, 2, 1),
        (_THING_NOT_SEEN, 1, 2),
        (_NO_THING, 1, None),
    ):
        found = pattern.fullmatch(sentence)
        if found and not _VERB.search(found[thing]):
            be = found[verb].lower() if verb else "are" if _is_plural(found[thing]) else "is"
            return _say_absent(found[thing].strip(), be, pattern, rng)
    return sentence


def _say_absent(thing: str, be: str, avoid: re.Pattern[str], rng: np.random.Generator) -> str:
    lower = uncapitalized(thing)
    ways = {
        _NO_THING_SEEN: f"No {lower} {be} seen.",
        _THERE_IS_NO: f"There {be} no {lower}.",
        _THING_NOT_SEEN: f"{capitalized(thing)} {be} not seen.",
    }
    kept = [text for pattern, text in ways.items() if pattern is not avoid]
    return kept[rng.integers(len(kept))]


def _with_synonyms(sentence: str, rng: np.random.Generator) -> str:
    """Swap every pair of the list of which one is there; the plainer words only one way."""
    two_ways, one_way = word_lists()["synonyms"], word_lists()["plainer_words"]
    for position in rng.permutation(len(two_ways) + len(one_way)):
        first, second = (*two_ways, *one_way)[position]
        is_one_way = position >= len(two_ways)
        here, there = (first, second) if is_one_way or _has(sentence, first) else (second, first)
        # Where both are there, or the new word overlaps the old, the meaning could shift.
        if not _has(sentence, here) or _has(sentence, there) or here in there:
            continue
        found = re.search(rf"\b{re.escape(here)}\b", sentence, re.IGNORECASE)
        assert found is not None
        # "PTX" stays as it is at the start of a sentence; "left lower lobe" from "LLL" is not shouted.
        word = there if there.isupper() or (here.isupper() and found.start()) else match_case(there, found[0])
        word = capitalized(there) if here.isupper() and not found.start() else word
        sentence = fix_article(sentence[: found.start()] + word + sentence[found.end() :], found.start())
    return sentence


def _has(sentence: str, words: str) -> bool:
    # The plain search first: most of the list is in no sentence.
    if words.lower() not in sentence.lower():
        return False
    return re.search(rf"\b{re.escape(words)}\b", sentence, re.IGNORECASE) is not None


def _is_plural(thing: str) -> bool:
    last = thing.split()[-1].lower()
    return last.endswith("s") and not last.endswith(("ss", "is", "us"))


def _closed(sentence: str) -> str:
    text = capitalized(sentence.rstrip(" ;,"))
    return text if text[-1] in ".?!:" else f"{text}."
