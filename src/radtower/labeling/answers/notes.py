"""Sentences about a run, for the user; those of its parts put together."""

import re
from collections.abc import Iterable

_COUNT = re.compile(r"(\d+) (?=\S)")


def merge_notes(notes: Iterable[str]) -> tuple[str, ...]:
    """Return each sentence once, in order; of those that begin with a count, the counts are added up."""
    counts: dict[str, int | None] = {}
    for note in notes:
        found = _COUNT.match(note)
        sentence = note if found is None else note[found.end() :]
        counts[sentence] = None if found is None else (counts.get(sentence) or 0) + int(found[1])
    return tuple(text if count is None else f"{count} {text}" for text, count in counts.items())
