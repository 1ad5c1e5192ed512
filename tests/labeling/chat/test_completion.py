import json

import pytest

from radtower.labeling.chat.completion import TokenChoice, read_completion


def body(choice=None, **fields):
    choice = {"message": {"content": "hi"}, "finish_reason": "stop"} if choice is None else choice
    return json.dumps({"choices": [choice], **fields}).encode()


def test_text_reason_and_tokens_are_read():
    usage = {
        "prompt_tokens": 10,
        "completion_tokens": 3,
        "prompt_tokens_details": {"cached_tokens": 4},
        "x": 1,
    }
    completion = read_completion(body(usage=usage, extra=True))
    assert (completion.text, completion.finish_reason, completion.tokens) == ("hi", "stop", None)
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (10, 3)
    assert completion.usage.cached_tokens == 4


@pytest.mark.parametrize(
    ("details", "cached"), [(None, 0), ({}, 0), ({"cached_tokens": 99}, 10), ({"cached_tokens": -1}, 0)]
)
def test_cached_tokens_are_a_part_of_the_input(details, cached):
    usage = {"prompt_tokens": 10, "completion_tokens": 3, "prompt_tokens_details": details}
    assert read_completion(body(usage=usage)).usage.cached_tokens == cached


def test_a_refusal_is_a_reason_to_end_unless_there_is_text():
    message = {"content": None, "refusal": "no"}
    assert read_completion(body({"message": message, "finish_reason": "stop"})).finish_reason == "refusal"
    message["content"] = "yes"
    assert read_completion(body({"message": message, "finish_reason": "stop"})).finish_reason == "stop"


@pytest.mark.parametrize(
    "content",
    [b"", b"<html>", b"[]", b"{}", b'{"choices": []}', b'{"choices": [{"message": {"content": [1]}}]}',
     b"\xff", b'{"choices": [{"message": {}}], "usage": {"prompt_tokens": -1, "completion_tokens": 0}}'],
)  # fmt: skip
def test_anything_else_is_no_completion(content):
    assert read_completion(content) is None


def test_a_token_writes_its_bytes_where_they_are_sent():
    assert TokenChoice(token="\ufffd", logprob=-1.0, bytes=[195]).utf8 == b"\xc3"
    assert TokenChoice(token="\u00e9", logprob=0.5).utf8 == b"\xc3\xa9"
    assert TokenChoice(token="x", logprob=0.5).probability == 1.0
