import pytest

from radtower.labeling.chat.budget import Price
from radtower.labeling.chat.estimate import count_roughly, estimate_run
from radtower.labeling.endpoint import EndpointLabeler
from radtower.labeling.findings import load_findings
from radtower.labeling.prompts import delimit_report, system_prompt

FINDINGS = load_findings("ct_rate_18").subset(["pleural_effusion", "emphysema"])
PRICE = Price(model="m", usd_per_million_in=2.0, usd_per_million_out=10.0, batch_factor=0.4)


def labeler(**options):
    return EndpointLabeler("http://127.0.0.1:1/v1", "m", FINDINGS, **options)


def test_tokens_cost_and_time_are_those_of_the_unique_reports():
    options = {"price": PRICE, "requests_per_minute": 4, "tokens_per_minute": 1e9}
    estimate = estimate_run(labeler(**options), iter(["a" * 400, "b" * 800]), count_tokens=len)
    tokens_in = 2 * (len(system_prompt(FINDINGS)) + 8) + len(
        delimit_report("a" * 400) + delimit_report("b" * 800)
    )
    assert (estimate.num_reports, estimate.tokens_in, estimate.tokens_out) == (2, tokens_in, 140)
    assert estimate.cost_usd == pytest.approx((2 * tokens_in + 10 * 140) / 1e6)
    assert estimate.batch_cost_usd == pytest.approx(0.4 * estimate.cost_usd)
    assert estimate.minutes == pytest.approx(0.5)


def test_the_tighter_limit_decides():
    estimate = estimate_run(labeler(requests_per_minute=1e9, tokens_per_minute=10), ["a"])
    assert estimate.minutes == pytest.approx((estimate.tokens_in + estimate.tokens_out) / 10, abs=0.1)


def test_without_price_and_limits_cost_and_time_are_unknown():
    estimate = estimate_run(labeler(), ["a"])
    assert (estimate.cost_usd, estimate.batch_cost_usd, estimate.minutes) == (None, None, None)


def test_a_reply_is_not_longer_than_its_limit():
    assert estimate_run(labeler(max_tokens=10), ["a", "b"]).tokens_out == 20


def test_four_characters_are_about_a_token():
    assert count_roughly("x" * 40) == 10
