import pytest
import torch

from radtower.labeling.classifier.evidence import quote, sentence_mass
from radtower.labeling.findings import Status
from radtower.processing.report_sentences import split_sentences

SENTENCES = split_sentences("There is a nodule. No effusion.")


def test_attention_is_summed_per_sentence_without_special_tokens():
    weights = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.4, 0.3, 0.2, 0.1]])
    mass = sentence_mass(weights, [-1, 1, 0, 1], 3)
    torch.testing.assert_close(mass, torch.tensor([[0.3, 0.6, 0.0], [0.2, 0.4, 0.0]]))


@pytest.mark.parametrize(
    ("status", "mass", "expected"),
    [
        (Status.PRESENT, [0.3, 0.2], "There is a nodule."),
        (Status.PRESENT, [0.1, 0.2], "No effusion."),
        (Status.ABSENT, [0.2, 0.5], "No effusion."),
        (Status.ABSENT, [0.3, 0.4999], None),
    ],
)
def test_present_is_quoted_and_absent_where_most_of_the_attention_is(status, mass, expected):
    assert quote(status, mass, SENTENCES) == expected


def test_a_report_without_sentences_has_no_evidence():
    assert quote(Status.PRESENT, [], []) is None
