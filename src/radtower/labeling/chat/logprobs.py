"""Token log-probabilities -> P(present) per finding: what the model weighed where it wrote the status.

Of the four status words each begins with another letter, so the first token of a status decides which word
it is. The score is the probability of ``present`` among the four, at that token.
"""

import re
from collections.abc import Sequence

from radtower.labeling.chat.completion import WrittenToken
from radtower.labeling.findings import Status


def status_scores(tokens: Sequence[WrittenToken] | None, keys: Sequence[str]) -> dict[str, float | None]:
    """Return P(present) per finding, normalized over the four statuses as far as the server shows them.

    A status that is not among the likeliest tokens counts as 0.

    Args:
        tokens: The reply; None where the server sent no log-probabilities.
        keys: Findings.

    Returns:
        Values in [0, 1]; None where the reply does not show which token decided.
    """
    if not tokens:
        return dict.fromkeys(keys)
    pieces = [token.utf8 for token in tokens]
    reply = b"".join(pieces)
    starts = [0]
    for piece in pieces:
        starts.append(starts[-1] + len(piece))
    return {key: _score(tokens, starts, reply, key) for key in keys}


def _score(tokens: Sequence[WrittenToken], starts: list[int], reply: bytes, key: str) -> float | None:
    # Within a JSON string every quote is escaped: what matches is structure, never text of the report.
    pattern = rb'"' + re.escape(key.encode()) + rb'"\s*:\s*\{[^{}]*?"status"\s*:\s*"'
    found = list(re.finditer(pattern, reply))
    if not found:
        return None
    value_at = found[-1].end()  # a draft comes before the answer
    number = next((n for n, end in enumerate(starts[1:]) if end > value_at), None)
    if number is None:
        return None
    before = reply[starts[number] : value_at]
    mass = dict.fromkeys(Status, 0.0)
    for choice in tokens[number].top_logprobs:
        status = _status_of(choice.utf8, before)
        if status is not None:
            mass[status] += choice.probability
    total = sum(mass.values())
    return mass[Status.PRESENT] / total if total > 0 else None


def _status_of(token: bytes, before: bytes) -> Status | None:
    """Return the status that a token begins, if it also writes what stands before the value in its place."""
    letters = token[len(before) :].split(b'"')[0].decode(errors="ignore")
    if not token.startswith(before) or not letters:
        return None
    return next((status for status in Status if status.startswith(letters)), None)
