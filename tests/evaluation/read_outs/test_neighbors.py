from dataclasses import replace

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import KNeighborsClassifier

from radtower.evaluation.read_outs import neighbors
from radtower.evaluation.read_outs.labeled_vectors import LabeledVectors
from radtower.evaluation.read_outs.neighbors import nearest_neighbors, vote_shares

KEYS = ("nodule", "effusion", "hernia")


@pytest.fixture
def splits(make_split):
    return make_split(1), make_split(2), make_split(3)


def slow_share(train: LabeledVectors, asked: LabeledVectors, column: int, k: int) -> np.ndarray:
    """One item at a time, in float64."""
    shares = []
    for vector, patient in zip(asked.vectors, asked.patient_ids, strict=True):
        votes = [
            (float(v @ vector / np.linalg.norm(v) / np.linalg.norm(vector)), label)
            for v, label, own in zip(train.vectors, train.labels[:, column], train.patient_ids, strict=True)
            if label >= 0 and own != patient
        ]
        votes = sorted(votes, reverse=True)[:k]
        weights = np.exp(np.array([cosine for cosine, _ in votes]) / 0.07)
        shares.append(weights @ np.array([label for _, label in votes]) / weights.sum())
    return np.array(shares)


@pytest.mark.parametrize("k", [1, 3, 20, 50])
def test_shares_equal_a_slow_vote(splits, k):
    train, _, test = splits
    train.labels[:9, 1] = -100
    test.patient_ids[:20] = train.patient_ids[20:40]
    read_out = nearest_neighbors(train, None, test, KEYS, [k])
    for column in range(3):
        expected = slow_share(train, test, column, k)
        np.testing.assert_allclose(read_out.test[:, column], expected, rtol=2e-4, atol=1e-6)
    assert read_out.protocol == f"nearest neighbors, k = {k}, votes weighted by exp(cosine / 0.07)"
    assert read_out.note == f"k = {k} of 60 training items"


def test_shares_equal_scikit_learn(splits):
    train, _, test = splits
    model = KNeighborsClassifier(
        10, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07), algorithm="brute"
    )
    expected = model.fit(train.vectors, train.labels[:, 0]).predict_proba(test.vectors)[:, 1]
    shares = nearest_neighbors(train, None, test, KEYS, [10]).test[:, 0]
    np.testing.assert_allclose(shares, expected, rtol=2e-4, atol=1e-6)


def test_items_that_tie_at_the_cut_share_its_places():
    # The first is nearest; three others tie for the second and third place, one of them positive.
    vectors = np.array([[1, 0], [1, 1], [2, 2], [3, 3], [0, 1]], dtype=np.float32)
    labels = np.array([[0], [1], [0], [0], [1]], dtype=np.float32)
    train = LabeledVectors(vectors, labels, np.arange(5))
    asked = LabeledVectors(vectors[:1], labels[:1], np.array([9]))
    tied = np.exp((np.sqrt(0.5) - 1) / 0.07)
    expected = [n / 3 * tied / (1 + n * tied) for n in (0, 1, 2, 3)]
    shares = vote_shares(train, asked, [0], [1, 2, 3, 4])[:, 0, 0]
    np.testing.assert_allclose(shares, expected, rtol=1e-4)


@pytest.mark.parametrize("num_equal", [60, 35])
def test_the_order_of_equal_training_items_does_not_matter(splits, num_equal):
    train, _, test = splits
    train.vectors[:num_equal] = train.vectors[0]
    train.labels[5:9, 1] = -100
    test.patient_ids[:20] = train.patient_ids[20:40]
    expected = vote_shares(train, test, [0, 1, 2], [1, 3, 20, 40])
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(60)
        shuffled = LabeledVectors(train.vectors[order], train.labels[order], train.patient_ids[order])
        shares = vote_shares(shuffled, test, [0, 1, 2], [1, 3, 20, 40])
        np.testing.assert_allclose(shares, expected, rtol=1e-4, atol=1e-6)


def test_blocks_do_not_matter(splits, monkeypatch):
    train, _, test = splits
    whole = vote_shares(train, test, [0, 1, 2], [1, 5])
    monkeypatch.setattr(neighbors, "_BLOCK_ELEMENTS", 60 * 7)
    # Other blocks are other matrix products, which round differently.
    np.testing.assert_allclose(vote_shares(train, test, [0, 1, 2], [1, 5]), whole, rtol=1e-4, atol=1e-6)


