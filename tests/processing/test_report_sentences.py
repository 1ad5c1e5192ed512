"""Sentences as spans of a report."""

import pytest

from radtower.processing.report_sentences import split_sentences


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
