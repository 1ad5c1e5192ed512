"""Exact top-k in blocks: against a full stable sort, with ties, exclusion and what is refused."""

from pathlib import Path

import numpy as np
import pytest
import torch

from radtower.evaluation.retrieval import top_k as module
from radtower.evaluation.retrieval.top_k import TopK, top_k


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several blocks, the last of each kind shorter, on data that a test can hold."""
    monkeypatch.setattr(module, "_BLOCK_QUERIES", 7)
    monkeypatch.setattr(module, "_BLOCK_GALLERY", 11)


def _whole_numbers(num_rows: int, width: int, seed: int, largest: int = 3) -> np.ndarray:
    """Small whole numbers: their products are exact, and many of them tie."""
    rng = np.random.default_rng(seed)
    return rng.integers(-largest, largest + 1, (num_rows, width)).astype(np.float32)


def _by_full_sort(scores: np.ndarray, k: int) -> TopK:
    order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    best = np.take_along_axis(scores, order, axis=1)
    return TopK(np.where(np.isneginf(best), -1, order), best)


def _assert_same(found: TopK, wanted: TopK) -> None:
    np.testing.assert_array_equal(found.rows, wanted.rows)
    np.testing.assert_allclose(found.similarities, wanted.similarities, rtol=1e-5)


def test_hand_computed_cosines_and_products() -> None:
    queries = np.array([[2.0, 0.0]])
    gallery = np.array([[3.0, 4.0], [0.5, 0.0], [-1.0, 0.0]])
    found = top_k(queries, gallery, 2)
    assert found.rows.tolist() == [[1, 0]]
    np.testing.assert_allclose(found.similarities, [[1.0, 0.6]], rtol=1e-6)
    found = top_k(queries, gallery, 3, similarity="dot")
    assert found.rows.tolist() == [[0, 1, 2]]
    assert found.similarities.tolist() == [[6.0, 1.0, -2.0]]
    assert (found.rows.dtype, found.similarities.dtype) == (np.int64, np.float32)


@pytest.mark.parametrize("k", [1, 3, 12, 40])
@pytest.mark.usefixtures("small_blocks")
def test_equals_a_full_stable_sort_with_many_ties(k: int) -> None:
    queries, gallery = _whole_numbers(23, 3, 0), _whole_numbers(40, 3, 1)
    _assert_same(top_k(queries, gallery, k, similarity="dot"), _by_full_sort(queries @ gallery.T, k))


@pytest.mark.usefixtures("small_blocks")
def test_equals_a_full_sort_of_random_cosines_and_takes_tensors() -> None:
    rng = np.random.default_rng(2)
    queries, gallery = rng.normal(size=(20, 5)), rng.normal(size=(33, 5))
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    wanted = _by_full_sort((unit[0] @ unit[1].T).astype(np.float32), 6)
    _assert_same(top_k(queries, gallery, 6), wanted)
    _assert_same(top_k(torch.from_numpy(queries), torch.from_numpy(gallery), 6), wanted)


@pytest.mark.usefixtures("small_blocks")
def test_a_better_row_of_a_later_block_replaces_those_of_the_first() -> None:
    gallery = np.arange(1, 31, dtype=np.float32)[:, None]
    found = top_k(np.ones((1, 1), np.float32), gallery, 4, similarity="dot")
    assert found.rows.tolist() == [[29, 28, 27, 26]]


@pytest.mark.parametrize("num_queries", [1, 2, 9, 300])
def test_equal_rows_come_in_the_order_of_the_gallery(num_queries: int) -> None:
    rng = np.random.default_rng(3)
    # Of such sizes, a product of one row gives equal columns several values.
    gallery = np.repeat(rng.normal(size=(1, 512)), 5003, axis=0)
    found = top_k(rng.normal(size=(num_queries, 512)), gallery, 5)
    assert found.rows.tolist() == [[0, 1, 2, 3, 4]] * num_queries


@pytest.mark.parametrize("num_over", [1, 2, 4, 8])
def test_equal_rows_come_in_the_order_of_the_gallery_where_the_last_block_is_small(num_over: int) -> None:
    rng = np.random.default_rng(3)
    gallery = np.repeat(rng.normal(size=(1, 64)), 4096 + num_over, axis=0)
    found = top_k(rng.normal(size=(60, 64)), gallery, 3)
    assert found.rows.tolist() == [[0, 1, 2]] * 60


@pytest.mark.usefixtures("small_blocks")
def test_rows_with_the_key_of_the_query_are_no_answers() -> None:
    rng = np.random.default_rng(4)
    embeds = _whole_numbers(30, 3, 5)
    studies = rng.integers(0, 9, 30)
    scores = embeds @ embeds.T
    scores[studies[:, None] == studies] = -np.inf
    names = [f"study {number}" for number in studies]
    found = top_k(embeds, embeds, 8, similarity="dot", query_keys=names, gallery_keys=names)
    _assert_same(found, _by_full_sort(scores, 8))


@pytest.mark.usefixtures("small_blocks")
def test_places_that_nothing_is_left_for_are_empty_and_last() -> None:
    embeds = np.ones((20, 2), np.float32)
    keys = np.array([0] * 18 + [1, 2])
    found = top_k(embeds, embeds, 3, similarity="dot", query_keys=keys, gallery_keys=keys)
    assert found.rows[0].tolist() == [18, 19, -1]
    assert found.similarities[0].tolist() == [2.0, 2.0, -np.inf]
    assert found.rows[19].tolist() == [0, 1, 2]


@pytest.mark.usefixtures("small_blocks")
def test_shuffling_the_gallery_moves_the_rows_along() -> None:
    rng = np.random.default_rng(6)
    queries, gallery, order = rng.normal(size=(9, 4)), rng.normal(size=(25, 4)), rng.permutation(25)
    plain, shuffled = top_k(queries, gallery, 5), top_k(queries, gallery[order], 5)
    np.testing.assert_array_equal(order[shuffled.rows], plain.rows)


def test_one_query_and_one_row() -> None:
    found = top_k(np.array([[1.0, 1.0]]), np.array([[2.0, 2.0]]), 1)
    assert found.rows.tolist() == [[0]]
    np.testing.assert_allclose(found.similarities, [[1.0]], rtol=1e-6)


def test_reads_memory_mapped_half_precision(tmp_path: Path) -> None:
    gallery = _whole_numbers(12, 4, 7)
    np.save(tmp_path / "gallery.npy", gallery.astype(np.float16))
    mapped = np.load(tmp_path / "gallery.npy", mmap_mode="r")
    queries = _whole_numbers(3, 4, 8)
    _assert_same(top_k(queries, mapped, 4, similarity="dot"), _by_full_sort(queries @ gallery.T, 4))


@pytest.mark.usefixtures("small_blocks")
def test_progress_counts_gallery_rows() -> None:
    done: list[int] = []
    top_k(np.ones((15, 2)), np.ones((25, 2)), 1, on_progress=done.append)
    assert done == [11, 22, 25]


def test_leaves_its_inputs_as_they_are() -> None:
    queries, gallery = torch.full((2, 2), 3.0), np.full((3, 2), 5.0, np.float32)
    top_k(queries, gallery, 2, query_keys=[0, 1], gallery_keys=[0, 1, 2])
    assert queries.tolist() == [[3.0, 3.0]] * 2
    assert gallery.tolist() == [[5.0, 5.0]] * 3


ONES = np.ones((3, 2), np.float32)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"k": 0}, "k must be between 1 and the 3 rows of the gallery, got 0"),
        ({"k": 4}, "k must be between 1 and the 3 rows of the gallery, got 4"),
        ({"similarity": "l2"}, "similarity must be one of cosine, dot, got 'l2'"),
        ({"queries": ONES[0]}, r"queries must be \(N, E\) with N > 0, got shape \(2,\)"),
        ({"gallery": ONES[:0]}, r"gallery must be \(N, E\) with N > 0, got shape \(0, 2\)"),
        ({"queries": np.ones((1, 5))}, "same width, got 5 and 2"),
        ({"gallery": ONES * [[1], [np.nan], [1]]}, "gallery must be finite, got 1 rows .* rows 0 to 2"),
        ({"queries": ONES * [[1], [0], [1]]}, "queries must not hold zero vectors, got 1 among rows 0 to 2"),
        ({"query_keys": [1, 2, 3]}, "one key per row, 3 and 3, got 3 and None"),
        ({"query_keys": [1, 2], "gallery_keys": [1, 2, 3]}, "one key per row, 3 and 3, got 2 and 3"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        top_k(**{"queries": ONES, "gallery": ONES, "k": 1, **arguments})


def test_zero_vectors_have_a_product() -> None:
    assert top_k(ONES * 0, ONES, 1, similarity="dot").similarities.tolist() == [[0.0]] * 3
