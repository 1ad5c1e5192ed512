"""Vectors, items and indexes for the tests of search."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from radtower.evaluation.features import Features, FeatureSource
from radtower.evaluation.search.build_index import IndexOptions
from radtower.evaluation.search.items import make_items
from radtower.evaluation.search.search_index import SearchIndex

SOURCE = FeatureSource(
    kind="image",
    model_id="m",
    model_revision="abc",
    processor_hash="123",
    is_normalized=True,
    model_hash="f0",
)


def unit_vectors(count: int, dimension: int, seed: int) -> torch.Tensor:
    """Around 20 centers, as embeddings lie."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(99).normal(size=(20, dimension))
    vectors = centers[rng.integers(0, 20, count)] + 0.6 * rng.normal(size=(count, dimension))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return torch.from_numpy(vectors.astype(np.float32))


@dataclass
class Builder:
    """Makes indexes of random vectors below a folder."""

    folder: Path

    def features(self, count: int, dimension: int = 8, seed: int = 0, **source: object) -> Features:
        ids = [f"q{row}" for row in range(count)]
        return Features(unit_vectors(count, dimension, seed), ids, replace(SOURCE, **source))

    def items(self, count: int) -> pd.DataFrame:
        rng = np.random.default_rng(5)
        labels = pd.DataFrame(rng.choice([0, 1, -100], (count, 2)), columns=["Nodule", "Pleural effusion"])
        columns = {
            "study_id": [f"s{row // 2}" for row in range(count)],
            "split": [("train", "validation", "test")[row % 3] for row in range(count)],
        }
        return make_items([f"v{row}" for row in range(count)], columns, labels)

    def build(
        self, count: int = 40, dimension: int = 8, name: str = "index", **options: object
    ) -> SearchIndex:
        return SearchIndex.from_features(
            self.features(count, dimension), self.items(count), self.folder / name, IndexOptions(**options)
        )


@pytest.fixture
def builder(tmp_path: Path) -> Builder:
    """Random indexes of this test."""
    return Builder(tmp_path)
