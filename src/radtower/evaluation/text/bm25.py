"""BM25, the baseline that only looks at words; extra ``text``."""

import re
from collections.abc import Sequence

import bm25s
import numpy as np


class BM25Scorer:
    """BM25 (Lucene's variant, k1 = 1.5, b = 0.75) over the gallery at hand.

    No word is left out: the usual list of stop words has "no" and "not" on it. One-letter words and digits
    count too, as "T4" and "5" do in a report.
    """

    name = "bm25"

    def score(self, queries: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
        """Return ``(Q, G)`` float32 scores, 0 where no word is shared."""
        words = _words(gallery)
        if not any(words):
            return np.zeros((len(queries), len(gallery)), dtype=np.float32)
        retriever = bm25s.BM25()
        retriever.index(words, show_progress=False)
        known = retriever.vocab_dict
        rows = [[word for word in words if word in known] for words in _words(queries)]
        empty = np.zeros(len(gallery), dtype=np.float32)
        return np.stack([retriever.get_scores(row) if row else empty for row in rows])


def _words(texts: Sequence[str]) -> list[list[str]]:
    return [re.findall(r"\w+", text.lower()) for text in texts]
