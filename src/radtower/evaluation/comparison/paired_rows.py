"""The same items of two models, side by side; items that only one has are never left out in silence.

Axes: N items or queries, F findings.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from radtower.evaluation.decisions.finding_scores import FindingScores

_NOT_SCORED = "no score in the rows"


class NotPaired(ValueError):
    """Two models cannot be compared item by item; the message says why."""


@dataclass(frozen=True)
class PairedQueries:
    """What two models answered to the same N queries, by row metric."""

    patient_ids: np.ndarray
    first: dict[str, np.ndarray]
    second: dict[str, np.ndarray]


def pair_scores(first: pd.DataFrame, second: pd.DataFrame) -> tuple[FindingScores, FindingScores]:
    """Return the scores of two models for the same items, findings and labels.

    Args:
        first: Rows of ``ScoreRows`` of one dataset, class set, label source and protocol.
        second: Likewise, of the other model.

    Raises:
        NotPaired: If items, patients or labels differ, or a finding misses a part of the items.
    """
    frames = [_checked(frame, ["item_id", "finding"], "items") for frame in (first, second)]
    _check_same_units(frames, "item_id", "items")
    keys = list(dict.fromkeys([*frames[0]["finding"], *frames[1]["finding"]]))
    labels = [_table(frame, "label", keys) for frame in frames]
    both = labels[0].notna() & labels[1].notna()
    num_differing = int((both & (labels[0] != labels[1])).any(axis=1).sum())
    if num_differing:
        raise NotPaired(f"the labels of {num_differing} of {len(labels[0])} items differ")
    known = labels[0].fillna(labels[1])
    patients = _patients(frames, "item_id", "items").reindex(known.index)
    samples = []
    for frame in frames:
        scores = _table(frame, "score", keys).to_numpy(np.float64)
        num_missing = np.isnan(scores).sum(axis=0)
        num_partial = int(((num_missing > 0) & (num_missing < len(scores))).sum())
        if num_partial:
            raise NotPaired(f"{num_partial} findings have scores for a part of the items only")
        samples.append(
            FindingScores(
                scores=scores,
                labels=known.to_numpy(np.float64),
                patient_ids=patients.to_numpy(),
                keys=keys,
                undefined={key: _NOT_SCORED for key, num in zip(keys, num_missing, strict=True) if num},
            )
        )
    return samples[0], samples[1]


def pair_queries(first: pd.DataFrame, second: pd.DataFrame) -> PairedQueries:
    """Return what two models answered to the same queries.

    Args:
        first: Rows of ``QueryRows`` of one dataset, class set, label source, protocol and direction.
        second: Likewise, of the other model.

    Raises:
        NotPaired: If queries or patients differ.
    """
    frames = [_checked(frame, ["query_id", "metric"], "queries") for frame in (first, second)]
    _check_same_units(frames, "query_id", "queries")
    tables = [frame.pivot(index="query_id", columns="metric", values="value") for frame in frames]
    patients = _patients(frames, "query_id", "queries").reindex(tables[0].index)
    answers = [{str(name): table[name].to_numpy(np.float64) for name in table} for table in tables]
    return PairedQueries(patients.to_numpy(), answers[0], answers[1])


def _table(frame: pd.DataFrame, values: str, keys: list[str]) -> pd.DataFrame:
    """Items by findings, items sorted; NaN where the rows have nothing."""
    return frame.pivot(index="item_id", columns="finding", values=values).reindex(columns=keys)


def _checked(frame: pd.DataFrame, unit: list[str], word: str) -> pd.DataFrame:
    num_repeated = int(frame.duplicated(unit).sum())
    if num_repeated:
        raise NotPaired(f"the ids of {word} are not unique: {num_repeated} rows repeat one")
    return frame


def _check_same_units(frames: list[pd.DataFrame], name: str, word: str) -> None:
    ids = [set(frame[name]) for frame in frames]
    if ids[0] != ids[1]:
        raise NotPaired(
            f"{word} differ: {len(ids[0] - ids[1])} of {len(ids[0])} are in the first only, "
            f"{len(ids[1] - ids[0])} of {len(ids[1])} in the second only"
        )


def _patients(frames: list[pd.DataFrame], name: str, word: str) -> pd.Series:
    """Patient by item, the same for both models."""
    found = [frame.groupby(name)["patient_id"].agg(["first", "nunique"]) for frame in frames]
    num_differing = int((found[0]["first"] != found[1]["first"]).sum())
    num_several = int((found[0]["nunique"] > 1).sum() + (found[1]["nunique"] > 1).sum())
    if num_differing or num_several:
        raise NotPaired(f"the patients of {num_differing + num_several} {word} differ")
    patients: pd.Series = found[0]["first"]
    return patients
