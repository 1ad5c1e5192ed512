"""Negation: what is flipped, how far its scope reaches, and what only looks like one."""

import pytest

from radtower.data.reports.negation import flips


@pytest.mark.parametrize(
    ("sentence", "flipped"),
    [
        ("No pleural effusion or pneumothorax.", "Pleural effusion and pneumothorax."),
        ("No acute disease.", "Acute disease."),
        (
            "There is no focal consolidation, effusion, or edema.",
            "There is focal consolidation, effusion, and edema.",
        ),
        ("There is no pleural effusion.", "There is a pleural effusion."),
        ("No nodule or mass is seen.", "Nodule and mass are seen."),
        (
            "No lytic lesion was observed in the ribs or spine.",
            "A lytic lesion was observed in the ribs or spine.",
        ),
        ("Cardiomegaly without edema.", "Cardiomegaly with edema."),
        ("Emphysema with no acute abnormality.", "Emphysema with an acute abnormality."),
        ("Mild edema but no effusions.", "Mild edema and effusions."),
        ("No effusion, no edema.", "Effusion, no edema."),
        ("No effusion, no edema.", "No effusion, edema."),
        ("Pericardial effusion was not observed.", "Pericardial effusion was observed."),
        ("Pericardial effusion was observed.", "Pericardial effusion was not observed."),
        ("There is a small left effusion.", "There is no left effusion."),
        (
            "There are several nodules and cysts in both lungs.",
            "There are no nodules or cysts in both lungs.",
        ),
        ("A few nodules are seen.", "No nodules are seen."),
        ("There are several small nodules.", "There are no nodules."),
        ("The heart is mildly enlarged.", "The heart is not enlarged."),
        ("The heart is not enlarged.", "The heart is enlarged."),
        ("The lungs are clear.", "The lungs are not clear."),
        ("Heart size is within normal limits.", "Heart size is not within normal limits."),
        ("Examination within normal limits.", "Examination outside normal limits."),
        ("The mediastinum is unremarkable.", "The mediastinum is abnormal."),
        ("Normal heart size.", "Abnormal heart size."),
        ("Negative for effusion.", "Positive for effusion."),
        ("The lungs are clear of infiltrates.", "The lungs show infiltrates."),
        ("Mild cardiomegaly.", "No cardiomegaly."),
        ("Hiatal hernia.", "No hiatal hernia."),
    ],
)
def test_flips_one_statement(sentence, flipped):
    assert flipped in flips(sentence)


@pytest.mark.parametrize(
    "sentence",
    [
        "No significant change.",
        "The mass is no longer seen.",
        "Effusion cannot be excluded and is not well evaluated.",
        "No XXXX of pneumothorax.",
        "A 5 mm nodule is seen.",
        "Possible mass is seen.",
        "There may be an effusion.",
        "Stable.",
        "",
    ],
)
def test_leaves_alone_what_is_no_plain_statement(sentence):
    assert flips(sentence) == []


def test_a_flip_is_undone_by_a_flip():
    for sentence in ("There is no edema.", "Nodules were not seen.", "Emphysema without fibrosis."):
        assert any(sentence in flips(flipped) for flipped in flips(sentence)) or "without" in sentence
