"""Ties of similarities: the worst comes first, and the order of the gallery does not matter."""

import numpy as np
import pandas as pd
import pytest

from radtower.evaluation.retrieval.images import tied_places as module
from radtower.evaluation.retrieval.images.image_labels import ConceptLabels, FindingLabels
from radtower.evaluation.retrieval.images.image_retrieval import ImageSearch, measure_images
from radtower.evaluation.retrieval.images.ranked_gains import RankedGains, ranked_gains
from radtower.evaluation.retrieval.images.relevance import FindingOverlap
from radtower.evaluation.retrieval.images.tied_places import Similarities
from radtower.evaluation.retrieval.ranks import RetrievalOptions
from radtower.evaluation.retrieval.top_k import top_k

QUICK = RetrievalOptions(num_resamples=20)
NUM, ASKING = 60, 20


def by_name(images: np.ndarray, labels: FindingLabels | ConceptLabels, order: np.ndarray, ks=(1, 5)) -> dict:
    """Values where the gallery of the rows from 20 on is in this order."""
    names = [str(row) for row in range(len(images))]
    frame = pd.DataFrame({"volume_id": names, "study_id": names, "patient_id": names})
    search = ImageSearch(images=images, frame=frame, queries=np.arange(ASKING), gallery=order + ASKING)
    measures = measure_images(search, labels, "d", ks=ks, options=QUICK)
    return {(item.protocol, item.metric): item.value for item in measures.metrics}


def sorted_findings() -> FindingLabels:
    values = np.zeros((NUM, 2), dtype=np.float32)
    values[:40, 0] = values[40:, 1] = 1  # the queries have what the first half of the gallery has
    return FindingLabels(values, "two findings", "drawn")


def some_concepts() -> ConceptLabels:
    rng = np.random.default_rng(0)
    sets = [frozenset(rng.choice(list("abcdefg"), rng.integers(1, 6), replace=False)) for _ in range(NUM)]
    return ConceptLabels(tuple(sets), "seven concepts", "drawn")


@pytest.mark.parametrize("reverse", [False, True])
def test_a_collapsed_model_is_not_credited(reverse: bool) -> None:
    order = np.arange(NUM - ASKING)[:: -1 if reverse else 1]
    values = by_name(np.ones((NUM, 8), dtype=np.float32), sorted_findings(), order, ks=(1, 5, 25))
    shares = "self excluded; shares a finding"
    assert values[shares, "map_at_1"] == values[shares, "precision_at_5"] == 0
    graded = "self excluded; graded by Jaccard index of the findings"
    assert values[graded, "ndcg_at_5"] == values[graded, "mean_jaccard_at_5"] == 0
    # After the twenty wrong ones the first right one is in place 21.
    assert values[shares, "precision_at_25"] == pytest.approx(5 / 25)
    assert values[shares, "map_at_25"] == pytest.approx(sum(n / (20 + n) for n in range(1, 6)) / 20)


@pytest.mark.parametrize("labels", [sorted_findings(), some_concepts()])
@pytest.mark.parametrize("num_equal", [NUM, 45])
def test_the_order_of_the_gallery_does_not_matter(
    labels: FindingLabels | ConceptLabels, num_equal: int
) -> None:
    rng = np.random.default_rng(1)
    images = rng.normal(size=(NUM, 32)).astype(np.float32)
    images[-num_equal:] = images[-1]
    # More than one rounding of the same vector.
    images *= rng.uniform(0.1, 10, size=(NUM, 1)).astype(np.float32)
    wanted = by_name(images, labels, np.arange(NUM - ASKING))
    for _ in range(5):
        values = by_name(images, labels, rng.permutation(NUM - ASKING))
        assert values == pytest.approx(wanted, abs=1e-9)


def by_sorting(
    scores: np.ndarray, labels: tuple[np.ndarray, np.ndarray], keys: np.ndarray, k: int
) -> dict[str, list[float]]:
    """One query at a time, by a full sort of exact scores, the smaller gain first."""
    gains, hits = FindingOverlap(*labels).block(slice(0, len(scores)))
    discounts = 1 / np.log2(np.arange(2, k + 2))
    values: dict[str, list[float]] = {"mean_gain": [], "ndcg": [], **{f"map {name}": [] for name in hits}}
    for query, row in enumerate(scores):
        there = np.flatnonzero(keys[: len(row)] != keys[query])
        order = sorted(there, key=lambda item: (-row[item], gains[query, item]))[:k]
        placed, best = gains[query, order], np.sort(gains[query, there])[::-1][:k]
        values["mean_gain"].append(placed.mean())
        values["ndcg"].append(placed @ discounts / (best @ discounts) if best.any() else np.nan)
        for name, is_right in hits.items():
            order = sorted(there, key=lambda item: (-row[item], is_right[query, item]))[:k]
            right, most = is_right[query, order], min(k, is_right[query, there].sum())
            precision = np.cumsum(right) / np.arange(1, k + 1)
            values[f"map {name}"].append((precision * right).sum() / most if most else np.nan)
    return values


@pytest.mark.parametrize("block", [60, 4_000_000])
@pytest.mark.parametrize("more", [0, 1, 8])
def test_equals_sorting_everything(more: int, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", block)
    rng = np.random.default_rng(more)
    for _ in range(8):
        embeds = rng.integers(-1, 2, (25, 2)).astype(np.float32)  # exact products, and many ties
        labels, keys = (rng.random((25, 4)) < 0.4).astype(int), rng.integers(0, 12, 25)
        k = int(rng.integers(1, 9))
        top = top_k(embeds, embeds, k + more, similarity="dot", query_keys=keys, gallery_keys=keys)
        found: RankedGains = ranked_gains(
            top,
            FindingOverlap(labels, labels),
            (k,),
            query_keys=keys,
            gallery_keys=keys,
            similarities=Similarities(embeds, embeds, "dot"),
        )
        wanted = by_sorting(embeds @ embeds.T, (labels, labels), keys, k)
        for name in ("mean_gain", "ndcg"):
            assert found.graded[f"{name}_at_{k}"].values == pytest.approx(wanted[name], nan_ok=True)
        for name, metrics in found.hits.items():
            assert metrics[f"map_at_{k}"].values == pytest.approx(wanted[f"map {name}"], nan_ok=True)
