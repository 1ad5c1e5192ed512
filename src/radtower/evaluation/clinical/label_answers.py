"""What answers say about the findings: retrieved reports, or answers that never saw the scan.

An answer may be one report, the mean over several, or one drawn at random; so a finding is named with a
share between 0 and 1, and every number below is an expected value, computed exactly.
Axes: Q queries, G gallery reports, F findings, K answers per query, U different rows of labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from radtower.data.targets import MASKED_TARGET

# ``mean``: all K answers count alike. ``best``: the one of them whose labels agree best with the truth, which
# only somebody who knows the truth can choose: an upper bound.
Pick = Literal["mean", "best"]
_BLOCK_ELEMENTS = 4_000_000


@dataclass(frozen=True)
class LabelAnswers:
    """The labels of the answers beside those of the true report.

    Args:
        truth: ``(Q, F)``: 0, 1, or -100 where the true report is masked; those cells are left out.
        named: ``(Q, F)`` in [0, 1]: share of the answers that state the finding as present. Whatever an
            answer does not state as present, masked or not, is not named.
        jaccard: ``(Q,)`` Jaccard index of the findings named and those of the truth, 1 where both have none;
            NaN where the truth is all masked.
        exact: ``(Q,)`` share of answers with the labels of the truth; NaN where any of these is masked.
    """

    truth: np.ndarray
    named: np.ndarray
    jaccard: np.ndarray
    exact: np.ndarray


def answers_of_rows(
    truth: np.ndarray, gallery: np.ndarray, rows: np.ndarray, pick: Pick = "mean"
) -> LabelAnswers:
    """Return what gallery reports say that were given as answers.

    Args:
        truth: ``(Q, F)``: 0, 1 or -100.
        gallery: ``(G, F)``: 0, 1 or -100.
        rows: ``(Q, K)`` rows of the gallery, the first answer first; of equally good ones it is the best.
        pick: How K answers become one.

    Raises:
        ValueError: If a shape, a label, a row or ``pick`` is invalid.
    """
    present = _checked(truth, gallery, pick)
    if rows.ndim != 2 or rows.shape[0] != len(truth) or not rows.shape[1]:
        raise ValueError(f"rows must be (Q, K) with Q = {len(truth)} and K > 0, got shape {rows.shape}.")
    if rows.min() < 0 or rows.max() >= len(gallery):
        raise ValueError(
            f"rows must be between 0 and {len(gallery) - 1}, got {rows.min()} to {rows.max()}. Give rows of "
            "the gallery."
        )
    parts = []
    for block in _blocks(len(truth), rows.shape[1] * truth.shape[1]):
        answers = present[rows[block]]  # (q, K, F)
        jaccard, exact = _agreement(truth[block, None], answers)
        chosen = np.full(jaccard.shape, 1 / rows.shape[1])
        if pick == "best":
            chosen = np.zeros(jaccard.shape)
            best = np.where(np.isnan(jaccard), 0.0, jaccard).argmax(axis=1)
            chosen[np.arange(len(best)), best] = 1.0
        parts.append(_expected(np.einsum("qk,qkf->qf", chosen, answers), jaccard, exact, chosen))
    return LabelAnswers(truth, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def random_answers(
    truth: np.ndarray, gallery: np.ndarray, num_answers: int = 1, pick: Pick = "mean"
) -> LabelAnswers:
    """Return what a random order of the gallery says on average, exactly: there is no seed.

    The first K reports of a random order are K different ones. The probability that the best of them has the
    J-th best agreement follows from how many reports agree better, as for :func:`chance_levels`.

    Args:
        truth: ``(Q, F)``: 0, 1 or -100.
        gallery: ``(G, F)``: 0, 1 or -100.
        num_answers: K, between 1 and G.
        pick: How K answers become one.

    Raises:
        ValueError: If a shape, a label, ``num_answers`` or ``pick`` is invalid.
    """
    present = _checked(truth, gallery, pick)
    if not 1 <= num_answers <= len(gallery):
        raise ValueError(
            f"num_answers must be between 1 and {len(gallery)}, got {num_answers}. There are no more reports."
        )
    patterns, sizes = np.unique(present, axis=0, return_counts=True)
    parts = []
    for block in _blocks(len(truth), len(patterns) * truth.shape[1]):
        jaccard, exact = _agreement(truth[block, None], patterns[None])
        chosen = np.broadcast_to(sizes / sizes.sum(), jaccard.shape)
        if pick == "best":
            chosen = _best_of_draw(np.where(np.isnan(jaccard), 0.0, jaccard), sizes, num_answers)
        parts.append(_expected(chosen @ patterns, jaccard, exact, chosen))
    return LabelAnswers(truth, *(np.concatenate(column) for column in zip(*parts, strict=True)))


def label_jaccard(truth: np.ndarray, gallery: np.ndarray) -> np.ndarray:
    """Return the ``(Q, G)`` Jaccard index of the findings of every truth and every report.

    Only findings that are known in the truth count. 1 where both sides have none of them; NaN where none is
    known. Makes the whole matrix: for few queries or few reports.
    """
    return _agreement(truth[:, None], _checked(truth, gallery, "mean")[None])[0]


def _best_of_draw(jaccard: np.ndarray, sizes: np.ndarray, num_answers: int) -> np.ndarray:
    """``(q, U)``: probability that the best of K different reports has the labels of row u."""
    order = np.argsort(-jaccard, axis=1)
    ranked = np.take_along_axis(jaccard, order, axis=1)
    of_rank = sizes[order].astype(np.float64)
    reached = of_rank.cumsum(axis=1)
    # Rows that agree equally well are one group: its end is the last place with this agreement.
    is_end = np.concatenate([ranked[:, 1:] != ranked[:, :-1], np.ones((len(ranked), 1), dtype=bool)], axis=1)
    places = np.arange(ranked.shape[1])
    end = np.minimum.accumulate(np.where(is_end, places, ranked.shape[1])[:, ::-1], axis=1)[:, ::-1]
    up_to_end = np.take_along_axis(reached, end, axis=1)
    total = float(sizes.sum())
    none_yet = np.ones_like(up_to_end)  # P(no draw is at least as good as the group)
    for drawn in range(num_answers):
        none_yet *= np.clip(total - up_to_end - drawn, 0, None) / (total - drawn)
    is_start = np.concatenate([np.ones((len(ranked), 1), dtype=bool), is_end[:, :-1]], axis=1)
    start = np.maximum.accumulate(np.where(is_start, places, 0), axis=1)
    before_at = np.maximum(start - 1, 0)
    before = np.where(start > 0, np.take_along_axis(reached, before_at, axis=1), 0.0)
    none_before = np.where(start > 0, np.take_along_axis(none_yet, before_at, axis=1), 1.0)
    share = (none_before - none_yet) * of_rank / (up_to_end - before)
    chosen = np.empty_like(share)
    np.put_along_axis(chosen, order, share, axis=1)
    return chosen


def _agreement(truth: np.ndarray, present: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Jaccard and exact agreement of ``(q, 1, F)`` with ``(q or 1, K, F)``: two ``(q, K)``."""
    is_known = truth != MASKED_TARGET
    has, named = (truth == 1).astype(np.float32), present.astype(np.float32).swapaxes(1, 2)
    both = (has @ named)[:, 0]
    claimed = (is_known.astype(np.float32) @ named)[:, 0]
    either = has.sum(axis=2) + claimed - both
    jaccard = np.where(either > 0, both / np.maximum(either, 1), 1.0)
    exact = (both == either).astype(np.float64)
    jaccard = np.where(is_known.any(axis=2), jaccard, np.nan)
    return jaccard, np.where(is_known.all(axis=2), exact, np.nan)


