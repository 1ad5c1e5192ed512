import re

import numpy as np
import pytest

from radtower.demo import phantom_wording as wording
from radtower.demo.phantom import PHANTOM_FINDINGS, Phantom, make_phantom
from radtower.demo.phantom_findings import PlacedFinding
from radtower.demo.phantom_report import STYLES, WORD_LIMITS, write_report
from radtower.labeling.findings import Status

_REGIONS = {
    "lung_nodule": "lower lobe",
    "lung_opacity": "upper lobe",
    "consolidation": "lower lobe",
    "lymphadenopathy": "subcarinal",
    "coronary_artery_wall_calcification": "right coronary",
}


@pytest.fixture(scope="module")
def normal():
    return make_phantom(1, [])


def _phantom(normal, names, **changes):
    """A phantom whose placed findings are set by hand; the report writer reads nothing else."""
    placed = []
    for name in PHANTOM_FINDINGS:
        if name in names:
            given = {"side": "right", "size_mm": 37, "severity": "severe", "region": _REGIONS.get(name, "")}
            given |= {"kind": "pacemaker"} if name == "medical_material" else {}
            placed.append(PlacedFinding(name=name, **(given | changes)))
    return Phantom(
        volume_hu=normal.volume_hu,
        spacing_mm=normal.spacing_mm,
        placed=tuple(placed),
        seed=normal.seed,
        habitus=normal.habitus,
        lesions={},
    )


def _reports(normal, num=300):
    rng = np.random.default_rng(3)
    for seed in range(num):
        names = [name for name in PHANTOM_FINDINGS if rng.random() < 0.35]
        phantom = _phantom(normal, names)
        yield phantom, write_report(phantom, seed)


def _mentions(name, text):
    """True if any name of the finding, or any fixed part of its phrases, is in the text."""
    words = wording.WORDINGS[name]
    phrases = [*words.nouns, *words.short_nouns, *words.normal]
    for phrase in (*words.long, *words.terse, *words.abbreviated):
        phrases += [max(re.split(r"\{\w+\}", phrase), key=len).strip(" .,:;")]
    devices = [
        d for table in (wording.DEVICES, wording.DEVICES_SHORT) for kind in table.values() for d in kind
    ]
    if name == "medical_material":
        phrases = [
            *words.nouns,
            *words.short_nouns,
            *(d.split("{")[0].removeprefix("a ").strip() for d in devices),
        ]
    return any(phrase.lower() in text.lower() for phrase in phrases if len(phrase) > 1)


def test_every_finding_has_enough_phrasings():
    for name in PHANTOM_FINDINGS:
        words = wording.WORDINGS[name]
        assert len({*words.long, *words.terse, *words.abbreviated}) >= 6, name
        assert len(set(words.nouns)) + len(words.normal) >= 3, name
    assert min(len(wording.NEGATED), len(wording.NEGATED_SHORT), len(wording.NEGATED_LIST)) >= 4


@pytest.mark.parametrize("style", STYLES)
def test_every_phrase_can_be_filled_in(normal, style):
    full = _phantom(normal, PHANTOM_FINDINGS)
    for seed in range(60):
        report = write_report(full, seed, style)
        assert "{" not in report.text
        assert ".." not in report.text
        assert "  " not in report.text


def test_status_has_every_finding_in_order_and_all_four_values_occur(normal):
    seen = set()
    for _, report in _reports(normal):
        assert tuple(report.status) == PHANTOM_FINDINGS
        seen |= set(report.status.values())
    assert seen == {str(status) for status in Status}


def test_text_agrees_with_the_volume_but_for_hedges_and_silence(normal):
    hedged_present = hedged_absent = 0
    for phantom, report in _reports(normal):
        for name, status in report.status.items():
            is_there = name in phantom.findings
            assert status in (
                ("present", "uncertain") if is_there else ("absent", "uncertain", "not_mentioned")
            )
            hedged_present += is_there and status == "uncertain"
            hedged_absent += not is_there and status == "uncertain"
    assert 0 < hedged_present < 0.1 * 300 * 11 * 0.35
    assert 0 < hedged_absent < 0.06 * 300 * 11 * 0.65


