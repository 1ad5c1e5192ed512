"""What the nearest training scans say: a vote of the k most similar vectors.

The similarities are computed in blocks of items and never held whole.
Axes: Q items asked about, G training items, E embedding, F findings, K numbers of neighbors.
"""

from collections.abc import Sequence

import numpy as np

from radtower.evaluation.metrics import auroc_per_finding, macro_mean
from radtower.evaluation.read_outs.labeled_vectors import (
    LabeledVectors,
    ReadOutScores,
    check_same_findings,
    one_class_findings,
)

KS = (1, 5, 10, 20, 50, 100, 200)
TEMPERATURE = 0.07  # of Wu et al. 2018, arXiv 1805.01978, section 3.4
_TIE = 1e-6  # cosines that differ by less differ by rounding
_BLOCK_ELEMENTS = 4_000_000  # similarities in memory at once, 16 MB


def nearest_neighbors(
    train: LabeledVectors,
    validation: LabeledVectors | None,
    test: LabeledVectors,
    keys: Sequence[str],
    ks: Sequence[int] = KS,
) -> ReadOutScores:
    """Score findings by a vote of the nearest training items, weighted by ``exp(cosine / 0.07)``.

    The neighbors of a finding are the nearest whose label for it is known. Training items of the patient that
    is asked about do not vote. Where items tie for the last places, each has the same part of a vote, so the
    order of the items does not matter. ``k``, one for all findings, is the one with the best macro AUROC on
    validation; so scores of validation flatter it a little. A finding with one label value in train has no
    score. Source: Wu et al. 2018, arXiv 1805.01978, section 3.4. Differs from it in: several findings per
    item, shared votes of ties, and the share of the votes as a score.

    Args:
        train: Items that vote.
        validation: Split to choose k on; None where ``ks`` is one.
        test: Split under test; its labels are not looked at.
        keys: Findings, in column order of the labels.
        ks: Numbers of neighbors to choose from; those beyond the training items that may vote are left out.

    Raises:
        ValueError: If the splits do not fit, k cannot be chosen, or is more than there are neighbors.
    """
    asked = [test] if validation is None else [validation, test]
    check_same_findings(train, asked, keys)
    undefined = one_class_findings(train.labels, keys, "the train split")
    columns = [column for column, key in enumerate(keys) if key not in undefined]
    if not columns:
        raise ValueError(
            f"train must have a finding with both classes, got none of {len(keys)}. Check its labels."
        )
    possible = _possible(ks, _num_voters(train, asked, columns))
    best = possible[0] if len(possible) == 1 else _best_k(train, validation, columns, possible)

    def scores(split: LabeledVectors) -> np.ndarray:
        all_findings = np.full((len(split.vectors), len(keys)), np.nan)
        all_findings[:, columns] = vote_shares(train, split, columns, [best])[0]
        return all_findings

    choice_text = f"k = {best}" if len(set(ks)) == 1 else "k chosen on validation"
    return ReadOutScores(
        test=scores(test),
        validation=None if validation is None else scores(validation),
        undefined=undefined,
        protocol=f"nearest neighbors, {choice_text}, votes weighted by exp(cosine / {TEMPERATURE})",
        note=f"k = {best} of {len(train.vectors)} training items",
    )


