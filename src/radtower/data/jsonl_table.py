"""Rows of a JSONL table of the user's, and what JSON can write and UTF-8 cannot. Messages hold no cell."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any


def jsonl_rows(path: Path) -> Iterator[Mapping[Any, Any]]:
    """Read one JSON object per line; blank lines do not count.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a line is something else.
    """
    # Not splitlines, which ends a line at U+2028, too: JSON may hold that in a text.
    with path.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, 1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
                kind = f"a {type(row).__name__}"
            except json.JSONDecodeError as error:
                row, kind = None, f"no JSON ({error.msg})"  # says what is wrong, and quotes nothing
            if not isinstance(row, dict):
                raise ValueError(  # noqa: TRY004 -- a file with a wrong value, not an argument of a wrong type
                    f"every line of {path.name} must be a JSON object, got {kind} in line {number}. "
                    "Write one report per line."
                )
            yield row


def check_unicode(column: str, text: str, position: int) -> None:
    """Refuse a lone surrogate, which JSON can write and UTF-8 cannot: the text would have no hash.

    Raises:
        ValueError: If the text has one.
    """
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(
            f"{column} must be valid Unicode, got the lone surrogate U+{ord(text[error.start]):04X} at "
            f"character {error.start} in row {position}. Write the whole character, or U+FFFD in its place."
        ) from None  # the error holds the text
