"""Corruptions: one change of one kind in one sentence, and none where a rule would say nonsense."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radtower.data.reports.corruption import KINDS, corrupt, corrupt_many, match_case, word_lists
from radtower.processing.report_sentences import split_sentences


def all_corruptions(text: str, kind: str) -> set[str]:
    found = corrupt_many(text, 1000, np.random.default_rng(0), (kind,))
    return {corruption.text for corruption in found}


@pytest.mark.parametrize(
    ("kind", "text", "corrupted"),
    [
        ("laterality", "Small LEFT effusion.", "Small RIGHT effusion."),
        ("laterality", "Left lung mass, left rib fracture.", "Right lung mass, right rib fracture."),
        ("laterality", "LLL opacity.", "RLL opacity."),
        ("severity", "There is a mild effusion.", "There is a severe effusion."),
        ("severity", "An extensive effusion.", "A minimal effusion."),
        ("severity", "Heart is mildly enlarged.", "Heart is severely enlarged."),
        ("finding", "Small pleural effusion.", "Small pneumothorax."),
        ("finding", "There is a small pleural effusion.", "There is small pleural thickening."),
        ("finding", "Stable cardiomegaly.", "Stable pericardial effusion."),
        ("finding", "The aorta is tortuous.", "The aorta is aneurysmal."),
        ("finding", "Hiatal hernia.", "Esophageal diverticulum."),
        ("temporal", "The mass is stable.", "The mass has worsened."),
        ("temporal", "The nodules are unchanged.", "The nodules have improved."),
        ("temporal", "Stable cardiomegaly.", "Worsening cardiomegaly."),
        ("temporal", "No significant change.", "Significant change."),
        ("temporal", "No change in the mass.", "Significant change in the mass."),
        ("temporal", "There is a new opacity.", "There is an unchanged opacity."),
        (
            "temporal",
            "The mass increased compared to the prior CT.",
            "The mass decreased compared to the prior CT.",
        ),
        ("temporal", "Old rib fracture.", "Acute rib fracture."),
        ("negation", "There is an effusion.", "There is no effusion."),
    ],
)
def test_changes_the_statement(kind, text, corrupted):
    assert corrupted in all_corruptions(text, kind)
    whole = f"1. Lungs are XXXX. 2. {text} . \u2022 Spine is XXXX."
    assert f"1. Lungs are XXXX. 2. {corrupted} . \u2022 Spine is XXXX." in all_corruptions(whole, kind)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("laterality", "No left effusion."),
        ("laterality", "The left lung is clear."),
        ("laterality", "Right and left effusions."),
        ("laterality", "The left ventricle is large."),
        ("laterality", "Right middle lobe opacity."),
        ("laterality", "Cyst in the right lobe of the liver."),
        ("laterality", "Catheter left in place."),
        # True of one side as well.
        ("laterality", "Nodules in both lungs."),
        ("laterality", "Bilateral effusions, more on the right."),
        ("severity", "Large nodules, the largest 4 mm."),
        ("severity", "A large number of nodules."),
        ("negation", "A 4 mm nodule is seen."),
        ("finding", "Linear atelectasis."),
        ("finding", "A focal area of opacity."),
        ("finding", "Cyst-like lesion, cyst formation."),
        ("finding", "This may be pneumonia."),
        ("temporal", "Stable granuloma."),
        ("temporal", "The heart is unchanged."),
        ("temporal", "Unchanged calcified nodule."),
        ("temporal", "Compared to the prior CT, it is smaller than 4 mm."),
        ("temporal", "Compared to the prior CT, an increase in density."),
        ("severity", "No large effusion."),
        ("severity", "Small bowel loops."),
        ("severity", "Small to moderate effusion."),
        ("severity", "Moderate-sized effusion."),
        ("finding", "No pleural effusion."),
        ("finding", "Covid pneumonia."),
        ("temporal", "Chronic obstructive disease."),
        ("temporal", "Increased density of the liver."),
        ("temporal", "Comparison with the old CT."),
        ("temporal", "No new opacity."),
        ("negation", "Normality is in the eye."),
        ("severity", "Small opacity, follow-up is recommended."),
        ("negation", ""),
    ],
)
def test_leaves_alone_what_would_not_become_wrong(kind, text):
    assert all_corruptions(text, kind) == set()
    assert corrupt(text, kind, np.random.default_rng(0)) is None


def test_a_finding_is_not_swapped_for_one_that_the_report_names():
    text = "Small pleural effusion. No pneumothorax."
    assert all_corruptions(text, "finding") == {"Small pleural thickening. No pneumothorax."}


def test_a_random_corruption_is_one_of_all_and_says_where():
    text = "Left effusion. Heart is mildly enlarged. Right nodule."
    made = [corrupt(text, "laterality", np.random.default_rng(seed)) for seed in range(20)]
    assert {(c.text, c.kind, c.sentence) for c in made} == {
        ("Right effusion. Heart is mildly enlarged. Right nodule.", "laterality", 0),
        ("Left effusion. Heart is mildly enlarged. Left nodule.", "laterality", 2),
    }
    assert made[0] == corrupt(text, "laterality", np.random.default_rng(0))


def test_many_corruptions_are_of_many_kinds_and_many_sentences():
    text = "Small left effusion. No pneumothorax. No nodule. Mild cardiomegaly is unchanged."
    for seed in range(10):
        three = corrupt_many(text, 3, np.random.default_rng(seed))
        assert len({c.kind for c in three}) == 3
        assert len({c.text for c in three}) == 3
        same = corrupt_many(text, 2, np.random.default_rng(seed), ("negation",))
        assert len({c.sentence for c in same}) == 2
    assert len(corrupt_many("No pneumothorax.", 3, np.random.default_rng(0))) == 1
    assert corrupt_many("Hello.", 3, np.random.default_rng(0)) == []


def test_an_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="temporal, got 'device'"):
        corrupt("No effusion.", "device", np.random.default_rng(0))


@pytest.mark.parametrize(
    ("word", "model", "expected"), [("new", "OLD", "NEW"), ("new", "Old", "New"), ("a", "b", "a")]
)
def test_case_is_kept(word, model, expected):
    assert match_case(word, model) == expected


def test_no_word_list_replaces_a_word_by_itself():
    lists = word_lists()
    for words in (lists["severity"], lists["finding_adjectives"], *lists["temporal"].values()):
        assert all(word not in others and others for word, others in words.items())
    for first, second in lists["synonyms"]:
        assert first != second


@pytest.mark.slow
def test_on_real_reports_every_corruption_changes_one_sentence_and_keeps_the_rest():
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to a folder with real reports")
    folder = Path(os.environ["RADTOWER_REAL_DATA"])
    openi = pd.read_csv(folder / "openi_reports" / "reports.csv").fillna("")
    ct = pd.read_csv(folder / "ctrate_reports" / "train.csv")
    texts = [*openi["findings"][:400], *ct["report_text"][:200]]
    rng = np.random.default_rng(0)
    counts = dict.fromkeys(KINDS, 0)
    for text in texts:
        for kind in KINDS:
            made = corrupt(text, kind, rng)
            if made is None:
                continue
            counts[kind] += 1
            sentence = split_sentences(text)[made.sentence]
            assert made.text.startswith(text[: sentence.start])
            assert made.text.endswith(text[sentence.end :])
            assert made.text.lower() != text.lower()
    assert counts["negation"] > 500
    assert min(counts.values()) > 80