def vote_shares(
    train: LabeledVectors, asked: LabeledVectors, columns: list[int], ks: Sequence[int]
) -> np.ndarray:
    """Return the ``(K, Q, F)`` weighted share of positive votes for the findings in ``columns``."""
    gallery, queries = _unit(train.vectors), _unit(asked.vectors)
    _, patients = np.unique(np.r_[_texts(train), _texts(asked)], return_inverse=True)
    own, asking = patients[: len(gallery)], patients[len(gallery) :]
    shares = np.empty((len(ks), len(queries), len(columns)))
    known = train.labels[:, columns] >= 0
    patterns, pattern_of = np.unique(known, axis=1, return_inverse=True)
    block = max(1, _BLOCK_ELEMENTS // len(gallery))
    for start in range(0, len(queries), block):
        rows = slice(start, start + block)
        similarity = queries[rows] @ gallery.T
        similarity[asking[rows, None] == own] = -np.inf
        for number, pattern in enumerate(patterns.T):
            # Findings whose labels are known for the same items have the same neighbors.
            members = np.flatnonzero(pattern_of.ravel() == number)
            voters = np.flatnonzero(pattern)
            labels = train.labels[voters][:, np.asarray(columns)[members]]
            shares[:, rows, members] = _shares(similarity[:, voters], labels, ks)
    return shares


def _shares(similarity: np.ndarray, labels: np.ndarray, ks: Sequence[int]) -> np.ndarray:
    """``(K, q, f)`` shares of positive votes, from ``(q, G)`` similarities and ``(G, f)`` known labels."""
    nearest, values = _nearest(similarity, min(max(ks) + 1, len(labels)))
    weights = np.exp((values - values[:, :1]) / TEMPERATURE)
    totals = np.cumsum(weights, axis=1)
    places = np.asarray(ks) - 1
    shares = np.empty((len(ks), len(similarity), labels.shape[1]))
    for column, of_finding in enumerate(labels.T):
        share = np.cumsum(of_finding[nearest] * weights, axis=1) / totals
        shares[:, :, column] = share[:, places].T
    for number, k in enumerate(ks):
        if k < values.shape[1]:
            is_cut = np.flatnonzero(values[:, k - 1] - values[:, k] <= _TIE)
            shares[number, is_cut] = _shares_of_ties(similarity[is_cut], values[is_cut], labels, k)
    return shares


def _shares_of_ties(similarity: np.ndarray, values: np.ndarray, labels: np.ndarray, k: int) -> np.ndarray:
    """``(q, f)`` where the items that tie for the last of k places share those places."""
    above_last = similarity - values[:, k - 1 : k]
    is_above, is_tied = above_last > _TIE, np.abs(above_last) <= _TIE
    num_left = k - is_above.sum(axis=1, keepdims=True)
    part = np.where(is_above, 1.0, np.where(is_tied, num_left / is_tied.sum(axis=1, keepdims=True), 0.0))
    weights = part * np.exp((similarity - values[:, :1]) / TEMPERATURE)
    shares: np.ndarray = weights @ labels / weights.sum(axis=1, keepdims=True)
    return shares


def _nearest(similarity: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns and values of the k largest per row, the largest first."""
    if k < similarity.shape[1]:
        chosen = np.argpartition(similarity, -k, axis=1)[:, -k:]
    else:
        chosen = np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
    values = np.take_along_axis(similarity, chosen, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1).astype(np.float64)
    return np.take_along_axis(chosen, order, axis=1), values


def _best_k(
    train: LabeledVectors, validation: LabeledVectors | None, columns: list[int], ks: Sequence[int]
) -> int:
    values = [np.nan]
    if validation is not None:
        shares = vote_shares(train, validation, columns, ks)
        values = [macro_mean(auroc_per_finding(s, validation.labels[:, columns])).value for s in shares]
    if np.isnan(values[0]):
        raise ValueError(
            f"validation must have a finding with both classes to choose k of {list(ks)}, got "
            f"{'no validation split' if validation is None else 'none'}. Give one k."
        )
    return ks[int(np.argmax(values))]


def _possible(ks: Sequence[int], num_voters: int) -> list[int]:
    possible = sorted({k for k in ks if 1 <= k <= num_voters})
    if not possible or (len(set(ks)) == 1 and possible != list(set(ks))):
        raise ValueError(
            f"ks must hold a number between 1 and {num_voters}, the training items of other patients with a "
            f"known label, got {list(ks)}. Name a smaller one."
        )
    return possible


def _num_voters(train: LabeledVectors, asked: Sequence[LabeledVectors], columns: list[int]) -> int:
    """The fewest training items that may vote on any finding of any item."""
    known = train.labels[:, columns] >= 0
    others = [_texts(split) for split in asked]
    fewest = known.sum(axis=0).min()
    texts = _texts(train)
    for patient in np.intersect1d(texts, np.concatenate(others)):
        fewest = min(fewest, known[texts != patient].sum(axis=0).min())
    return int(fewest)


def _texts(split: LabeledVectors) -> np.ndarray:
    return np.asarray([str(patient) for patient in split.patient_ids])


def _unit(vectors: np.ndarray) -> np.ndarray:
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    if (norms == 0).any():
        raise ValueError(
            f"vectors must not be zero, got {int((norms == 0).sum())} that are. They have no direction."
        )
    return (vectors / norms).astype(np.float32)
