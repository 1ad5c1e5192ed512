"""What requests cost, and a cap that is never exceeded.

A price table is YAML, USD per million tokens; the first pattern that fits the model's name holds::

    - model: "small-model-*"
      usd_per_million_in: 0.15
      usd_per_million_out: 0.60
      usd_per_million_cached_in: 0.075  # optional: input that the service had in its cache
      batch_factor: 0.5                 # optional: what a batch file costs of it

None is shipped: prices change, and a cap that trusts an old one is no cap.
"""

import asyncio
import math
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from radtower.labeling.report_labels import StopLabeling


class Price(BaseModel):
    """The price of the models whose name fits a pattern (``*`` and ``?``)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str
    usd_per_million_in: float = Field(ge=0)
    usd_per_million_out: float = Field(ge=0)
    usd_per_million_cached_in: float | None = Field(default=None, ge=0)
    batch_factor: float = Field(default=0.5, ge=0, le=1)

    def cost_usd(self, tokens_in: int, tokens_out: int, tokens_cached: int = 0) -> float:
        """Return the cost of a request; ``tokens_cached`` of ``tokens_in`` came from the service's cache."""
        cached = self.usd_per_million_in
        if self.usd_per_million_cached_in is not None:
            cached = self.usd_per_million_cached_in
        fresh = (tokens_in - tokens_cached) * self.usd_per_million_in
        return (fresh + tokens_cached * cached + tokens_out * self.usd_per_million_out) / 1e6


def read_price(path: str | Path, model: str) -> Price:
    """Return the price of a model from a YAML table.

    Raises:
        ValueError: If the file is no price table, or no pattern fits the model.
    """
    content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    try:
        prices = TypeAdapter(list[Price]).validate_python(content)
    except ValidationError as error:
        raise ValueError(
            f"prices must be a list of model, usd_per_million_in and usd_per_million_out, got {path} with "
            f"{error.error_count()} errors, first at {error.errors()[0]['loc']}. Fix the file."
        ) from None
    for price in prices:
        if fnmatchcase(model, price.model):
            return price
    raise ValueError(
        f"prices must have a line for {model!r}, got {path} with {[price.model for price in prices]}. Add it."
    )


@dataclass
class Budget:
    """What was spent, and what may be; the requests of a run share one.

    Each request reserves the most it can cost before it is sent. So the cap holds whatever is in flight, and
    near it fewer requests run at a time.

    Args:
        price: None where unknown; then nothing is counted.
        max_cost_usd: The cap; None for none.
        spent_usd: What earlier runs spent of it.

    Raises:
        ValueError: If there is a cap without a price, or the cap is not positive.
    """

    price: Price | None = None
    max_cost_usd: float | None = None
    spent_usd: float = 0.0

    def __post_init__(self) -> None:
        if self.max_cost_usd is not None and self.price is None:
            raise ValueError(
                f"max_cost_usd must come with a price, got {self.max_cost_usd} and none. "
                "Give a price table with a line for the model."
            )
        if self.max_cost_usd is not None and self.max_cost_usd <= 0:
            raise ValueError(
                f"max_cost_usd must be positive, got {self.max_cost_usd}. Leave it out for no cap."
            )
        self._reserved_usd = 0.0
        self._has_settled = asyncio.Event()

    async def reserve(self, max_tokens_in: int, max_tokens_out: int) -> float:
        """Set aside what a request can cost at most, and return it; wait for others to settle if need be.

        Without a cap nothing waits, and without a price the request costs 0.

        Raises:
            StopLabeling: If it does not fit although nothing else is in flight.
        """
        if self.price is None:
            return 0.0
        worst_usd = self.price.cost_usd(max_tokens_in, max_tokens_out)
        cap_usd = math.inf if self.max_cost_usd is None else self.max_cost_usd
        while self.spent_usd + self._reserved_usd + worst_usd > cap_usd:
            if self._reserved_usd == 0.0:
                raise StopLabeling(
                    "budget",
                    f"the next request can cost {worst_usd:.4f} USD, with {self.spent_usd:.4f} of "
                    f"{cap_usd:.4f} USD spent. Raise --max-cost to go on.",
                )
            self._has_settled.clear()
            await self._has_settled.wait()
        self._reserved_usd += worst_usd
        return worst_usd

    def settle(self, reserved_usd: float, cost_usd: float | None) -> float:
        """Replace what was set aside by what it cost, and return that; None keeps it, where nobody knows."""
        # Sums of floats leave a remainder that would never be free again.
        self._reserved_usd = max(self._reserved_usd - reserved_usd, 0.0)
        if self._reserved_usd < 1e-12:
            self._reserved_usd = 0.0
        settled_usd = reserved_usd if cost_usd is None else cost_usd
        self.spent_usd += settled_usd
        self._has_settled.set()
        return settled_usd
