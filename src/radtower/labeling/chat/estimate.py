"""What labeling through an endpoint will take, before anything is sent: tokens, cost and time."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

from radtower.labeling.chat.chat_client import CHARACTERS_PER_TOKEN
from radtower.labeling.endpoint import EndpointLabeler
from radtower.labeling.prompts import delimit_report, system_prompt

_TOKENS_PER_MESSAGE = 4  # role and separators, in most chat templates


@dataclass(frozen=True)
class Estimate:
    """Expected use of ``num_reports`` questions; repairs and retries come on top.

    ``cost_usd`` is None without a price, ``minutes`` (at the rate limits) None without a limit.
    """

    num_reports: int
    tokens_in: int
    tokens_out: int
    cost_usd: float | None
    batch_cost_usd: float | None
    minutes: float | None


def count_roughly(text: str) -> float:
    """Return the tokens of a text at four characters each, which is about right for English."""
    return len(text) / CHARACTERS_PER_TOKEN


def estimate_run(
    labeler: EndpointLabeler, reports: Iterable[str], count_tokens: Callable[[str], float] = count_roughly
) -> Estimate:
    """Estimate what ``labeler`` will use for ``reports``.

    The JSON schema is not counted: most servers do not put it into the prompt.

    Args:
        labeler: Model, limits and price.
        reports: Normalized texts; read once, never held.
        count_tokens: Tokens of a text; the tokenizer of the model is more exact than the default.
    """
    fixed = count_tokens(system_prompt(labeler.findings)) + 2 * _TOKENS_PER_MESSAGE
    num_reports, tokens_in = 0, 0.0
    for report in reports:
        num_reports += 1
        tokens_in += fixed + count_tokens(delimit_report(report))
    tokens_out = num_reports * labeler.expected_tokens
    price = labeler.price
    cost = None if price is None else price.cost_usd(round(tokens_in), round(tokens_out))
    minutes = [
        amount / limit
        for amount, limit in (
            (num_reports, labeler.requests_per_minute),
            (tokens_in + tokens_out, labeler.tokens_per_minute),
        )
        if limit is not None
    ]
    return Estimate(
        num_reports=num_reports,
        tokens_in=round(tokens_in),
        tokens_out=round(tokens_out),
        cost_usd=cost,
        batch_cost_usd=None if cost is None or price is None else cost * price.batch_factor,
        minutes=max(minutes, default=None),
    )
