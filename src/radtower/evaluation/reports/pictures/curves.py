"""Curves with bands of the patient bootstrap: ROC from score rows, recall@k from the ranks of queries.

Axes: N items, F findings, G points of the false-positive rate, R resamples, Q queries, K numbers looked at.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from radtower.data.targets import MASKED_TARGET
from radtower.evaluation.bootstrap import resample_counts

GRID = np.linspace(0.0, 1.0, 101)  # false-positive rates at which curves are averaged and resampled
BAND = (2.5, 97.5)  # percentiles: each point has its own 95 % interval
_BLOCK_ELEMENTS = 2_000_000  # numbers of one resampled curve in memory at once, 16 MB


@dataclass(frozen=True)
class Curve:
    """A line with a band.

    Args:
        x: ``(G,)`` or ``(K,)``.
        y: Of the same shape.
        low: Lower end of the band; None where there is none (a single patient).
        high: Upper end.
        num_patients: Patients that were resampled.
    """

    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None
    high: np.ndarray | None
    num_patients: int


@dataclass(frozen=True)
class ScoreMatrix:
    """The score rows of one data set and protocol: ``(N, F)`` scores and labels, -100 where unknown."""

    scores: np.ndarray
    labels: np.ndarray
    patient_ids: np.ndarray
    findings: tuple[str, ...]


def score_matrix(frame: pd.DataFrame) -> ScoreMatrix:
    """Turn score rows of one data set and protocol into matrices, items in order of their id.

    Raises:
        ValueError: If an item has a finding twice, or several patients.
    """
    num_twice = int(frame.duplicated(["item_id", "finding"]).sum())
    if num_twice:
        raise ValueError(
            f"rows must hold an item and finding once, got {num_twice} more than once. "
            "Tell them apart by protocol."
        )
    patients = frame.drop_duplicates(["item_id", "patient_id"])
    if patients["item_id"].duplicated().any():
        raise ValueError("an item must be of one patient, got one of several. Make item ids unique.")
    findings = list(dict.fromkeys(frame["finding"]))
    scores = frame.pivot(index="item_id", columns="finding", values="score")[findings]
    labels = frame.pivot(index="item_id", columns="finding", values="label")[findings]
    owner = patients.set_index("item_id")["patient_id"].loc[scores.index]
    is_missing = scores.isna().to_numpy()
    return ScoreMatrix(
        np.where(is_missing, 0.0, scores.to_numpy(dtype=np.float64)),
        np.where(is_missing, MASKED_TARGET, labels.to_numpy(dtype=np.float64)),
        owner.to_numpy(),
        tuple(findings),
    )


def roc_curves(
    sample: ScoreMatrix, num_resamples: int = 1000, seed: int = 0
) -> tuple[dict[str, Curve], Curve | None]:
    """Return the ROC of every finding that has both classes, and their mean; None where there is none.

    Sensitivity at the rates of ``GRID``, on straight lines between the points of the curve. The mean is that
    of the sensitivities at a rate (vertical averaging); a finding that has one class in a resample is left
    out of the mean of that resample.

    Args:
        sample: Scores and labels.
        num_resamples: Resamples of the patients.
        seed: Of the resampling.
    """
    labels = sample.labels
    columns = [f for f in range(labels.shape[1]) if (labels[:, f] == 1).any() and (labels[:, f] == 0).any()]
    if not columns:
        return {}, None
    once = np.ones((1, len(labels)))
    points = np.stack([_sensitivities(sample, f, once)[0] for f in columns])
    resampled = np.empty((len(columns), num_resamples, len(GRID)), dtype=np.float32)
    done = 0
    for counts in resample_counts(sample.patient_ids, num_resamples, seed):
        for place, f in enumerate(columns):
            resampled[place, done : done + len(counts)] = _sensitivities(sample, f, counts)
        done += len(counts)
    num_patients = len(np.unique(sample.patient_ids))
    curves = {
        sample.findings[f]: _banded(GRID, points[place], resampled[place], num_patients)
        for place, f in enumerate(columns)
    }
    is_defined = ~np.isnan(resampled[:, :, 0])
    sums = np.where(is_defined[:, :, None], resampled, 0).sum(axis=0)
    num_defined = is_defined.sum(axis=0)[:, None]
    means = np.where(num_defined > 0, sums / np.maximum(num_defined, 1), np.nan)
    return curves, _banded(GRID, points.mean(axis=0), means, num_patients)


def recall_curve(
    ranks: np.ndarray,
    patient_ids: Sequence[object] | np.ndarray,
    largest_k: int,
    num_resamples: int = 1000,
    seed: int = 0,
) -> Curve:
    """Return recall@k for k = 1 to ``largest_k``, with a band over the patients of the queries.

    Args:
        ranks: ``(Q,)``, 1 is the first place.
        patient_ids: ``(Q,)``.
        largest_k: K.
        num_resamples: Resamples of the patients.
        seed: Of the resampling.

    Raises:
        ValueError: If there is no query, or a rank or ``largest_k`` is below 1.
    """
    if not len(ranks) or ranks.min() < 1 or largest_k < 1:
        raise ValueError(
            f"ranks and largest_k must be at least 1, got {len(ranks)} ranks from "
            f"{ranks.min() if len(ranks) else 'none'} and {largest_k}. The first place is 1."
        )
    # Column k - 1 counts the queries whose rank rounds up to k; what lies beyond falls off the end.
    places = np.minimum(np.ceil(ranks).astype(np.int64), largest_k + 1) - 1
    hits = np.zeros((len(ranks), largest_k + 1))
    hits[np.arange(len(ranks)), places] = 1
    hits = hits[:, :largest_k]

    def recalls(counts: np.ndarray) -> np.ndarray:
        return np.cumsum(counts @ hits, axis=1) / counts.sum(axis=1, keepdims=True)

    resampled = np.concatenate([recalls(c) for c in resample_counts(patient_ids, num_resamples, seed)])
    num_patients = len(np.unique(np.asarray(patient_ids)))
    ks = np.arange(1, largest_k + 1)
    return _banded(ks, recalls(np.ones((1, len(ranks))))[0], resampled, num_patients)


def _banded(x: np.ndarray, y: np.ndarray, resampled: np.ndarray, num_patients: int) -> Curve:
    """Add the band, if there is something to resample and most resamples have a curve."""
    defined = resampled[~np.isnan(resampled[:, 0])]
    if num_patients < 2 or 2 * len(defined) < len(resampled):
        return Curve(x, y, None, None, num_patients)
    low, high = np.percentile(defined, BAND, axis=0)
    return Curve(x, y, low, high, num_patients)


def _sensitivities(sample: ScoreMatrix, finding: int, counts: np.ndarray) -> np.ndarray:
    """``(R, G)`` sensitivity at the rates of ``GRID``, in samples given as counts; NaN with one class."""
    is_known = sample.labels[:, finding] != MASKED_TARGET
    scores, labels = sample.scores[is_known, finding], sample.labels[is_known, finding]
    order = np.argsort(-scores, kind="stable")
    ranked = scores[order]
    ends = np.flatnonzero(np.r_[ranked[1:] != ranked[:-1], True])  # a threshold between equal scores is none
    positive = labels[order] == 1
    block = max(1, _BLOCK_ELEMENTS // len(scores))
    parts = []
    for start in range(0, len(counts), block):
        weights = counts[start : start + block, is_known][:, order]
        tp = np.cumsum(weights * positive, axis=1)[:, ends].astype(np.float64)
        fp = np.cumsum(weights * ~positive, axis=1)[:, ends].astype(np.float64)
        parts.append(_interpolated(fp, tp))
    return np.concatenate(parts)


def _interpolated(false_positives: np.ndarray, true_positives: np.ndarray) -> np.ndarray:
    """Sensitivity at ``GRID``; all rows in one call, each moved to a stretch of the axis of its own."""
    num_rows = len(false_positives)
    totals = [side[:, -1:] for side in (false_positives, true_positives)]
    has_both = ((totals[0] > 0) & (totals[1] > 0))[:, 0]
    zero = np.zeros((num_rows, 1))
    x, y = (
        np.hstack([zero, side / np.maximum(total, 1)])
        for side, total in zip((false_positives, true_positives), totals, strict=True)
    )
    shift = 2.0 * np.arange(num_rows)[:, None]
    values = np.interp((GRID + shift).ravel(), (x + shift).ravel(), y.ravel()).reshape(num_rows, -1)
    return np.where(has_both[:, None], values, np.nan)
