import asyncio

import pytest

from radtower.labeling.chat.budget import Budget, Price, read_price
from radtower.labeling.report_labels import StopLabeling

PRICE = Price(model="m", usd_per_million_in=1e6, usd_per_million_out=2e6)  # 1 and 2 USD per token


def test_a_price_counts_input_cached_input_and_output():
    price = Price(model="m", usd_per_million_in=3, usd_per_million_out=15, usd_per_million_cached_in=0.3)
    assert price.cost_usd(1000, 100, 400) == pytest.approx((600 * 3 + 400 * 0.3 + 100 * 15) / 1e6)
    assert PRICE.cost_usd(3, 1, 2) == 5.0


def test_the_first_pattern_that_fits_holds(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(
        "- {model: small-*, usd_per_million_in: 0.2, usd_per_million_out: 0.8, batch_factor: 0.4}\n"
        "- {model: '*', usd_per_million_in: 0, usd_per_million_out: 0}\n"
    )
    assert read_price(path, "small-3").usd_per_million_out == 0.8
    assert read_price(path, "small-3").batch_factor == 0.4
    assert read_price(path, "other").cost_usd(10, 10) == 0


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("- {model: a, usd_per_million_in: 1, usd_per_million_out: 1}", r"must have a line for 'b'.*\['a'\]"),
        (
            "- {model: b, usd_per_million_in: -1, usd_per_million_out: 1}",
            "1 errors, first at.*usd_per_million_in",
        ),
        ("b: 3", "must be a list of model"),
    ],
)
def test_a_table_that_is_wrong_or_lacks_the_model_is_refused(tmp_path, content, message):
    path = tmp_path / "prices.yaml"
    path.write_text(content)
    with pytest.raises(ValueError, match=message):
        read_price(path, "b")


@pytest.mark.parametrize(
    ("price", "cap", "message"),
    [
        (None, 1.0, "max_cost_usd must come with a price"),
        (PRICE, 0.0, "max_cost_usd must be positive, got 0.0"),
    ],
)
def test_a_cap_that_cannot_be_kept_is_refused(price, cap, message):
    with pytest.raises(ValueError, match=message):
        Budget(price, cap)


def test_a_request_waits_for_others_and_stops_only_when_nothing_is_in_flight():
    budget = Budget(PRICE, 10.0)
    order = []

    async def request(name, cost):
        reserved = await budget.reserve(2, 2)  # 6 USD
        order.append(f"{name} sent")
        await asyncio.sleep(0.01)
        order.append(f"{name} done")
        budget.settle(reserved, cost)

    async def run():
        await asyncio.gather(request("a", 1.0), request("b", 2.5))
        with pytest.raises(StopLabeling, match=r"can cost 7\.0000 USD, with 3.5000 of 10.0000 USD spent"):
            await budget.reserve(3, 2)

    asyncio.run(run())
    assert order == ["a sent", "a done", "b sent", "b done"]
    assert budget.spent_usd == 3.5


def test_what_nobody_knows_counts_as_the_worst():
    budget = Budget(PRICE, 10.0)
    budget.settle(asyncio.run(budget.reserve(2, 2)), None)
    assert budget.spent_usd == 6.0


def test_without_a_cap_nothing_waits_but_cost_is_counted():
    budget = Budget(PRICE)
    lost, known = (asyncio.run(budget.reserve(2, 2)) for _ in range(2))
    assert (lost, known) == (6.0, 6.0)
    assert budget.settle(known, 0.5) == 0.5
    assert budget.settle(lost, None) == 6.0
    assert budget.spent_usd == 6.5
    assert asyncio.run(Budget().reserve(10**9, 10**9)) == 0.0
