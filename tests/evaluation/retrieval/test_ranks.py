import numpy as np
import pytest
import torch

from radtower.evaluation.results import Provenance
from radtower.evaluation.retrieval import ranks as retrieval
from radtower.evaluation.retrieval import score_ranks
from radtower.evaluation.retrieval.ranks import (
    RetrievalOptions,
    measure_retrieval,
    positives_by_key,
    retrieval_ranks,
    summarize_ranks,
)
from radtower.evaluation.retrieval.score_ranks import ranks_of_scores, recall_at_k

PROVENANCE = Provenance(dataset="d", class_set="none", label_source="pairs", protocol="exact_row")
# Angles of the gallery: 0, 30, 90, 180 degrees.
GALLERY = np.array([[1, 0], [3**0.5 / 2, 0.5], [0, 1], [-1, 0]], dtype=np.float32)


def make_pairs(seed: int, n: int, noise: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    images = rng.normal(size=(n, 6)).astype(np.float32)
    return images, images + noise * rng.normal(size=(n, 6)).astype(np.float32)


def naive_ranks(queries: np.ndarray, gallery: np.ndarray, positives: list[list[int]]) -> list[int]:
    ranks = []
    for query, right in zip(queries.astype(np.float64), positives, strict=True):
        scores = [float(query @ g / np.linalg.norm(query) / np.linalg.norm(g)) for g in gallery.astype(float)]
        best = max(scores[i] for i in right)
        ranks.append(1 + sum(s >= best for i, s in enumerate(scores) if i not in right))
    return ranks


def test_ranks_by_hand():
    queries = np.array([[2.0, 0.0], [1.0, 0.2]])
    assert retrieval_ranks(queries, GALLERY, [0, 0]).tolist() == [1, 1]
    assert retrieval_ranks(queries, GALLERY, [3, 2]).tolist() == [4, 3]


@pytest.mark.parametrize("block", [1, 70, 10_000])
def test_ranks_equal_a_slow_implementation_in_any_block_size(monkeypatch, block):
    monkeypatch.setattr(retrieval, "_BLOCK_ELEMENTS", block)
    queries, gallery = make_pairs(0, 33)
    positives = [sorted({i, (i * 7) % 33}) for i in range(33)]
    assert retrieval_ranks(queries, gallery, positives).tolist() == naive_ranks(queries, gallery, positives)
    assert len(set(naive_ranks(queries, gallery, positives))) > 5


def test_a_tie_never_goes_to_the_right_answer():
    gallery = GALLERY[[1, 1, 1, 3]]
    query = np.array([[1.0, 0.0]])
    assert retrieval_ranks(query, gallery, [1]).tolist() == [3]
    assert retrieval_ranks(query, gallery, [1], ties="average").tolist() == [2]
    assert retrieval_ranks(query, gallery, [[0, 2]]).tolist() == [2]


def test_a_difference_of_rounding_is_a_tie():
    one = np.float32(1)
    gallery = np.array([[one], [np.nextafter(one, np.float32(0))], [np.nextafter(one, np.float32(2))], [0.9]])
    query = np.ones((1, 1))
    assert retrieval_ranks(query, gallery, [0], similarity="dot").tolist() == [3]
    assert retrieval_ranks(query, gallery, [0], similarity="dot", ties="average").tolist() == [2]


def test_a_collapsed_model_is_not_credited():
    # 257 columns: rounding differs between the main part and the rest of a matrix product.
    same = np.tile(np.random.default_rng(0).normal(size=(1, 77)), (257, 1))
    assert (retrieval_ranks(same, same, np.arange(257)) == 257).all()
    assert (retrieval_ranks(same, same, np.arange(257), ties="average") == 129).all()


def test_dot_and_cosine_differ_by_the_norm():
    gallery = GALLERY * np.array([[1], [5], [1], [1]], dtype=np.float32)
    query = np.array([[1.0, 0.0]])
    assert retrieval_ranks(query, gallery, [0]).tolist() == [1]
    assert retrieval_ranks(query, gallery, [0], similarity="dot").tolist() == [2]


def test_the_order_of_the_gallery_does_not_matter():
    queries, gallery = make_pairs(1, 40)
    order = np.random.default_rng(2).permutation(40)
    shuffled = retrieval_ranks(queries, gallery[order], np.argsort(order))
    assert shuffled.tolist() == retrieval_ranks(queries, gallery, np.arange(40)).tolist()


def test_tensors_are_taken_as_they_come_from_a_model():
    queries, gallery = make_pairs(1, 10)
    tensor = torch.tensor(gallery, requires_grad=True)
    expected = retrieval_ranks(queries, gallery, np.arange(10)).tolist()
    assert retrieval_ranks(torch.tensor(queries), tensor, np.arange(10)).tolist() == expected


def test_recall_counts_ranks_up_to_k():
    assert recall_at_k(np.array([1, 5, 6, 100]), 5) == 0.5


def test_positives_are_the_rows_with_the_same_key():
    positives = positives_by_key(["x", "y", "x"], ["y", "x", "x"])
    assert [rows.tolist() for rows in positives] == [[1, 2], [0], [1, 2]]
    with pytest.raises(ValueError, match="got 1 without, first at position 1"):
        positives_by_key(["x", "z"], ["x"])


def test_summary_by_hand():
    summary = summarize_ranks(np.array([1, 2, 4, 8]), ["a", "b", "c", "d"], (1, 4))
    assert list(summary) == ["recall_at_1", "recall_at_4", "median_rank", "mrr"]
    values = [value for value, _ in summary.values()]
    assert values == pytest.approx([0.25, 0.75, 3.0, (1 + 1 / 2 + 1 / 4 + 1 / 8) / 4])
    for value, interval in summary.values():
        assert interval.low <= value <= interval.high
        assert interval.low < interval.high


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_the_median_of_a_resample_is_the_median_of_the_repeated_ranks(size):
    rng = np.random.default_rng(size)
    ranks, counts = rng.integers(1, 50, size=size), rng.integers(0, 4, size=(40, size))
    counts = counts[counts.sum(axis=1) > 0]
    expected = [np.median(np.repeat(ranks, row)) for row in counts]
    np.testing.assert_array_equal(score_ranks.weighted_median(ranks, counts), expected)


def test_both_directions_are_measured():
    images, reports = make_pairs(3, 30, noise=0.8)
    options = RetrievalOptions(num_resamples=200)
    results = measure_retrieval(images, reports, np.arange(30), PROVENANCE, ks=(1, 5), options=options)
    assert [(r.metric, r.direction) for r in results] == [
        (metric, direction)
        for direction in ("image_to_report", "report_to_image")
        for metric in ("recall_at_1", "recall_at_5", "median_rank", "mrr")
    ]
    forward = retrieval_ranks(images, reports, np.arange(30))
    backward = retrieval_ranks(reports, images, np.arange(30))
    assert results[1].value == recall_at_k(forward, 5)
    assert results[5].value == recall_at_k(backward, 5)
    assert results[6].value == np.median(backward)
    assert results[3].value == pytest.approx((1 / forward).mean())
    assert results[0].value != results[4].value
    assert results[0].n == 30
    assert results[0].protocol == "exact_row"
    assert results[0].note == "queries resampled, gallery fixed"


def test_identical_reports_count_as_hits_when_keys_say_so():
    images, reports = make_pairs(4, 20, noise=0.0)
    reports[10:] = reports[:10]  # the second half shares the reports of the first
    images[10:] = -images[:10]  # and finds it last
    keys = [f"sha{i % 10}" for i in range(20)]
    exact = measure_retrieval(images[:10], reports[:10], np.arange(10), PROVENANCE, ks=(1,))
    assert exact[0].value == 1.0
    strict = measure_retrieval(images, reports, np.arange(20), PROVENANCE, ks=(1,))
    aware = measure_retrieval(images, reports, np.arange(20), PROVENANCE, keys=keys, ks=(1,))
    assert strict[0].value == 0.0  # the twin ties and stands before
    assert aware[0].value == 0.5


def test_intervals_resample_patients_not_rows():
    images, reports = make_pairs(5, 40)
    rows = measure_retrieval(images, reports, np.arange(40), PROVENANCE, ks=(5,))[0]
    pairs = measure_retrieval(images, reports, np.arange(40) // 20, PROVENANCE, ks=(5,))[0]
    assert rows.value == pairs.value
    assert (rows.ci_low, rows.ci_high) != (pairs.ci_low, pairs.ci_high)


def test_one_patient_gives_no_interval_and_so_no_number():
    images, reports = make_pairs(5, 10)
    results = measure_retrieval(images, reports, ["p"] * 10, PROVENANCE, ks=(5,))
    assert results[0].value is None
    assert "fewer than two patients" in results[0].note


@pytest.mark.parametrize("k", [0, 10, 50])
def test_a_k_that_says_nothing_is_refused(k):
    images, reports = make_pairs(5, 10)
    with pytest.raises(ValueError, match=rf"ks must be between 1 and 9, got \[{k}\]"):
        measure_retrieval(images, reports, np.arange(10), PROVENANCE, ks=(1, k))


def test_lengths_that_differ_are_refused():
    images, reports = make_pairs(5, 10)
    with pytest.raises(ValueError, match="got 10, 9, 10 and none"):
        measure_retrieval(images, reports[:9], np.arange(10), PROVENANCE)
    with pytest.raises(ValueError, match="got 10, 10, 10 and 3"):
        measure_retrieval(images, reports, np.arange(10), PROVENANCE, keys=["a", "b", "c"])


@pytest.mark.parametrize(
    ("queries", "positives", "options", "message"),
    [
        (np.ones((2, 3)), [0, 0], {}, "same width, got 3 and 2"),
        (np.ones(2), [0, 0], {}, r"query_embeds must be \(N, E\) with N > 0, got shape \(2,\)"),
        (np.ones((0, 2)), [], {}, r"got shape \(0, 2\)"),
        (np.array([[1.0, np.nan], [1, 1]]), [0, 0], {}, "query_embeds must be finite, got 1 rows"),
        (np.zeros((2, 2)), [0, 0], {}, "query_embeds must not hold zero vectors, got 2"),
        (np.ones((2, 2)), [0], {}, "one entry per query, got 1 for 2"),
        (np.ones((2, 2)), [0, 4], {}, r"\(0 to 3\), at least one per query, got \[4\] at query 1"),
        (np.ones((2, 2)), [0, [-1, 2]], {}, r"got \[-1, 2\] at query 1"),
        (np.ones((2, 2)), [[], 0], {}, r"got \[\] at query 0"),
        (np.ones((2, 2)), [0, 0], {"similarity": "l2"}, "one of cosine, dot, got 'l2'"),
        (np.ones((2, 2)), [0, 0], {"ties": "kind"}, "one of pessimistic, average, got 'kind'"),
    ],
)
def test_invalid_input_is_refused(queries, positives, options, message):
    with pytest.raises(ValueError, match=message):
        retrieval_ranks(queries, GALLERY, positives, **options)


def test_ranks_of_scores_are_those_of_the_embeddings():
    queries, gallery = make_pairs(4, 30)
    unit = [x / np.linalg.norm(x, axis=1, keepdims=True) for x in (queries, gallery)]
    expected = retrieval_ranks(queries, gallery, np.arange(30))
    assert ranks_of_scores(unit[0] @ unit[1].T, np.arange(30)).tolist() == expected.tolist()
    assert ranks_of_scores(50 * unit[0] @ unit[1].T, np.arange(30)).tolist() == expected.tolist()


def test_ties_of_scores_are_relative_to_their_size_and_the_scores_stay():
    scores = np.array([[40.0, 40.00001, 40.1, 3.0], [0.0, 0.0, 0.0, 0.0]], dtype=np.float32)
    kept = scores.copy()
    assert ranks_of_scores(scores, [[0], [3]]).tolist() == [3, 4]
    assert ranks_of_scores(scores, [[0], [3]], "average").tolist() == [2.5, 2.5]
    np.testing.assert_array_equal(scores, kept)


def test_scores_that_are_no_numbers_are_refused():
    with pytest.raises(ValueError, match=r"got shape \(1, 3\) and 2 that are neither"):
        ranks_of_scores(np.array([[np.nan, np.inf, 1.0]]), [2])
    with pytest.raises(ValueError, match=r"got shape \(2,\)"):
        ranks_of_scores(np.zeros(2), [0])


def test_items_that_are_not_there_are_no_answers():
    scores = np.array([[3e-7, 2e-7, -np.inf, 1e-7], [-np.inf, 1.0, 2.0, 2.0]])
    assert ranks_of_scores(scores, [[0], [0, 1]]).tolist() == [1, 3]
    assert ranks_of_scores(scores, [[3, 2], [2]], "average").tolist() == [3, 1.5]
    with pytest.raises(ValueError, match="must have a positive that is there, got 1 without"):
        ranks_of_scores(scores, [[2], [1]])


@pytest.mark.parametrize(
    ("scores", "right", "rank"),
    [
        ([0.9999, 3e-7, 1e-7, 2e-7, 1e-8], 1, 2),
        ([1e6 + 0.5, 1e6 + 0.2, 1e6], 0, 1),
        ([3e-7, 2e-7, 1e-7, -np.inf], 0, 1),
        ([0.3, 0.3, 0.1], 0, 2),
    ],
)
def test_only_equal_scores_tie_without_a_tolerance(scores, right, rank):
    assert ranks_of_scores(np.array([scores]), [[right]], tolerance=0.0).tolist() == [rank]


@pytest.mark.parametrize("ties", ["pessimistic", "average"])
def test_a_monotone_change_of_scores_does_not_change_ranks_without_a_tolerance(ties):
    rng = np.random.default_rng(0)
    scores = rng.integers(-6, 7, (40, 15)).astype(float)
    scores[:, 1:][rng.random((40, 14)) < 0.2] = -np.inf
    positives = [[0, int(other)] for other in rng.integers(0, 15, 40)]
    expected = ranks_of_scores(scores, positives, ties, tolerance=0.0)
    assert len(np.unique(expected)) > 5
    for change in (
        np.exp,
        lambda x: np.exp(9 * x),
        lambda x: 1e-9 * x,
        lambda x: x**3,
        lambda x: 1e6 + x / 9,
    ):
        changed = np.where(np.isfinite(scores), change(scores), -np.inf)
        assert ranks_of_scores(changed, positives, ties, tolerance=0.0).tolist() == expected.tolist()
