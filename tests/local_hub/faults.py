"""What goes wrong on the way: wrong answers, answers that are lost, connections that break, waiting."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field


@dataclass
class Fault:
    """What happens to requests of a kind, in place of their answer.

    Args:
        method: ``PUT`` and the like.
        path: Pattern that is searched for in the path.
        status: HTTP status of the answer. None answers as ever.
        headers: Go along, such as ``Retry-After``.
        is_reset: The connection breaks when half of the body has arrived.
        is_answer_lost: The connection breaks when the work is done.
        delay_s: Waits before anything else.
        action: Is called before the request is looked at, such as what somebody else does meanwhile.
        times: How often. None is for ever.
    """

    method: str
    path: str
    status: int | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    is_reset: bool = False
    is_answer_lost: bool = False
    delay_s: float = 0.0
    action: Callable[[], object] | None = None
    times: int | None = 1
    num_seen: int = 0

    def fits(self, method: str, path: str) -> bool:
        """Whether it is the turn of this request."""
        is_over = self.times is not None and self.num_seen >= self.times
        return not is_over and method == self.method and re.search(self.path, path) is not None
