"""What ranks texts: anything that gives every text of a gallery a score for every query.

Axes: Q queries, G gallery, E embedding.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np

Embed = Callable[[list[str]], np.ndarray]


class TextScorer(Protocol):
    """A model or a baseline under test; ``name`` stands for it in tables and files."""

    name: str

    def score(self, queries: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
        """Return ``(Q, G)`` float32; higher is more similar."""


class EmbeddingScorer:
    """Cosine similarity of vectors; every text is embedded once.

    Args:
        name: Stands for the model in tables and files.
        embed: Texts -> ``(N, E)``, normalized or not.
        embed_queries: The same for queries, where they are read differently (with an instruction). None
            reads queries and gallery alike.
    """

    def __init__(self, name: str, embed: Embed, embed_queries: Embed | None = None) -> None:
        self.name = name
        self._embed = {"gallery": embed, "query": embed_queries or embed}
        self._vectors: dict[tuple[str, str], np.ndarray] = {}
        self._query_role = "gallery" if embed_queries is None else "query"

    def vectors(self, texts: Sequence[str], role: str = "gallery") -> np.ndarray:
        """Return ``(N, E)`` float32 unit vectors.

        Raises:
            ValueError: If the model gives a vector that is not finite, or zero.
        """
        new = list(dict.fromkeys(text for text in texts if (role, text) not in self._vectors))
        if new:
            vectors = np.asarray(self._embed[role](new), dtype=np.float32)
            norms = np.linalg.norm(vectors, axis=1, keepdims=True)
            num_bad = int((~np.isfinite(norms) | (norms == 0)).sum())
            if num_bad:
                raise ValueError(
                    f"vectors of {self.name} must be finite and not zero, got {num_bad} of {len(new)} "
                    "that are not. Check the model."
                )
            self._vectors |= {(role, text): row for text, row in zip(new, vectors / norms, strict=True)}
        return np.stack([self._vectors[role, text] for text in texts])

    def score(self, queries: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
        """Return ``(Q, G)`` cosines."""
        return self.vectors(queries, self._query_role) @ self.vectors(gallery).T
