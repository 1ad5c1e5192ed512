"""The pace of all requests together: requests and tokens per minute, and pauses that the server asks for."""

import asyncio
import random
import time

# Requests that waited for the same pause come back spread over this part of it.
_SPREAD = 0.1


class Pacer:
    """A gate that every request passes; the requests of a run share one.

    Args:
        requests_per_minute: Limit of the service; None for none. Requests are spread evenly.
        tokens_per_minute: Limit of the service, input and output together; None for none.

    Raises:
        ValueError: If a limit is not positive.
    """

    def __init__(
        self, requests_per_minute: float | None = None, tokens_per_minute: float | None = None
    ) -> None:
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        for name, limit in limits.items():
            if limit is not None and limit <= 0:
                raise ValueError(f"{name} must be positive, got {limit}. Leave it out for no limit.")
        self._s_per_request = 60.0 / requests_per_minute if requests_per_minute else 0.0
        self._s_per_token = 60.0 / tokens_per_minute if tokens_per_minute else 0.0
        self._free_at = 0.0
        self._paused_until = 0.0

    async def wait_turn(self, num_tokens: float) -> None:
        """Wait until a request of about ``num_tokens`` may be sent."""
        now = time.monotonic()
        turn = max(now, self._free_at)
        self._free_at = turn + max(self._s_per_request, num_tokens * self._s_per_token)
        if turn > now:
            await asyncio.sleep(turn - now)
        while (left := self._paused_until - time.monotonic()) > 0:
            # Jitter is no secret.
            await asyncio.sleep(left * (1 + random.uniform(0, _SPREAD)))  # noqa: S311 -- spreads load

    def correct(self, num_tokens: float, num_tokens_used: float) -> None:
        """Take account of what a request really used."""
        self._free_at += (num_tokens_used - num_tokens) * self._s_per_token

    def pause(self, seconds: float) -> None:
        """Let nobody pass for a while; a shorter pause does not end a longer one."""
        self._paused_until = max(self._paused_until, time.monotonic() + seconds)
