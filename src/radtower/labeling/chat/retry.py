"""When a request is sent again, and after how long: exponential backoff with full jitter, and Retry-After."""

import math
import random
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

# The server says: not now. Every 5xx says so as well.
_RETRIED_STATUS = {408, 409, 425, 429}
RATE_LIMITED = 429
_MOST_DOUBLINGS = 30


@dataclass(frozen=True, kw_only=True)
class RetryPolicy:
    """How often and how late a request that got no usable answer is sent again.

    Args:
        max_retries: Further tries after the first.
        base_s: Longest wait before the first retry, in seconds; it doubles with every retry.
        cap_s: Longest wait of all, where the server names none.
        rate_limit_s: A rate limit (429) is waited out for so long, in more retries if need be; limits are per
            minute with most services. Not without retries.
        retry_after_cap_s: Longest wait that a server can ask for.

    Raises:
        ValueError: If a number is negative.
    """

    max_retries: int = 6
    base_s: float = 0.5
    cap_s: float = 60.0
    rate_limit_s: float = 120.0
    retry_after_cap_s: float = 300.0

    def __post_init__(self) -> None:
        for name in ("max_retries", "base_s", "cap_s", "rate_limit_s", "retry_after_cap_s"):
            value = getattr(self, name)
            if value < 0:
                raise ValueError(f"{name} must not be negative, got {value}. Use 0 for none.")

    def backoff_s(self, attempt: int) -> float:
        """Return the wait before retry ``attempt`` (0 is the first): uniform up to a bound that doubles.

        Full jitter, so that requests that failed together do not come back together.
        """
        # Jitter is no secret.
        bound_s = min(self.cap_s, self.base_s * 2.0 ** min(attempt, _MOST_DOUBLINGS))
        return random.uniform(0.0, bound_s)  # noqa: S311 -- spreads retries, no secret

    def is_used_up(self, attempt: int, status: int | None, limited_s: float) -> bool:
        """Return whether a request is given up.

        Args:
            attempt: Retries so far.
            status: HTTP status of the last answer; None without one.
            limited_s: Time since the first answer that named a rate limit.
        """
        is_waited_out = status == RATE_LIMITED and self.max_retries > 0 and limited_s < self.rate_limit_s
        return attempt >= self.max_retries and not is_waited_out


def is_retried(status: int) -> bool:
    """Say whether an HTTP status is worth another try."""
    return status in _RETRIED_STATUS or status >= 500


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Return how long a server asks to wait, in seconds; None where it does not say.

    Reads ``retry-after-ms`` and ``Retry-After``, as seconds or as an HTTP date. What is no time is ignored.
    """
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    value = headers.get("Retry-After")
    seconds = _number(value)
    if seconds is None and value is not None:
        seconds = _seconds_until(value, now or datetime.now(UTC))
    return seconds


def _number(value: str | None) -> float | None:
    try:
        number = float(value or "")
    except ValueError:
        return None
    return max(number, 0.0) if math.isfinite(number) else None


def _seconds_until(date: str, now: datetime) -> float | None:
    try:
        then = parsedate_to_datetime(date)
    except ValueError:
        return None
    if then.tzinfo is None:
        then = then.replace(tzinfo=UTC)
    return max((then - now).total_seconds(), 0.0)
