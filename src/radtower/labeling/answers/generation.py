"""What labels depend on beside the report: answers of one generation are never mixed with another's."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Generation:
    """What answers depend on: labeler, model, prompt, findings and settings, by names that a user knows.

    Runs with equal parts share their answers.
    """

    parts: Mapping[str, str | int | float | bool | None]

    @property
    def hash(self) -> str:
        """Twelve hex digits that change with any part."""
        return hashlib.sha256(self.to_json().encode()).hexdigest()[:12]

    def to_json(self) -> str:
        """Return the parts, sorted by name."""
        return json.dumps(dict(self.parts), ensure_ascii=False, separators=(",", ":"), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Generation":
        """Undo ``to_json``."""
        return cls(json.loads(text))

    def changes_since(self, earlier: "Generation") -> tuple[str, ...]:
        """Return a line per part that differs."""
        names = sorted({*self.parts, *earlier.parts})
        pairs = [(name, earlier.parts.get(name), self.parts.get(name)) for name in names]
        return tuple(f"{name}: {before} -> {after}" for name, before, after in pairs if before != after)
