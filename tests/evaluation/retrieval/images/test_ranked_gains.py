"""Average precision, nDCG, precision: by hand, against scikit-learn, sentence-transformers and all orders."""

import itertools
import math

import numpy as np
import pytest
from sklearn.metrics import ndcg_score

from radtower.evaluation.retrieval.images import tied_places as module
from radtower.evaluation.retrieval.images.ranked_gains import PerQuery, RankedGains, ranked_gains
from radtower.evaluation.retrieval.images.relevance import (
    SAME_CODE,
    SAME_FINDINGS,
    SHARES_FINDING,
    FindingOverlap,
    SameCode,
)
from radtower.evaluation.retrieval.ranks import positives_by_key, retrieval_ranks
from radtower.evaluation.retrieval.score_ranks import recall_at_k
from radtower.evaluation.retrieval.top_k import TopK, top_k


def found(rows: list[list[int]]) -> TopK:
    return TopK(np.array(rows), np.zeros((len(rows), len(rows[0])), np.float32))


def random_case(seed: int, num_rows: int = 24) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(num_rows, 4)), (rng.random((num_rows, 5)) < 0.3).astype(int)


def measured(embeds: np.ndarray, labels: np.ndarray, keys: np.ndarray, ks: tuple[int, ...]) -> RankedGains:
    top = top_k(embeds, embeds, max(ks), query_keys=keys, gallery_keys=keys)
    return ranked_gains(top, FindingOverlap(labels, labels), ks, query_keys=keys, gallery_keys=keys)


def test_by_hand() -> None:
    # Right: rows 1, 3, 4. Found in order: 1 (right), 0, 3 (right), 2.
    relevance = SameCode(["a"], ["b", "a", "c", "a", "a"])
    metrics = ranked_gains(found([[1, 0, 3, 2]]), relevance, (1, 2, 4)).hits[SAME_CODE]
    assert metrics["map_at_1"].values.tolist() == [1.0]
    assert metrics["map_at_2"].values.tolist() == [0.5]  # 1 / min(2, 3)
    assert metrics["map_at_4"].values == pytest.approx([(1 + 2 / 3) / 3])
    assert [metrics[f"precision_at_{k}"].values.item() for k in (1, 2, 4)] == [1.0, 0.5, 0.5]
    labels = np.array([[1, 1], [1, 0], [1, 1], [0, 0]])
    graded = ranked_gains(found([[3, 1, 2]]), FindingOverlap(labels[:1], labels), (3,)).graded
    discounts = [1 / math.log2(place + 1) for place in (1, 2, 3)]
    wanted = (0.5 * discounts[1] + discounts[2]) / (discounts[0] + discounts[1] + 0.5 * discounts[2])
    assert graded["ndcg_at_3"].values == pytest.approx([wanted])
    assert graded["mean_gain_at_3"].values == pytest.approx([0.5])
    assert graded["mean_gain_at_3"].chance == pytest.approx([(1 + 0.5 + 1 + 0) / 4])


def test_ndcg_equals_scikit_learn_and_blocks_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 100)
    embeds, labels = random_case(0)
    unit = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
    graded = measured(embeds, labels, np.arange(24), (1, 5, 20)).graded
    gains, _ = FindingOverlap(labels, labels).block(slice(0, 24))
    others = ~np.eye(24, dtype=bool)
    for k in (1, 5, 20):
        for query in range(24):
            true, score = gains[query, others[query]], (unit @ unit[query])[others[query]]
            value = graded[f"ndcg_at_{k}"].values[query]
            assert value == pytest.approx(ndcg_score([true], [score], k=k, ignore_ties=True))
            best = true[np.argsort(-score)[:k]]
            assert graded[f"mean_gain_at_{k}"].values[query] == pytest.approx(best.mean())


def test_equals_the_evaluator_of_sentence_transformers() -> None:
    evaluation = pytest.importorskip("sentence_transformers.sentence_transformer.evaluation")
    ks = (1, 3, 10)
    rng = np.random.default_rng(1)
    codes, gallery_codes = rng.integers(0, 4, 15).astype(str), rng.integers(0, 4, 30).astype(str)
    queries, gallery = rng.normal(size=(15, 3)), rng.normal(size=(30, 3))
    scores = queries @ gallery.T
    names = ("ndcg_at_k", "precision_recall_at_k", "map_at_k", "accuracy_at_k", "mrr_at_k")
    evaluator = evaluation.InformationRetrievalEvaluator(
        {str(q): "-" for q in range(15)},
        {str(g): "-" for g in range(30)},
        {str(q): set(np.flatnonzero(gallery_codes == codes[q]).astype(str)) for q in range(15)},
        **{name: [*ks, 30] for name in names},
    )
    theirs = evaluator.compute_metrics(
        [[{"corpus_id": str(g), "score": row[g]} for g in range(30)] for row in scores.tolist()]
    )
    top = top_k(queries, gallery, 10, similarity="dot")
    mine = ranked_gains(top, SameCode(codes, gallery_codes), ks)
    for k in ks:
        for name in ("map", "precision"):
            assert mine.hits[SAME_CODE][f"{name}_at_{k}"].values.mean() == pytest.approx(
                theirs[f"{name}@k"][k]
            )
    ranks = retrieval_ranks(queries, gallery, positives_by_key(codes, gallery_codes), similarity="dot")
    assert (1 / ranks).mean() == pytest.approx(theirs["mrr@k"][30])
    assert [recall_at_k(ranks, k) for k in ks] == pytest.approx([theirs["accuracy@k"][k] for k in ks])
    relevance = SameCode(codes, gallery_codes)
    relevance.graded_by = "0 or 1"
    graded = ranked_gains(top, relevance, ks).graded
    for k in ks:
        assert graded[f"ndcg_at_{k}"].values.mean() == pytest.approx(theirs["ndcg@k"][k])


