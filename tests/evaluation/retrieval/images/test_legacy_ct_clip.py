"""The published arithmetic of CT-CLIP: by hand, against a slow copy of it, and its bounds on real labels."""

import csv
import os
from pathlib import Path

import numpy as np
import pytest

from radtower.evaluation.retrieval.images import legacy_ct_clip as module
from radtower.evaluation.retrieval.images.legacy_ct_clip import (
    AS_PRINTED,
    RESET,
    VARIANTS,
    WITHOUT_SELF,
    WITHOUT_STUDY,
    CTCLIPMap,
    ct_clip_map_bounds,
    decoded_ct_clip_map,
    legacy_ct_clip_map,
    num_labeled_of_others,
)


def as_the_script_does(similarity: np.ndarray, labels: np.ndarray, ks: tuple[int, ...]) -> list[float]:
    """Loops over what the script does: one list for all k, every query against all labeled volumes."""
    gallery = [row for row in range(len(labels)) if labels[row].any()]
    ratios, printed = [], []
    for k in ks:
        for query in range(len(labels)):
            order = sorted(gallery, key=lambda row: -similarity[query, row])[:k]
            ratio = 0.0
            for row in order:
                union = np.logical_or(labels[query], labels[row]).sum()
                ratio += np.logical_and(labels[query], labels[row]).sum() / union
            ratios.append(ratio / k)
        printed.append(float(np.mean(ratios)))
    return printed


