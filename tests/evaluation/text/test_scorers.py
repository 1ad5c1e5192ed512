"""Scorers: cosines of vectors that are computed once; BM25 that sees the word "no"."""

import numpy as np
import pytest

from radtower.evaluation.text.bm25 import BM25Scorer
from radtower.evaluation.text.scorers import EmbeddingScorer

VECTORS = {"a": [3.0, 0.0], "b": [0.0, 2.0], "c": [1.0, 1.0], "zero": [0.0, 0.0], "nan": [np.nan, 1.0]}


def embed(texts: list[str]) -> np.ndarray:
    return np.array([VECTORS[text] for text in texts])


def test_scores_are_cosines_and_every_text_is_embedded_once():
    seen: list[str] = []

    def counting(texts: list[str]) -> np.ndarray:
        seen.extend(texts)
        return embed(texts)

    scorer = EmbeddingScorer("model", counting)
    half = 2**-0.5
    expected = [[1, 0, half], [half, half, 1], [1, 0, half]]
    np.testing.assert_allclose(scorer.score(["a", "c", "a"], ["a", "b", "c"]), expected, atol=1e-6)
    scorer.score(["b"], ["c"])
    assert sorted(seen) == ["a", "b", "c"]


def test_queries_can_be_read_differently():
    scorer = EmbeddingScorer("model", embed, lambda texts: embed(texts)[:, ::-1])
    np.testing.assert_allclose(scorer.score(["a"], ["a", "b"]), [[0, 1]])
    np.testing.assert_allclose(scorer.vectors(["a"]), [[1, 0]])


@pytest.mark.parametrize("bad", ["zero", "nan"])
def test_a_vector_without_direction_is_refused(bad):
    with pytest.raises(ValueError, match="vectors of model must be finite and not zero, got 1 of 1"):
        EmbeddingScorer("model", embed).vectors([bad])


def test_bm25_of_texts_without_a_word_is_zero():
    np.testing.assert_array_equal(BM25Scorer().score(["No.", "!"], ["...", "?"]), np.zeros((2, 2)))
    np.testing.assert_array_equal(BM25Scorer().score(["!"], ["No.", "?"]), np.zeros((1, 2)))


def test_bm25_prefers_shared_and_rare_words_and_reads_no():
    gallery = ["no effusion", "effusion seen", "nodule 5 mm", "effusion again"]
    scores = BM25Scorer().score(["No effusion.", "5 mm", "unknown words"], gallery)
    assert scores.shape == (3, 4)
    assert scores[0].argmax() == 0
    assert scores[0, 0] > scores[0, 1] > 0
    assert scores[0, 2] == 0
    assert scores[1].argmax() == 2
    assert (scores[2] == 0).all()
