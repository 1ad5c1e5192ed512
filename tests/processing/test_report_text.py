import hashlib

import pytest

from radtower.processing.report_text import (
    canonical_text,
    join_sections,
    normalize_report,
    report_sha256,
    split_sections,
)


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("  No\teffusion.\r\n\n Heart normal. ", "No effusion. Heart normal."),
        ("5\u201310\u00a0mm \u2014 \u2018ground\u2019 \u201cglass\u201d", "5-10 mm - 'ground' \"glass\""),
        ("No\u200bdule\u00ad \ufeff", "Nodule"),
        ("atele\u0301lectasie", "atel\u00e9lectasie"),
        ("\u2022 Nodule, 5 mm\u00b2", "\u2022 Nodule, 5 mm\u00b2"),
        ("Not given.", ""),
        (" not given ", ""),
        ("History not given. No effusion.", "History not given. No effusion."),
        ("", ""),
    ],
)
def test_normalizes_what_does_not_change_the_meaning(report, expected):
    assert normalize_report(report) == expected
    assert normalize_report(expected) == expected


def test_hashes_the_normalized_text():
    expected = hashlib.sha256(b"5-10 mm nodule.").hexdigest()
    assert report_sha256("5\u201310  mm\nnodule. ") == expected
    assert report_sha256("5-10 mm Nodule.") != expected


@pytest.mark.parametrize(
    ("report", "findings", "impression", "other"),
    [
        ("FINDINGS: Clear lungs. IMPRESSION: Normal.", "Clear lungs.", "Normal.", ""),
        ("Findings:\nClear lungs.\nImpression:\nNormal.", "Clear lungs.", "Normal.", ""),
        ("findings: a.\nimpressions: b.", "a.", "b.", ""),
        ("FINDINGS\nClear.\n\nIMPRESSION\nNormal.", "Clear.", "Normal.", ""),
        ("**Findings:** Clear.\n## Impression\nNormal.", "Clear.", "Normal.", ""),
        ("IMPRESSION: Normal. FINDINGS: Clear.", "Clear.", "Normal.", ""),
        ("CT chest.\nINDICATION: Cough.\nFINDINGS: Clear.", "Clear.", "", "CT chest. Cough."),
        ("Technique: 1 mm. Comparison: None. Findings: A. Conclusion: B.", "A.", "B.", "1 mm. None."),
        ("Findings: A.\nFindings: B.", "A. B.", "", ""),
        ("Findings: Not given.\nImpression: Normal.", "", "Normal.", ""),
        ("Clear lungs. No nodule.", "Clear lungs. No nodule.", "", ""),
        ("Opacity with these findings: cavity.", "Opacity with these findings: cavity.", "", ""),
        ("Findings: the impression of the heart is clear.", "the impression of the heart is clear.", "", ""),
        ("Examined: yes. Findingsx: no.", "Examined: yes. Findingsx: no.", "", ""),
        ("Findings:", "", "", ""),
        ("Not given.", "", "", ""),
        ("", "", "", ""),
    ],
)
def test_splits_by_heading(report, findings, impression, other):
    assert split_sections(report) == {"findings": findings, "impression": impression, "other": other}


@pytest.mark.parametrize(
    ("findings", "impression", "expected"),
    [("A.", " B.\n", "A. B."), ("Not given.", "B.", "B."), ("A.", "", "A."), ("", "Not given.", "")],
)
def test_joins_findings_before_impression(findings, impression, expected):
    assert join_sections(findings, impression) == expected


@pytest.mark.parametrize("function", [normalize_report, report_sha256, split_sections])
def test_refuses_a_missing_cell(function):
    with pytest.raises(TypeError, match="report must be a str, got float"):
        function(float("nan"))


def test_canonical_text_drops_case_numbering_and_punctuation_only():
    assert canonical_text("1. No acute disease. 2) Clear.") == canonical_text("no acute disease; clear")
    assert canonical_text("A 1.5 cm nodule.") == "a 1.5 cm nodule"
    assert canonical_text("A 2.5 cm nodule.") != canonical_text("A 1.5 cm nodule.")
    assert canonical_text("T12 fracture") != canonical_text("T1 fracture")
    # A number before a full stop is an item of a list only in its turn.
    assert canonical_text("Fracture of rib 4. No edema.") == "fracture of rib 4 no edema"
    assert canonical_text("1. Rib 7. 2. Scar. 1. Clear.") == "rib 7 scar clear"
    assert canonical_text("In 2022. Clear.") != canonical_text("In 2021. Clear.")
