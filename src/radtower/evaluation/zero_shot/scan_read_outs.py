"""What reads the vectors of scans: the prompts of a protocol, and the read-outs beside them.

Axes: N volumes, F findings, P projected embedding.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Literal, get_args

import numpy as np
import pandas as pd
import torch

from radtower.data.findings_catalog import map_scores
from radtower.evaluation.read_outs.finding_head import finding_head_read_out, head_findings
from radtower.evaluation.read_outs.labeled_vectors import LabeledVectors, ReadOutScores, one_class_findings
from radtower.evaluation.read_outs.linear_probe import linear_probe
from radtower.evaluation.read_outs.neighbors import nearest_neighbors
from radtower.evaluation.zero_shot.labeled_volumes import LabeledSplit, LabeledVolumes
from radtower.evaluation.zero_shot.protocol import ALL_SPLITS, Protocol
from radtower.evaluation.zero_shot.threshold_choice import ThresholdChoice
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.modeling.modeling_zero_shot import pair_scores

ReadOutName = Literal["linear-probe", "knn", "finding-head"]
FITTED = {"linear-probe": linear_probe, "knn": nearest_neighbors}


@torch.no_grad()
def zero_shot_scores(model: MedCLIPModel, images: torch.Tensor, protocol: Protocol) -> np.ndarray:
    """Score image vectors by the prompts of a protocol.

    Where a finding is made of several that are asked for, it has the largest of their scores. The arithmetic
    is in float64: in float32 a softmax near 1 is 1, and what ties is not ranked.

    Args:
        model: Whose vectors they are.
        images: ``(N, P)``, as the model compares them.
        protocol: What is asked, and how.

    Returns:
        ``(N, F)`` float64, in the order of ``protocol.labels``; NaN for findings without a counterpart.
    """
    directions = model.pair_directions(protocol.asked_phrases, protocol.prompts).cpu().double()
    scale = model.zero_shot_scale().cpu().double()
    scores = pair_scores(images.double(), directions, scale, protocol.score).numpy()
    if protocol.mapping is None:
        return scores
    table = pd.DataFrame(scores, columns=list(protocol.asked_keys))
    return map_scores(table, protocol.mapping).to_numpy()


def zero_shot_read_out(
    model: MedCLIPModel, protocol: Protocol, test: LabeledVolumes, validation: LabeledVolumes | None = None
) -> ReadOutScores:
    """Score volumes by the prompts of a protocol; see :func:`zero_shot_scores`."""

    def scores(volumes: LabeledVolumes) -> np.ndarray:
        columns = [protocol.labels.keys.index(key) for key in volumes.keys]
        return zero_shot_scores(model, volumes.compared, protocol)[:, columns]

    of_test = scores(test)
    tied = 0 if protocol.score == "margin" else num_saturated(of_test)
    note = f"{tied} of {of_test.size} scores are rounded to exactly 0 or 1 and tie" if tied else ""
    return ReadOutScores(
        of_test, None if validation is None else scores(validation), {}, protocol.description, note
    )


def head_read_out(
    model: MedCLIPModel, protocol: Protocol, test: LabeledVolumes, validation: LabeledVolumes | None = None
) -> ReadOutScores:
    """Score volumes by the finding head of the tower; findings are made of several as for the prompts.

    Raises:
        ValueError: If there is no head, or it knows none of the findings.
    """
    of_head = finding_head_read_out(
        model, test.projected, protocol.asked_keys, None if validation is None else validation.projected
    )

    def mapped(values: np.ndarray | None, keys: Sequence[str]) -> np.ndarray | None:
        if values is None:
            return None
        table = pd.DataFrame(values, columns=list(protocol.asked_keys))
        return (table if protocol.mapping is None else map_scores(table, protocol.mapping))[
            list(keys)
        ].to_numpy()

    scores = mapped(of_head.test, test.keys)
    assert scores is not None  # there are test volumes
    undefined = {
        key: "the finding head does not know all of it"
        for column, key in enumerate(test.keys)
        if np.isnan(scores[:, column]).any()
    }
    if len(undefined) == len(test.keys):
        raise ValueError(
            "the finding head must know one of the findings with labels, got "
            f"{', '.join(head_findings(model))}. Choose another read-out."
        )
    return ReadOutScores(
        scores, mapped(of_head.validation, test.keys), undefined, of_head.protocol, of_head.note
    )


def fitted_read_out(
    name: str, train: LabeledVolumes, validation: LabeledVolumes | None, test: LabeledVolumes
) -> ReadOutScores:
    """Fit a linear probe, or ask the nearest neighbors, on the vectors as the model compares them."""
    splits = [
        None
        if volumes is None
        else LabeledVectors(
            volumes.compared.numpy(), volumes.labels, volumes.studies["patient_id"].to_numpy(object)
        )
        for volumes in (train, validation, test)
    ]
    fit = FITTED[name]
    assert splits[0] is not None
    assert splits[2] is not None
    return fit(splits[0], splits[1], splits[2], test.keys)


def further_read_outs(
    names: Sequence[str], model: MedCLIPModel, protocol: Protocol, splits: Mapping[str, LabeledVolumes]
) -> list[ReadOutScores]:
    """Return the read-outs of these names.

    Args:
        names: Checked, see :func:`check_read_outs`.
        model: A dual tower.
        protocol: What is asked for.
        splits: By name, see :func:`needed_splits`.
    """
    test, validation = splits[protocol.split], splits.get("validation")
    return [
        fitted_read_out(name, splits["train"], validation, test)
        if name in FITTED
        else head_read_out(model, protocol, test, validation)
        for name in names
    ]


def needed_splits(
    protocol: Protocol, choices: Sequence[ThresholdChoice], read_outs: Sequence[str]
) -> list[str]:
    """Return the splits that have to be embedded, the one under test first."""
    is_fitted = any(name in FITTED for name in read_outs)
    needs_validation = is_fitted or any(choice.origin == "validation" for choice in choices)
    return [protocol.split, *["train"] * is_fitted, *["validation"] * needs_validation]


def check_read_outs(names: Sequence[str], split: str, splits: Collection[str]) -> None:
    """Refuse before the work what cannot be read out.

    Args:
        names: Read-outs.
        split: What is measured.
        splits: What the manifest has.

    Raises:
        ValueError: If there is no such read-out, one comes twice, or a split that one is fitted on is missing
            or under test.
    """
    known = get_args(ReadOutName)
    if set(names) - set(known) or len(set(names)) < len(names):
        raise ValueError(f"read-outs must be of {', '.join(known)}, each once, got {', '.join(names)}.")
    missing = sorted({"train", "validation"} - set(splits))
    under_test = {split, *(("train", "validation") if split == ALL_SPLITS else ())} & {"train", "validation"}
    fitted = [name for name in names if name in FITTED]
    if fitted and (missing or under_test):
        what = f"no {', '.join(missing)}" if missing else f"{', '.join(sorted(under_test))} under test"
        raise ValueError(
            f"{', '.join(fitted)} must have a train and a validation split that are not under test, got "
            f"{what}. Leave it out, or choose another split."
        )


def check_fits(names: Sequence[str], splits: Mapping[str, LabeledSplit], keys: Sequence[str]) -> None:
    """Refuse before the work read-outs that nothing can be fitted for.

    Args:
        names: Checked, see :func:`check_read_outs`.
        splits: With their labels, see :func:`label_splits`.
        keys: Findings that are measured.

    Raises:
        ValueError: If in train or in validation no finding has labels of both classes.
    """
    fitted = [name for name in names if name in FITTED]
    for split in ("train", "validation") if fitted else ():
        truth = splits[split].truth
        labels = truth.labels[:, [truth.keys.index(key) for key in keys]]
        if len(one_class_findings(labels, keys, split)) == len(keys):
            raise ValueError(
                f"{', '.join(fitted)} must have a finding with both classes in {split}, got none of "
                f"{len(keys)} findings in {len(labels)} volumes. Check its labels, or leave it out."
            )


def num_saturated(scores: np.ndarray) -> int:
    """Return how many of ``(N, F)`` probabilities are rounded to 0 or 1, where they are not ranked."""
    return int(((scores == 0.0) | (scores == 1.0)).sum())
