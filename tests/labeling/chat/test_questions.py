import json

import pytest

from radtower.labeling.chat.questions import Questions, prompt_digest
from radtower.labeling.findings import load_findings
from radtower.labeling.prompts import build_messages, repair_messages, response_schema

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])
REPORT = 'A "quoted" effusion,\nno \\ emphysema; \u00e9\u2265 {braces} \ud800'


def test_a_question_is_what_json_would_have_made_of_it():
    questions = Questions("a/b", FINDINGS, max_tokens=500)
    schema = {"name": "findings", "strict": True, "schema": response_schema(FINDINGS)}
    plain = {
        "model": "a/b",
        "messages": build_messages(REPORT.replace("\ud800", "x"), FINDINGS),
        "temperature": 0.0,
        "max_tokens": 500,
    }
    report = REPORT.replace("\ud800", "x")
    assert json.loads(questions.ask(report, is_constrained=False)) == plain
    constrained = json.loads(questions.ask(report, is_constrained=True))
    assert constrained == {**plain, "response_format": {"type": "json_schema", "json_schema": schema}}
    repair = json.loads(questions.repair(report, "oops", "it is empty.", is_constrained=False))
    assert repair == {**plain, "messages": plain["messages"] + repair_messages("oops", "it is empty.")}


def test_fields_are_added_replaced_and_left_out():
    fields = {"temperature": None, "max_tokens": None, "max_completion_tokens": 9, "seed": 3}
    body = json.loads(
        Questions("m", FINDINGS, max_tokens=5, with_logprobs=True, fields=fields).ask(
            "r", is_constrained=False
        )
    )
    assert set(body) == {"model", "messages", "logprobs", "top_logprobs", "max_completion_tokens", "seed"}
    assert (body["max_completion_tokens"], body["logprobs"], body["top_logprobs"]) == (9, True, 10)


def test_all_fields_can_be_left_out():
    fields = {"temperature": None, "max_tokens": None}
    body = Questions("m", FINDINGS, max_tokens=5, fields=fields).ask("r", is_constrained=False)
    assert set(json.loads(body)) == {"model", "messages"}


def test_fields_that_are_ours_are_refused():
    with pytest.raises(
        ValueError, match=r"fields must not hold messages, stream, got \['messages', 'stream'\]"
    ):
        Questions("m", FINDINGS, max_tokens=5, fields={"stream": True, "messages": []})


@pytest.mark.parametrize(
    ("fields", "limit"),
    [
        ({}, 5),
        ({"max_tokens": 30}, 30),
        ({"max_completion_tokens": 30, "n": 1}, 30),
        ({"max_completion_tokens": 3}, 5),
        ({"max_tokens": None, "max_completion_tokens": 3}, 3),
        ({"max_tokens": None, "n": None}, None),
    ],
)
def test_the_longest_reply_is_the_largest_limit_of_the_request(fields, limit):
    assert Questions("m", FINDINGS, max_tokens=5, fields=fields).max_reply_tokens == limit


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n": 2}, "field n must be 1, got 2"),
        ({"max_tokens": "9"}, "must be integers of at least 1, got '9'"),
        ({"max_completion_tokens": 0}, "must be integers of at least 1, got 0"),
    ],
)
def test_fields_that_a_cap_cannot_count_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Questions("m", FINDINGS, max_tokens=5, fields=fields)


def test_the_digest_changes_with_the_findings():
    assert prompt_digest(FINDINGS) == prompt_digest(FINDINGS)
    assert prompt_digest(FINDINGS) != prompt_digest(FINDINGS.subset(["emphysema"]))
    assert len(prompt_digest(FINDINGS)) == 12
