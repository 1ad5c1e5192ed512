"""Ranks of studies against a slow implementation."""

import numpy as np
import pytest

from radtower.evaluation.retrieval import study_ranks as module
from radtower.evaluation.retrieval.ranks import RetrievalOptions, retrieval_ranks
from radtower.evaluation.retrieval.study_ranks import first_of_each, study_level_ranks


def random_case(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    studies = np.array([f"s{number}" for number in rng.integers(0, 9, 25)])
    images = rng.normal(size=(25, 4))
    reports = {study: rng.normal(size=4) for study in np.unique(studies)}
    return images, np.array([reports[study] for study in studies]), studies


def slow_ranks(images: np.ndarray, reports: np.ndarray, studies: np.ndarray) -> tuple[list[int], list[int]]:
    names = list(dict.fromkeys(studies))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (images, reports)]
    table = np.array(
        [
            [
                max(unit[0][v] @ unit[1][list(studies).index(r)] for v in np.flatnonzero(studies == s))
                for r in names
            ]
            for s in names
        ]
    )
    right = np.diag(table)
    to_report = 1 + (table > right[:, None]).sum(axis=1)
    to_image = 1 + (table > right).sum(axis=0)
    return to_report.tolist(), to_image.tolist()


@pytest.mark.parametrize("elements", [1, 60, 10_000])
def test_equals_a_slow_implementation(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", elements)
    case = random_case(0)
    to_report, to_image = study_level_ranks(*case)
    expected = slow_ranks(*case)
    assert (to_report.tolist(), to_image.tolist()) == expected
    assert len(set(expected[0])) > 2
    assert expected[0] != expected[1]


def test_one_volume_per_study_is_the_exact_row() -> None:
    rng = np.random.default_rng(1)
    images, reports = rng.normal(size=(12, 3)), rng.normal(size=(12, 3)) * rng.integers(1, 4, (12, 1))
    for options in (RetrievalOptions(), RetrievalOptions(similarity="dot", ties="average")):
        found = study_level_ranks(images, reports, range(12), options)
        for ranks, (queries, gallery) in zip(found, ((images, reports), (reports, images)), strict=True):
            wanted = retrieval_ranks(
                queries, gallery, np.arange(12), similarity=options.similarity, ties=options.ties
            )
            assert ranks.tolist() == wanted.tolist()


def test_a_study_with_many_reconstructions_takes_one_place() -> None:
    # Nine reconstructions of the wrong study are closest to the report; the right study comes second.
    images = np.array([[1.0, 0.0]] * 9 + [[0.9, 0.5]])
    reports = np.array([[0.0, 1.0]] * 9 + [[1.0, 0.1]])
    _, to_image = study_level_ranks(images, reports, ["a"] * 9 + ["b"])
    assert to_image[1] == 2
    assert retrieval_ranks(reports[9:], images, [9]).tolist() == [10]


def test_a_collapsed_model_is_not_credited() -> None:
    same = np.ones((10, 3))
    studies = np.arange(10) // 2
    for ranks in study_level_ranks(same, same, studies):
        assert ranks.tolist() == [5] * 5
    for ranks in study_level_ranks(same, same, studies, RetrievalOptions(ties="average")):
        assert ranks.tolist() == [3] * 5


def test_a_short_vector_does_not_narrow_a_tie() -> None:
    # 257 columns: rounding differs between the main part and the rest of a matrix product.
    reports = np.tile(np.random.default_rng(0).normal(size=(1, 77)), (257, 1))
    images = reports.copy()
    images[0] *= 1e-6
    _, to_image = study_level_ranks(images, reports, range(257), RetrievalOptions(similarity="dot"))
    assert to_image.tolist() == [257] + [256] * 256


def test_the_first_row_of_each_key() -> None:
    assert first_of_each(list("babca")).tolist() == [0, 1, 3]


def test_refuses_what_does_not_pair_up() -> None:
    with pytest.raises(ValueError, match="must pair up row by row, got 2, 2 and 3"):
        study_level_ranks(np.eye(2), np.eye(2), "abc")
