"""Rewriting: other words and another order, and the same statements."""

import os
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from radtower.data.reports.rewriting import rewrite


def rewrites(text: str, num: int = 40) -> set[str | None]:
    return {rewrite(text, np.random.default_rng(seed)) for seed in range(num)}


@pytest.mark.parametrize(
    ("text", "ways"),
    [
        ("No edema.", {"There is no edema.", "Edema is not seen.", "No edema is seen."}),
        (
            "No effusions or nodules",
            {
                "There are no effusions or nodules.",
                "Effusions or nodules are not seen.",
                "No effusions or nodules are seen.",
            },
        ),
        ("There was no edema.", {"No edema was seen.", "Edema was not seen."}),
        ("Edema was not noted.", {"No edema was seen.", "There was no edema."}),
        ("No edema is noted.", {"There is no edema.", "Edema is not seen."}),
        ("COPD.", {"Chronic obstructive pulmonary disease."}),
        ("LLL mass.", {"Left lower lobe mass."}),
        ("A mild mass.", {"A slight mass."}),
        ("No significant change.", {None}),
        ("No.", {None}),
        ("", {None}),
    ],
)
def test_says_the_same_in_other_words(text, ways):
    found = {way and way.replace("observed", "seen") for way in rewrites(text)}
    assert found == ways


def test_a_sentence_that_is_more_than_a_negation_keeps_its_form():
    assert rewrites("No edema is in the lung but a mass.") == {None}


def test_the_order_changes_and_list_numbers_go():
    found = rewrites("1. Mass. 2. Cyst")
    assert found == {"Cyst. Mass."}
    assert len(rewrites("Mass. Cyst. Scar.")) == 5
    assert "Mass. Cyst. Scar." not in rewrites("Mass. Cyst. Scar.")


@pytest.mark.parametrize("second", ["It is calcified.", "Other lobes show scars.", "The largest is tiny."])
def test_a_sentence_that_points_back_stays_behind_its_own(second):
    assert rewrites(f"Scar. Mass. {second}") == {f"Mass. {second} Scar."}
    assert rewrites(f"Mass. {second}") == {None}


@pytest.mark.parametrize(
    ("text", "ways"),
    [
        ("Bones are within normal limits.", {"Bones are normal."}),
        ("Normal bones.", {None}),
        ("Unremarkable bones.", {None}),
        ("Mildly enlarged heart.", {"Slightly enlarged heart."}),
    ],
)
def test_plainer_words_go_one_way(text, ways):
    assert rewrites(text) == ways


def test_sides_numbers_and_findings_stay_on_real_reports():
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to a folder with real reports")
    folder = Path(os.environ["RADTOWER_REAL_DATA"])
    texts = pd.read_csv(folder / "openi_reports" / "reports.csv").fillna("")["findings"][:300]
    rng = np.random.default_rng(0)
    num_changed = 0
    for text in texts:
        made = rewrite(text, rng)
        if made is None:
            continue
        num_changed += made != text
        plain = re.sub(r"\b\d+[.)] ", "", text)
        sides = (r"\b(?:left|LLL|LUL)\b", r"\b(?:right|RLL|RUL|RML)\b")
        for word in (*sides, r"\d+\.\d+", "nodule", "mass", "fracture"):
            counts = [len(re.findall(word, found, re.IGNORECASE)) for found in (plain, made)]
            assert counts[0] == counts[1], word
    assert num_changed > 200
