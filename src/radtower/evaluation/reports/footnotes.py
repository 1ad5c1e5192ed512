"""Notes of numbers -> footnotes of a table; what all numbers share, or differ in by a count, is said once."""

import re
from collections.abc import Sequence

from radtower.evaluation.results import MetricResult

_COUNTED = re.compile(r"(\d+) (.+)")  # "28 patients in the rarer class: ...", another number in each row
_THRESHOLD = re.compile(r"threshold (>=?) \S+")


class Footnotes:
    """Gives a letter to every part of a note that not all numbers of a table have.

    Args:
        items: All numbers of the table. A note is made of parts, with ``"; "`` between them.
    """

    def __init__(self, items: Sequence[MetricResult]) -> None:
        parts = [_parts(item) for item in items]
        self.shared = tuple(p for p in parts[0] if len(parts) > 1 and all(p in other for other in parts))
        self._letters: dict[str, str] = {}
        self._numbers: dict[str, set[int]] = {}

    def marks(self, item: MetricResult | None) -> tuple[str, ...]:
        """Return the letters of a number, new ones where needed."""
        marks = []
        for part in [] if item is None else _parts(item):
            if part in self.shared:
                continue
            counted = _COUNTED.fullmatch(part)
            text = part if counted is None else counted[2]
            if counted is not None:
                self._numbers.setdefault(text, set()).add(int(counted[1]))
            marks.append(self._letters.setdefault(text, _letters(len(self._letters))))
        return tuple(sorted(marks, key=lambda mark: (len(mark), mark)))

    def listed(self) -> tuple[tuple[str, str], ...]:
        """Return letter and text of what was marked so far; counts that differ become a range."""
        return tuple((mark, self._counted(text)) for text, mark in self._letters.items())

    def _counted(self, text: str) -> str:
        found = self._numbers.get(text)
        if not found:
            return text
        return f"{min(found)} {text}" if len(found) == 1 else f"{min(found)} to {max(found)} {text}"


def threshold_text(item: MetricResult) -> str:
    """Write which scores count as positive, such as ``>= 0.5``; empty where there is no threshold."""
    if item.threshold is None:
        return ""
    found = _THRESHOLD.search(item.note or "")
    return f"{'>=' if found is None else found[1]} {item.threshold:.4g}"


def _parts(item: MetricResult) -> list[str]:
    """Parts of a note, but for the threshold, which has a column of its own."""
    parts = item.note.split("; ") if item.note else []
    return [p for p in parts if item.threshold is None or not _THRESHOLD.fullmatch(p)]


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa."""
    rest, last = divmod(number, 26)
    return (_letters(rest - 1) if rest else "") + chr(ord("a") + last)
