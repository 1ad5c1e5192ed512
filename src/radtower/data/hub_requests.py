"""Requests to the Hub: what may heal is asked again for a bounded time, what remains is said in our words.

Errors of the client are not passed on: they can name the signed address of an upload, and whoever reads that
may write there. Status and kind are enough.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import Any, TypeVar

from huggingface_hub import HfApi, get_session
from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError

# Of httpx or httpx2, whichever this release of huggingface_hub is built on; no OSError.
_TRANSPORT_ERROR: type[Exception] = HfHubHTTPError.__bases__[0]
_HTTP = import_module(_TRANSPORT_ERROR.__module__.partition(".")[0])
_NO_CONNECTION: tuple[type[Exception], ...] = (_HTTP.ConnectError, _HTTP.ConnectTimeout)
_SILENCE: type[Exception] = _HTTP.TimeoutException
TOO_MANY_REQUESTS = 429
_BUSY = frozenset({408, TOO_MANY_REQUESTS, 500, 502, 503, 504})
WAITS_S = (1.0, 2.0, 4.0)
LONGEST_WAIT_S = 60.0
SILENCE_S = 60.0  # the client itself waits for ever
_LONGEST_REASON = 200  # characters
_AGAIN = "push again: what has arrived is not sent twice."

T = TypeVar("T")


def persist(call: Callable[[], T], *, is_repeatable: bool = True) -> T:
    """Return what ``call`` returns; while the Hub is busy or the connection breaks, ask again.

    Four times at most, and after a pause: what the Hub asks for, or :data:`WAITS_S`. A pause longer than
    :data:`LONGEST_WAIT_S` is not waited for. Without a connection at all it is not worth it, either, and of a
    Hub that says nothing it was asked long enough when it was asked twice.

    Args:
        call: One request that the client sends once.
        is_repeatable: Whether doing it twice does no harm. If not, only a refusal for being too fast, which
            did nothing, is asked again.
    """
    num_silent = 0
    for wait_s in WAITS_S:
        _limit_client()
        try:
            return call()
        except HfHubHTTPError as error:
            status = error.response.status_code
            asked_s = _retry_after_s(error)
            is_worth_it = status in _BUSY if is_repeatable else status == TOO_MANY_REQUESTS
            if not is_worth_it or asked_s > LONGEST_WAIT_S:
                raise
            time.sleep(max(wait_s, asked_s))
        except _TRANSPORT_ERROR as error:
            num_silent += isinstance(error, _SILENCE)
            if not is_repeatable or isinstance(error, _NO_CONNECTION) or num_silent > 1:
                raise
            time.sleep(wait_s)
    return call()


@contextmanager
def in_our_words(repo_id: str) -> Iterator[None]:
    """Turn errors of the client into ours.

    Raises:
        PermissionError: If the Hub does not accept the token for this repository.
        FileNotFoundError: If it knows no such repository.
        ConnectionError: If it cannot be reached, or is busy for too long.
        OSError: If it answers with another error.
    """
    try:
        yield
    except _TRANSPORT_ERROR as error:
        raise _said(error, repo_id) from None
    except RuntimeError as error:  # an upload; the client wraps what happened
        if not isinstance(error.__cause__, _TRANSPORT_ERROR):
            raise
        raise _said(error.__cause__, repo_id) from None


@contextmanager
def bounded_silence() -> Iterator[None]:
    """Let no request wait longer than :data:`SILENCE_S` for the next byte of an answer.

    The client is shared by the process, so others get the same limit for as long as this lasts.
    """
    _limit_client()
    try:
        yield
    finally:
        _set_hooks([hook for hook in _hooks() if hook is not _limit_silence])


def _limit_client() -> None:
    """Set the limit, once: a broken connection may have left a new client, or another push have ended."""
    if _limit_silence not in _hooks():
        _set_hooks([*_hooks(), _limit_silence])


def _hooks() -> list[Any]:
    session: Any = get_session()
    return list(session.event_hooks["request"])


def _set_hooks(hooks: list[Any]) -> None:
    session: Any = get_session()
    session.event_hooks = session.event_hooks | {"request": hooks}


def _limit_silence(request: Any) -> None:
    """Set what the client leaves open; some of its requests ask for no limit in so many words."""
    limits = request.extensions.get("timeout") or {}
    kinds = ("connect", "read", "write", "pool")
    request.extensions["timeout"] = {kind: limits.get(kind) or SILENCE_S for kind in kinds}


def status_of(error: HfHubHTTPError) -> int:
    """HTTP status that the Hub answered with."""
    return int(error.response.status_code)


def _said(error: BaseException, repo_id: str) -> OSError:
    endpoint = HfApi().endpoint
    if not isinstance(error, HfHubHTTPError):
        return ConnectionError(
            f"the Hub must be within reach, got {type(error).__name__} from {endpoint}. Check the network, "
            f"or HF_ENDPOINT, and {_AGAIN}"
        )
    status = status_of(error)
    if status in (401, 403):
        return PermissionError(
            f"the token must be allowed to write to {repo_id}, got HTTP {status} from the Hub. Make a token "
            "with write access to it, and run `hf auth login`."
        )
    if isinstance(error, RepositoryNotFoundError):
        return FileNotFoundError(
            f"the repository must exist, got {repo_id}, which the Hub does not know. Check its name and kind."
        )
    if status in _BUSY:
        asked_s = _retry_after_s(error)
        when = f"in {asked_s:.0f} s" if asked_s else "later"
        return ConnectionError(
            f"the Hub must take the push, got HTTP {status} from {endpoint}. Wait, and {when} {_AGAIN}"
        )
    return OSError(
        f"the Hub must accept the push to {repo_id}, got HTTP {status}{_reason(error)}. Look at the settings "
        "of the repository, and at the status of the Hub."
    )


def _reason(error: HfHubHTTPError) -> str:
    """What the Hub says; not what a store of files says, which repeats the address that it was asked at."""
    is_hub = str(error.response.request.url).startswith(f"{HfApi().endpoint}/api/")
    said = " ".join((error.server_message or "").split())[:_LONGEST_REASON] if is_hub else ""
    return f" ({said})" if said else ""


def _retry_after_s(error: HfHubHTTPError) -> float:
    """How long the Hub asks to wait; 0 if it does not say, or says it as a date."""
    asked = error.response.headers.get("Retry-After", "").strip()
    return float(asked) if asked.isdecimal() else 0.0