def test_a_finding_with_a_status_is_in_the_text(normal):
    for _, report in _reports(normal):
        for name in (name for name, status in report.status.items() if status != "not_mentioned"):
            assert _mentions(name, report.text), (name, report.text)


def test_a_finding_without_a_status_is_not_in_the_text(normal):
    num_silent = 0
    for seed in range(150):
        report = write_report(_phantom(normal, []), seed, "long")
        for name in (name for name, status in report.status.items() if status == "not_mentioned"):
            words = wording.WORDINGS[name]
            assert not any(phrase in report.text.lower() for phrase in (*words.nouns, *words.normal)), name
            num_silent += 1
    assert num_silent > 150


def test_negation_carries_its_negating_word(normal):
    healthy = _phantom(normal, [])
    pattern = r"(?i)\b(no|not|negative|neither|free|dry|clear|normal|natural|unremarkable|below|within)\b"
    for seed in range(100):
        # Sentences cannot be told apart by their full stops among abbreviations.
        report = write_report(healthy, seed, STYLES[seed % 2])
        if "uncertain" in report.status.values():
            continue
        sentences = re.split(r"(?<=\.) (?=[A-Z])", report.findings)
        for name in (name for name, status in report.status.items() if status == "absent"):
            said = [sentence for sentence in sentences if _mentions(name, sentence)]
            assert any(re.search(pattern, sentence) for sentence in said), (name, report.findings)


def test_every_short_negation_has_a_mark_of_negation():
    assert all(re.search(r"(?i)no |neg|w/o|none| -\.", template) for template in wording.NEGATED_SHORT)


@pytest.mark.parametrize("style", STYLES)
def test_reports_keep_to_the_word_limits(normal, style):
    fewest, most = WORD_LIMITS[style]
    rng = np.random.default_rng(1)
    for seed in range(120):
        names = rng.permutation(PHANTOM_FINDINGS)[: seed % 8].tolist()
        num_words = len(write_report(_phantom(normal, names), seed, style).text.split())
        assert fewest <= num_words <= most, (num_words, seed)


def test_side_and_size_in_the_text_are_those_of_the_volume(normal):
    phantom = _phantom(normal, ["pleural_effusion"], side="left", size_mm=43, severity="mild")
    texts = [write_report(phantom, seed, "long") for seed in range(60)]
    stated = [r.text for r in texts if r.status["pleural_effusion"] == "present"]
    assert not any(re.search(r"\b(right|large)\b", text) for text in stated)
    assert all("left" in text.lower() or "hydrothorax" in text for text in stated)
    assert sum("43 mm" in text or "4.3 cm" in text for text in stated) > 20


def test_lobes_are_abbreviated(normal):
    phantom = _phantom(normal, ["lung_nodule"], side="right", region="middle lobe", size_mm=21)
    texts = [write_report(phantom, seed, "abbreviated").text for seed in range(20)]
    assert sum("RML" in text for text in texts) > 15


def test_the_same_seed_writes_the_same_report_and_another_seed_another(normal):
    phantom = _phantom(normal, ["emphysema", "consolidation"])
    assert write_report(phantom, 4) == write_report(phantom, 4)
    texts = {write_report(phantom, seed, "long").text for seed in range(30)}
    assert len(texts) == 30


def test_styles_are_drawn_about_equally_often(normal):
    drawn = [write_report(normal, seed).style for seed in range(150)]
    assert min(drawn.count(style) for style in STYLES) > 30


def test_text_is_findings_then_impression(normal):
    report = write_report(normal, 2)
    assert report.text == f"Findings: {report.findings} Impression: {report.impression}"
    assert report.findings
    assert report.impression


def test_searching_for_the_name_is_not_a_perfect_labeler(normal):
    """A regular expression of the finding's name must err on both sides."""
    missed = false_alarm = total = 0
    for phantom, report in _reports(normal):
        for name in PHANTOM_FINDINGS:
            found = name.replace("_", " ") in report.text.lower()
            total += 1
            missed += (name in phantom.findings) and not found
            false_alarm += (name not in phantom.findings) and found
    assert missed / total > 0.1
    assert false_alarm / total > 0.03


def test_unknown_style_is_refused(normal):
    with pytest.raises(ValueError, match="got 'haiku'"):
        write_report(normal, 1, "haiku")
