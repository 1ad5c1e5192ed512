"""A thread that sends a queue of pushes while something else goes on; it never stops that."""

import logging
import time
from collections.abc import Callable
from threading import Event, Thread

from radtower.data.publish import Published
from radtower.hub_cards.pushes.push_queue import PushQueue, describe, without_token

logger = logging.getLogger(__name__)

FIRST_PAUSE_S = 15.0
LONGEST_PAUSE_S = 600.0
WAIT_S = 600.0


def send_queue(
    queue: PushQueue, on_note: Callable[[str], None], skipped: frozenset[str] = frozenset()
) -> dict[str, Exception]:
    """Send all that waits, the oldest first, and take it out of the queue.

    Where the Hub cannot be reached the rest is not tried. What fails stays in the queue.

    Args:
        queue: Of this or of an earlier process.
        on_note: Takes a sentence about each push that arrived.
        skipped: Names that are left alone.

    Returns:
        Name -> why it failed.
    """
    failures: dict[str, Exception] = {}
    for name, order in queue.waiting().items():
        if name in skipped:
            continue
        try:
            published = queue.send(name)
        except ConnectionError as error:
            return failures | {name: error}
        except Exception as error:  # whatever it is, it is one push that failed, and not the training
            failures[name] = error
        else:
            if published is not None:
                on_note(_arrived(order.message, published))
    return failures


def _arrived(message: str, published: Published) -> str:
    kind = "private" if published.is_private else "public"
    return f"Pushed {message!r} to {published.url} ({kind}), commit {published.commit}"


class PushWorker:
    """Sends a queue from a thread of its own; a network that fails is tried again after a pause that grows.

    What cannot heal by itself, such as a token without the right to write, is told once and stays in the
    queue. The thread ends with the process.

    Args:
        queue: What is sent; also what an earlier process has left in it.
        on_note: Takes what was sent and what failed; it is called in the thread.
    """

    def __init__(self, queue: PushQueue, on_note: Callable[[str], None] = logger.warning) -> None:
        self.queue, self.on_note = queue, on_note
        self._has_work, self._is_idle, self._is_ending = Event(), Event(), Event()
        self._refused: set[str] = set()
        self._told: set[str] = set()
        self._thread = Thread(target=self._run, name="radtower-push", daemon=True)

    def start(self) -> None:
        """Begin, with what is there."""
        self.wake()
        self._thread.start()

    def wake(self) -> None:
        """Look into the queue again, at once."""
        self._is_idle.clear()
        self._has_work.set()

    def finish(self, wait_s: float = WAIT_S) -> int:
        """Wait until all is sent that can be, at most ``wait_s``, and say what still waits.

        Returns:
            How many do.
        """
        self.wake()  # also out of a pause: this is the last chance
        deadline = time.monotonic() + wait_s
        self._is_idle.wait(wait_s)
        self._is_ending.set()
        self._has_work.set()
        self._thread.join(max(0.0, deadline - time.monotonic()))
        waiting = self.queue.waiting()
        for line in describe(waiting.values()):
            self.on_note(line)
        if waiting:
            place = self.queue.folder.name
            self.on_note(f"{len(waiting)} pushes wait in {place}. Send them with radtower push --pending.")
        return len(waiting)

    def _run(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            self._has_work.wait()
            self._has_work.clear()
            if self._is_ending.is_set():
                return
            if self._send():
                pause_s = FIRST_PAUSE_S
                if not self._has_work.is_set():
                    self._is_idle.set()
                continue
            if self._has_work.wait(pause_s):
                continue
            self._has_work.set()
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _send(self) -> bool:
        """Whether there is nothing left that may heal by itself."""
        try:
            failures = send_queue(self.queue, self.on_note, frozenset(self._refused))
        except Exception as error:  # a disk that is full, a queue that somebody damaged
            self._tell(error)
            return True
        for failure in failures.values():
            self._tell(failure)
        self._refused |= {name for name, e in failures.items() if not isinstance(e, ConnectionError)}
        return not any(isinstance(failure, ConnectionError) for failure in failures.values())

    def _tell(self, error: Exception) -> None:
        text = without_token(str(error)) or type(error).__name__
        if text not in self._told:
            self._told.add(text)
            self.on_note(f"A push failed, and waits: {text}")
