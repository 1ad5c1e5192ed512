import math

import pytest

from radtower.labeling.chat.completion import WrittenToken
from radtower.labeling.chat.logprobs import status_scores

KEYS = ("emphysema", "mass")


def token(text, **choices):
    """A token with its choices as text -> probability; ``_`` in a name is a quote."""
    top = [{"token": name.replace("_", '"'), "logprob": math.log(p)} for name, p in choices.items()]
    return WrittenToken.model_validate({"token": text, "logprob": 0.0, "top_logprobs": top})


def reply(*statuses):
    """Two findings; each status is the list of its tokens."""
    first, second = statuses
    return [
        token('{"emph'),
        token('ysema": {"status": "'),
        *first,
        token('", "evidence": ""}, "mass"'),
        token(': {"status":'),
        *second,
        token(', "evidence": "x"}}'),
    ]


def test_the_score_is_the_share_of_present_among_the_four_words():
    tokens = reply(
        [token("pres", pres=0.6, abs=0.2, unc=0.1, Present=0.05), token("ent", ent=1.0)],
        # The quote belongs to the token here, and a choice without it says nothing.
        [token('"absent"', _absent_=0.5, _present=0.25, _not=0.15, _=0.1)],
    )
    scores = status_scores(tokens, KEYS)
    assert scores["emphysema"] == pytest.approx(0.6 / 0.9)
    assert scores["mass"] == pytest.approx(0.25 / 0.9)


def test_present_that_is_not_among_the_likeliest_counts_as_zero():
    tokens = reply([token("absent", absent=0.99, unc=0.01)], [token('"n', _n=1.0), token('ot_mentioned"')])
    assert status_scores(tokens, KEYS) == {"emphysema": 0.0, "mass": 0.0}


def test_letters_of_several_bytes_before_a_status_do_not_shift_it():
    tokens = [
        WrittenToken.model_validate({"token": "\ufffd", "logprob": 0, "bytes": [195]}),
        WrittenToken.model_validate({"token": "\ufffd", "logprob": 0, "bytes": [169]}),
        token(' {"mass": {"evidence": "no }", "status": "'),
        token("present", present=0.75, absent=0.25),
    ]
    assert status_scores(tokens, ("mass",)) == {"mass": None}  # a brace in the evidence: it cannot be told
    tokens[2] = token(' {"mass": {"evidence": "no", "status": "')
    assert status_scores(tokens, ("mass",)) == {"mass": pytest.approx(0.75)}


def test_a_quoted_answer_in_the_evidence_is_not_taken_for_the_answer():
    tokens = [
        token('{"mass": {"status": "'),
        token("absent", absent=0.9, present=0.1),
        token('", "evidence": "\\"mass\\": {\\"status\\": \\"'),
        token("present", present=1.0),
        token('\\""}}'),
    ]
    assert status_scores(tokens, ("mass",)) == {"mass": pytest.approx(0.1)}


def test_the_last_of_several_answers_counts():
    tokens = [
        token('{"mass": {"status": "'),
        token("absent", absent=1.0),
        token('"}} {"mass": {"status": "'),
        token("absent", absent=0.5, present=0.5),
        token('"}}'),
    ]
    assert status_scores(tokens, ("mass",)) == {"mass": pytest.approx(0.5)}


@pytest.mark.parametrize(
    "tokens",
    [
        None,
        [],
        [token("{}")],
        [token('{"mass": {"status": "')],
        reply([token("absent")], [token('"absent"', x=0.9)]),
    ],
)
def test_what_cannot_be_told_is_none(tokens):
    assert status_scores(tokens, KEYS) == {"emphysema": None, "mass": None}
