"""The grammar of changing a sentence."""

import pytest

from radtower.data.reports.sentences import (
    fix_article,
    replace_sentence,
    uncapitalized,
    with_article,
)
from radtower.processing.report_sentences import split_sentences


def test_a_sentence_is_replaced_in_its_place():
    report = "1. Cardiomegaly. 2. Mass. . "
    assert replace_sentence(report, split_sentences(report)[1], "Cyst.") == "1. Cardiomegaly. 2. Cyst. . "


@pytest.mark.parametrize(
    ("phrase", "expected"),
    [
        ("small effusion.", "a small effusion."),
        ("acute abnormality", "an acute abnormality"),
        ("edema", "edema"),
        ("nodules", "nodules"),
        ("an effusion", "an effusion"),
        ("evidence of mass", "evidence of mass"),
    ],
)
def test_countable_things_get_an_article(phrase, expected):
    assert with_article(phrase) == expected


@pytest.mark.parametrize(
    ("text", "position", "expected"),
    [
        ("There is a extensive mass", 11, "There is an extensive mass"),
        ("An mild mass", 3, "A mild mass"),
        ("The old mass", 4, "The old mass"),
    ],
)
def test_articles_agree_with_the_word_after_them(text, position, expected):
    assert fix_article(text, position) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [("Pleural mass", "pleural mass"), ("XXXX mass", "XXXX mass"), ("T12 mass", "T12 mass")],
)
def test_names_keep_their_capitals(text, expected):
    assert uncapitalized(text) == expected