def random_case(seed: int, num_rows: int = 40) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    studies = np.sort(rng.integers(0, num_rows // 2, num_rows))
    labels = (rng.random((num_rows // 2, 4)) < 0.3).astype(np.float32)[studies]
    return rng.normal(size=(num_rows, 5)), labels, studies


def test_by_hand() -> None:
    # The normal volume asks and is not in the gallery; each of the others finds itself first.
    labels = np.array([[1, 0], [1, 1], [0, 0]])
    embeds = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0]])
    found = legacy_ct_clip_map(embeds, labels, ["a", "b", "c"], ks=(1,))
    assert found.means(AS_PRINTED) == pytest.approx([2 / 3])
    assert found.means(WITHOUT_SELF) == found.means(WITHOUT_STUDY) == pytest.approx([(0.5 + 0.5 + 0) / 3])
    labels = np.array([[1, 0], [1, 1], [0, 0], [0, 1]])
    embeds = np.array([[1.0, 0.0], [0.8, 0.6], [0.0, 1.0], [0.1, 1.0]])
    found = legacy_ct_clip_map(embeds, labels, list("abcd"), ks=(1, 2))
    # Of two: itself and the nearest other one; 0 for the normal one.
    at_two = ((1 + 0.5) + (1 + 0.5) + 0 + (1 + 0.5)) / 2 / 4
    assert found.means(RESET) == pytest.approx([3 / 4, at_two])
    assert found.means(AS_PRINTED) == pytest.approx([3 / 4, (3 / 4 + at_two) / 2])


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_equals_a_slow_copy_of_the_script(monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    monkeypatch.setattr(module, "_BLOCK_ELEMENTS", 100)
    embeds, labels, studies = random_case(seed)
    unit = embeds / np.linalg.norm(embeds, axis=1, keepdims=True)
    found = legacy_ct_clip_map(embeds, labels, studies, ks=(1, 3, 10))
    with np.errstate(invalid="ignore"):
        assert found.means(AS_PRINTED) == pytest.approx(as_the_script_does(unit @ unit.T, labels, (1, 3, 10)))
    assert decoded_ct_clip_map(found.means(AS_PRINTED)) == pytest.approx(found.means(RESET))
    for variant, keys in ((WITHOUT_SELF, np.arange(40)), (WITHOUT_STUDY, studies)):
        masked = np.where(keys[:, None] == keys, -9.0, unit @ unit.T)
        assert found.means(variant)[0] == pytest.approx(as_the_script_does(masked, labels, (1,))[0])
    order = np.random.default_rng(9).permutation(40)
    shuffled = legacy_ct_clip_map(embeds[order], labels[order], studies[order], ks=(1, 3, 10))
    assert all(shuffled.means(variant) == pytest.approx(found.means(variant)) for variant in VARIANTS)


def test_the_bounds_are_the_mean_of_random_vectors_and_the_best_order() -> None:
    _, labels, studies = random_case(3)
    chance, oracle = ct_clip_map_bounds(labels, studies, ks=(1, 4))
    rng = np.random.default_rng(0)
    runs = [legacy_ct_clip_map(rng.normal(size=(40, 64)), labels, studies, ks=(1, 4)) for _ in range(200)]
    for variant in VARIANTS:
        mean = np.mean([run.means(variant) for run in runs], axis=0)
        assert chance.means(variant) == pytest.approx(mean, abs=0.01)
        assert all(np.array(oracle.means(variant)) >= np.max([r.means(variant) for r in runs], axis=0))
    jaccard = (labels @ labels.T) / np.maximum(1, (labels[:, None] + labels > 0).sum(axis=2))
    assert oracle.means(AS_PRINTED) == pytest.approx(as_the_script_does(jaccard, labels, (1, 4)))


def test_the_largest_k_is_what_every_volume_has_of_other_studies() -> None:
    labels = np.array([[1], [0], [0], [1], [1]])
    assert num_labeled_of_others(labels, list("aabcd")) == 2
    assert num_labeled_of_others(labels, list("aabcc")) == 1


def test_the_published_numbers_decode() -> None:
    decoded = decoded_ct_clip_map([0.886, 0.683, 0.572, 0.489])
    assert decoded == pytest.approx([0.886, 0.48, 0.35, 0.24])


LABELS = np.eye(3)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ks": (1, 3)}, "at least 3 labeled volumes of other studies, the largest k, got 2"),
        ({"ks": (2, 1)}, r"ks must increase from 1 or more, got \[2, 1\]"),
        ({"ks": (0, 1)}, r"ks must increase from 1 or more, got \[0, 1\]"),
        ({"ks": ()}, r"ks must increase from 1 or more, got \[\]"),
        ({"study_ids": [1, 2]}, r"one study id per row, got shape \(3, 3\) and 2"),
        ({"embeds": np.eye(4)}, "embeds must have a row per volume, got 4 for 3"),
        ({"labels": np.where(np.eye(3) > 0, 1, [[-100], [0], [0]])}, "labels must be 0 or 1, got 1 rows"),
    ],
)
def test_refuses(arguments: dict, message: str) -> None:
    usual = {"embeds": np.eye(3), "labels": LABELS, "study_ids": [1, 2, 3], "ks": (1,)}
    with pytest.raises(ValueError, match=message):
        legacy_ct_clip_map(**{**usual, **arguments})


# In percent, of the validation labels of CT-RATE, at 1, 5, 10 and 50.
RANDOM = {
    AS_PRINTED: [88.6, 59.2, 47.0, 39.4],
    RESET: [88.6, 29.8, 22.6, 16.6],
    WITHOUT_SELF: [15.1, 15.2, 15.2, 15.1],
}
ORACLE = {
    AS_PRINTED: [88.6, 85.3, 82.6, 77.9],
    WITHOUT_SELF: [88.3, 79.3, 75.1, 63.3],
    WITHOUT_STUDY: [78.9, 75.9, 73.0, 62.6],
}


def _in_percent(found: CTCLIPMap, variant: str) -> list[float]:
    return [100 * value for value in found.means(variant)]


def test_the_bounds_on_the_labels_of_ct_rate() -> None:
    if "RADTOWER_REAL_DATA" not in os.environ:
        pytest.skip("set RADTOWER_REAL_DATA to the folder with the real label tables")
    path = Path(os.environ["RADTOWER_REAL_DATA"], "ct_label_tables", "ctrate_valid_labels.csv")
    with path.open(encoding="utf-8") as file:
        _, *rows = csv.reader(file)
    labels = np.array([row[1:] for row in rows], dtype=np.float32)
    studies = np.array([row[0].rsplit("_", 1)[0] for row in rows])
    assert (labels.shape, len(set(studies))) == ((3039, 18), 1564)
    assert int(labels.any(axis=1).sum()) == 2693
    chance, oracle = ct_clip_map_bounds(labels, studies)
    for variant, expected in ORACLE.items():
        assert _in_percent(oracle, variant) == pytest.approx(expected, abs=0.051), variant
    random = legacy_ct_clip_map(np.random.default_rng(0).normal(size=(3039, 64)), labels, studies)
    for variant, expected in RANDOM.items():
        assert _in_percent(random, variant) == pytest.approx(expected, abs=0.6), variant
        assert _in_percent(chance, variant) == pytest.approx(expected, abs=0.3), variant
    assert _in_percent(chance, WITHOUT_STUDY) == pytest.approx(_in_percent(chance, WITHOUT_SELF), abs=0.1)
