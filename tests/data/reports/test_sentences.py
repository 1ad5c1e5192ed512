"""Sentences as spans, and the grammar of changing one."""

import pytest

from radtower.data.reports.sentences import (
    fix_article,
    replace_sentence,
    split_sentences,
    uncapitalized,
    with_article,
)


@pytest.mark.parametrize(
    ("report", "sentences"),
    [
        ("Heart is large. Lungs are clear.", ["Heart is large.", "Lungs are clear."]),
        ("1. Cardiomegaly. 2. No acute disease", ["Cardiomegaly.", "No acute disease"]),
        ("A 3.5 mm nodule. seen", ["A 3.5 mm nodule. seen"]),
        ("Clear lungs.There is a mass..Heart", ["Clear lungs.", "There is a mass.", "Heart"]),
        ('Preserved. " Hiatal hernia " Both lungs "', ["Preserved.", "Hiatal hernia", "Both lungs"]),
        ("\u2022 Nodules. \u2022 Cyst (segment 4).", ["Nodules.", "Cyst (segment 4)."]),
        ("No acute disease. . ", ["No acute disease."]),
        ("Cyst? Mass!", ["Cyst?", "Mass!"]),
        (" . 1. 2) ", []),
        ("", []),
    ],
)
def test_splits_where_a_reader_would(report, sentences):
    found = split_sentences(report)
    assert [sentence.text for sentence in found] == sentences
    assert [report[sentence.start : sentence.end] for sentence in found] == sentences


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