def _expected(
    named: np.ndarray, jaccard: np.ndarray, exact: np.ndarray, chosen: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return named, (jaccard * chosen).sum(axis=1), (exact * chosen).sum(axis=1)


def _blocks(num_rows: int, elements_per_row: int) -> Iterator[slice]:
    size = max(1, _BLOCK_ELEMENTS // max(1, elements_per_row))
    for start in range(0, num_rows, size):
        yield slice(start, start + size)


def _checked(truth: np.ndarray, gallery: np.ndarray, pick: str) -> np.ndarray:
    """Return ``(G, F)`` bool, what each report states as present."""
    if pick not in get_args(Pick):
        raise ValueError(f"pick must be one of {', '.join(get_args(Pick))}, got {pick!r}.")
    if truth.ndim != 2 or gallery.ndim != 2 or truth.shape[1] != gallery.shape[1] or not truth.shape[1]:
        raise ValueError(
            f"truth and gallery must be (Q, F) and (G, F) with the same F > 0, got shapes {truth.shape} and "
            f"{gallery.shape}. Take both from one label table."
        )
    if not len(truth) or not len(gallery):
        raise ValueError(f"truth and gallery must have rows, got {len(truth)} and {len(gallery)}.")
    for name, labels in (("truth", truth), ("gallery", gallery)):
        invalid = np.setdiff1d(labels, (0, 1, MASKED_TARGET))
        if len(invalid):
            raise ValueError(
                f"{name} must hold 0, 1 or -100, got {invalid[:5].tolist()}. Mask what is neither."
            )
    present: np.ndarray = gallery == 1
    return present