def test_the_own_patient_does_not_vote(splits):
    train = splits[0]
    # Asked about themselves: without the rule the nearest item is the item, and knows its label.
    shares = nearest_neighbors(train, None, train, KEYS, [1]).test
    assert (shares != train.labels).any(axis=0).all()
    strangers = replace(train, patient_ids=np.arange(60) + 777)
    np.testing.assert_array_equal(nearest_neighbors(train, None, strangers, KEYS, [1]).test, train.labels)


def test_k_with_the_best_validation_is_taken(splits):
    train, validation, test = splits
    values = {
        k: np.mean(
            [roc_auc_score(validation.labels[:, f], slow_share(train, validation, f, k)) for f in range(3)]
        )
        for k in (1, 5, 20, 50)
    }
    best = max(values, key=lambda k: values[k])
    read_out = nearest_neighbors(train, validation, test, KEYS, [50, 1, 20, 5, 200])
    assert "k chosen on validation" in read_out.protocol
    assert read_out.note == f"k = {best} of 60 training items"
    np.testing.assert_allclose(read_out.validation[:, 0], slow_share(train, validation, 0, best), rtol=2e-4)
    assert roc_auc_score(test.labels[:, 1], read_out.test[:, 1]) > 0.7


def test_the_order_and_length_of_vectors_do_not_matter(splits):
    train, _, test = splits
    order = np.random.default_rng(0).permutation(60)
    other = LabeledVectors(train.vectors[order] * 3, train.labels[order], train.patient_ids[order])
    one, two = (nearest_neighbors(gallery, None, test, KEYS, [7]).test for gallery in (train, other))
    np.testing.assert_allclose(one, two, rtol=2e-4, atol=1e-6)


def test_collapsed_vectors_give_everyone_the_same_share(splits):
    train, _, test = splits
    flat = [replace(split, vectors=np.ones((60, 4))) for split in (train, test)]
    shares = nearest_neighbors(flat[0], None, flat[1], KEYS, [60]).test
    np.testing.assert_allclose(shares, np.broadcast_to(train.labels.mean(axis=0), shares.shape))


def test_a_finding_with_one_class_in_train_has_no_score(splits):
    train, validation, test = splits
    train.labels[:, 2] = 1
    read_out = nearest_neighbors(train, validation, test, KEYS)
    assert np.isnan(read_out.test[:, 2]).all()
    assert not np.isnan(read_out.validation[:, :2]).any()
    assert "60 of 60 known labels positive" in read_out.undefined["hernia"]


def test_too_many_neighbors_are_refused_or_left_out(splits):
    train, validation, test = splits
    train.labels[:50, 1] = -100
    assert nearest_neighbors(train, None, test, KEYS, [2, 100]).note == "k = 2 of 60 training items"
    with pytest.raises(ValueError, match=r"a number between 1 and 10, .* got \[11\]"):
        nearest_neighbors(train, None, test, KEYS, [11])
    train.labels[:, 1] = train.labels[:, 0]
    test.patient_ids[:] = train.patient_ids[0]
    train.patient_ids[:15] = train.patient_ids[0]
    with pytest.raises(ValueError, match=r"between 1 and 45, the training items of other patients"):
        nearest_neighbors(train, None, test, KEYS, [46])
    with pytest.raises(ValueError, match=r"between 1 and 45, .* got \[0\]"):
        nearest_neighbors(train, validation, test, KEYS, [0])


def test_what_cannot_be_chosen_is_refused(splits):
    train, validation, test = splits
    with pytest.raises(ValueError, match=r"to choose k of \[1, 5\], got no validation split"):
        nearest_neighbors(train, None, test, KEYS, [1, 5])
    with pytest.raises(ValueError, match=r"to choose k of \[1, 5\], got none"):
        nearest_neighbors(train, replace(validation, labels=np.zeros((60, 3))), test, KEYS, [1, 5])
    with pytest.raises(ValueError, match="train must have a finding with both classes, got none of 3"):
        nearest_neighbors(replace(train, labels=np.ones((60, 3))), validation, test, KEYS)
    with pytest.raises(ValueError, match="one width and 2 findings"):
        nearest_neighbors(train, validation, test, KEYS[:2])
    with pytest.raises(ValueError, match="vectors must not be zero, got 60 that are"):
        nearest_neighbors(train, None, replace(test, vectors=np.zeros((60, 6))), KEYS, [1])
