"""A small report table, and scorers whose answers are known."""

import zlib
from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import pytest

from radtower.data.reports.report_corpus import ReportTable
from radtower.evaluation.text.scorers import EmbeddingScorer

STUDIES = [  # findings, impression, nodule, effusion, hernia
    ("Nodule in the left lung.", "Left lung nodule.", 1, 0, 0),
    ("Small right pleural effusion. Hiatal hernia.", "Small right pleural effusion.", 0, 1, 1),
    ("Lungs are clear.", "No acute disease.", 0, 0, 0),
    ("No pneumothorax is seen.", "1. No acute disease", 0, 0, 0),
    ("Lungs are clear.", "Normal chest.", 0, 0, 0),
    ("Nodule and hiatal hernia.", "Nodule. Hernia.", 1, 0, 1),
]


class ByWords:
    """Counts shared words: knows nothing, and is not symmetric in length."""

    name = "words"

    def score(self, queries: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
        words = [
            [set(text.lower().replace(".", "").split()) for text in texts] for texts in (queries, gallery)
        ]
        return np.array([[len(q & g) for g in words[1]] for q in words[0]], dtype=np.float32)


class Oracle:
    """Gives what it is told, by (query, text); 0 else."""

    name = "oracle"

    def __init__(self, scores: dict[tuple[str, str], float]) -> None:
        self.scores = scores

    def score(self, queries: Sequence[str], gallery: Sequence[str]) -> np.ndarray:
        return np.array([[self.scores.get((q, g), 0.0) for g in gallery] for q in queries], dtype=np.float32)


def build_table(studies: list[tuple], split: str | list[str] = "test") -> ReportTable:
    findings, impressions, *labels = zip(*studies, strict=True)
    frame = pd.DataFrame(
        {
            "study_id": [f"s{row}" for row in range(len(studies))],
            "patient_id": [f"p{row}" for row in range(len(studies))],
            "split": split,
            "source": "toy",
            "findings": findings,
            "impression": impressions,
            "report": [" ".join(pair) for pair in zip(findings, impressions, strict=True)],
        }
    )
    matrix = np.array(labels, dtype=np.float32).reshape(len(labels), len(studies)).T
    return ReportTable(frame, matrix, ("nodule", "effusion", "hernia")[: len(labels)])


def hashed_vectors(texts: list[str]) -> np.ndarray:
    """Bag of words; equal words have equal places, in every process."""
    vectors = np.zeros((len(texts), 256))
    for row, text in enumerate(texts):
        for word in text.lower().split():
            vectors[row, zlib.crc32(word.encode()) % 256] += 1
    return vectors


@pytest.fixture
def make_table() -> Callable[..., ReportTable]:
    return build_table


@pytest.fixture
def studies() -> list[tuple]:
    return STUDIES


@pytest.fixture
def table() -> ReportTable:
    return build_table(STUDIES)


@pytest.fixture
def oracle() -> type[Oracle]:
    return Oracle


@pytest.fixture
def by_words() -> ByWords:
    return ByWords()


@pytest.fixture
def bag_of_words() -> EmbeddingScorer:
    return EmbeddingScorer("bag", hashed_vectors)
