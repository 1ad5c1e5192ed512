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
    is asked about do not vote. ``k``, one for all findings, is the one with the best macro AUROC on
    validation; so scores of validation flatter it a little. A finding with one label value in train has no
    score. Source: Wu et al. 2018, arXiv 1805.01978, section 3.4. Differs from it in: several findings per
    item, and the share of the votes as a score.

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
            nearest, weights = _nearest(similarity[:, voters], max(ks))
            totals = np.cumsum(weights, axis=1)
            for member in members:
                votes = train.labels[voters, columns[member]][nearest] * weights
                share = np.cumsum(votes, axis=1) / totals
                shares[:, rows, member] = share[:, np.asarray(ks) - 1].T
    return shares


def _nearest(similarity: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Columns of the k largest per row, the largest first, and their weights relative to the largest."""
    if k < similarity.shape[1]:
        chosen = np.argpartition(similarity, -k, axis=1)[:, -k:]
    else:
        chosen = np.broadcast_to(np.arange(similarity.shape[1]), similarity.shape)
    values = np.take_along_axis(similarity, chosen, axis=1)
    order = np.argsort(-values, axis=1, kind="stable")
    values = np.take_along_axis(values, order, axis=1).astype(np.float64)
    return np.take_along_axis(chosen, order, axis=1), np.exp((values - values[:, :1]) / TEMPERATURE)


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
