"""Splits whose vectors hold the first two findings and know nothing of the third."""

from collections.abc import Callable

import numpy as np
import pytest

from radtower.evaluation.read_outs.labeled_vectors import LabeledVectors


def build_split(seed: int, size: int = 60, width: int = 6) -> LabeledVectors:
    rng = np.random.default_rng(seed)
    labels = (rng.random((size, 3)) < 0.4).astype(float)
    vectors = rng.normal(size=(size, width)) * np.arange(1, width + 1)
    vectors[:, 0] += 3 * labels[:, 0]
    vectors[:, 1] -= 4 * labels[:, 1]
    return LabeledVectors(vectors, labels, np.arange(size) + 1000 * seed)


@pytest.fixture
def make_split() -> Callable[..., LabeledVectors]:
    return build_split
