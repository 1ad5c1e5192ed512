"""Who may write into a cache: one process per part, and nobody else while it is tidied.

The locks are the kernel's and end with their process: one that is killed leaves nothing to clean up.
"""

import errno
import fcntl
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

LOCK_FOLDER = "locks"
CANNOT_LOCK = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)


@contextmanager
def filling(folder: Path, part: str) -> Iterator[None]:
    """Hold a part of a cache; waits while the cache is tidied.

    Args:
        folder: The cache.
        part: Its name.

    Raises:
        BlockingIOError: If another process holds the part.
    """
    with _opened(folder, "tidy") as everything, _opened(folder, part) as ours:
        _lock(everything, fcntl.LOCK_SH)
        if not _lock(ours, fcntl.LOCK_EX | fcntl.LOCK_NB):
            raise BlockingIOError(
                f"one process must fill a part of a cache, got another at work on {part} in {folder}. "
                "Wait until it has ended."
            )
        yield


@contextmanager
def tidying(folder: Path) -> Iterator[bool]:
    """Hold the whole cache, if nobody fills a part of it; yields whether that is so."""
    with _opened(folder, "tidy") as everything:
        yield _lock(everything, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _opened(folder: Path, name: str) -> IO[str]:
    (folder / LOCK_FOLDER).mkdir(exist_ok=True)
    return (folder / LOCK_FOLDER / f"{name}.lock").open("a+", encoding="utf-8")


def _lock(file: IO[str], operation: int) -> bool:
    try:
        fcntl.flock(file, operation)
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in CANNOT_LOCK:
            raise
        warnings.warn(
            f"{Path(file.name).parent} is on a file system without locks: let one process fill a part",
            stacklevel=2,
        )
    return True