def _all_orders(labels: np.ndarray, ks: tuple[int, ...]) -> RankedGains:
    """All orders of the gallery, as so many queries with the labels of the first row."""
    orders = [list(order) for order in itertools.permutations(range(len(labels)))]
    return ranked_gains(found(orders), FindingOverlap(np.repeat(labels[:1], len(orders), axis=0), labels), ks)


@pytest.mark.parametrize("seed", [0, 1, 2, 3])
def test_chance_is_the_mean_over_all_orders(seed: int) -> None:
    labels = (np.random.default_rng(seed).random((6, 2)) < 0.5).astype(int)
    metrics = _all_orders(labels, (1, 2, 3, 6))
    checked: list[PerQuery] = [*metrics.graded.values(), *metrics.hits[SHARES_FINDING].values()]
    for item in checked:
        assert item.chance[0] == pytest.approx(item.values.mean())
    assert len(checked) == 16


def test_what_is_excluded_is_not_there() -> None:
    embeds, labels = random_case(2)
    keys = np.arange(24) // 3
    metrics = measured(embeds, labels, keys, (4,))
    for query in (0, 11, 23):
        kept = np.flatnonzero(keys != keys[query])
        alone = ranked_gains(
            top_k(embeds[[query]], embeds[kept], 4), FindingOverlap(labels[[query]], labels[kept]), (4,)
        )
        pairs = [(metrics.graded[name], alone.graded[name]) for name in metrics.graded]
        for hit in metrics.hits:
            pairs += [(metrics.hits[hit][name], alone.hits[hit][name]) for name in metrics.hits[hit]]
        for all_rows, one in pairs:
            np.testing.assert_allclose(all_rows.values[query], one.values[0])
            np.testing.assert_allclose(all_rows.chance[query], one.chance[0])


def test_the_order_of_the_rows_does_not_matter() -> None:
    embeds, labels = random_case(3)
    order = np.random.default_rng(0).permutation(24)
    plain = measured(embeds, labels, np.arange(24), (5,)).hits[SAME_FINDINGS]["map_at_5"].values
    shuffled = (
        measured(embeds[order], labels[order], np.arange(24), (5,)).hits[SAME_FINDINGS]["map_at_5"].values
    )
    np.testing.assert_allclose(shuffled, plain[order])
    assert np.isnan(plain).any()
    assert np.nanmax(plain) > 0


def test_all_right_is_one_and_nothing_right_is_undefined() -> None:
    embeds, _ = random_case(4)
    right = measured(embeds, np.ones((24, 2)), np.arange(24), (1, 7))
    for item in (*right.graded.values(), *right.hits[SHARES_FINDING].values()):
        np.testing.assert_allclose(item.values, 1.0)
        np.testing.assert_allclose(item.chance, 1.0)
    wrong = measured(embeds, np.eye(24), np.arange(24), (1, 7))
    assert np.isnan(wrong.hits[SHARES_FINDING]["map_at_7"].values).all()
    assert np.isnan(wrong.graded["ndcg_at_7"].values).all()
    assert (wrong.hits[SHARES_FINDING]["precision_at_7"].values == 0).all()


def test_one_query_and_one_item() -> None:
    metrics = ranked_gains(found([[0]]), SameCode(["a"], ["a"]), (1,)).hits[SAME_CODE]
    assert metrics["map_at_1"].values.tolist() == metrics["map_at_1"].chance.tolist() == [1.0]


def test_refuses_more_than_was_found() -> None:
    relevance = SameCode(["a"], ["b", "a", "a"])
    cases = [
        ([[1, 2]], (3,)),
        ([[1, -1]], (1, 2)),
        ([[1, 2], [1, -1]], (2,)),
        ([[1, 2]], (0, 2)),
        ([[1]], ()),
    ]
    for rows, ks in cases:
        with pytest.raises(ValueError, match=r"ks must be between 1 and \d, the items found for every query"):
            ranked_gains(found(rows), relevance, ks)
