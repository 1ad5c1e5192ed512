"""What a linear classifier reads from vectors of scans, fitted on the train split.

Axes: N items, E embedding, F findings.
"""

from collections.abc import Sequence

import numpy as np

from radtower.evaluation.read_outs.labeled_vectors import (
    LabeledVectors,
    ReadOutScores,
    check_same_findings,
    one_class_findings,
)
from radtower.evaluation.read_outs.logistic import fit_probe

STRENGTHS = (0.0001, 0.001, 0.01, 0.1, 1.0)  # inverse regularization


def linear_probe(
    train: LabeledVectors,
    validation: LabeledVectors | None,
    test: LabeledVectors,
    keys: Sequence[str],
    strengths: Sequence[float] = STRENGTHS,
) -> ReadOutScores:
    """Fit a logistic regression per finding on standardized vectors.

    The strength of its regularization, one for all findings, is the one with the best macro AUROC on
    validation; so scores of validation flatter it a little. A finding with one label value in train has no
    score.

    Args:
        train: Split to fit on.
        validation: Split to choose the strength on; None where ``strengths`` is one.
        test: Split under test; its labels are not looked at.
        keys: Findings, in column order of the labels.
        strengths: Inverse regularizations C to choose from.

    Raises:
        ValueError: If the splits do not fit, or the strength cannot be chosen.
    """
    check_same_findings(train, [test] if validation is None else [validation, test], keys)
    undefined = one_class_findings(train.labels, keys, "the train split")
    columns = [column for column, key in enumerate(keys) if key not in undefined]
    if not columns:
        raise ValueError(
            f"train must have a finding with both classes, got none of {len(keys)}. Check its labels."
        )
    choice = None if validation is None else (validation.vectors, validation.labels[:, columns])
    probe = fit_probe((train.vectors, train.labels[:, columns]), choice, strengths)

    def scores(vectors: np.ndarray) -> np.ndarray:
        all_findings = np.full((len(vectors), len(keys)), np.nan)
        all_findings[:, columns] = probe.probabilities(vectors)
        return all_findings

    choice_text = f"C = {probe.strength:g}" if len(set(strengths)) == 1 else "C chosen on validation"
    return ReadOutScores(
        test=scores(test.vectors),
        validation=None if validation is None else scores(validation.vectors),
        undefined=undefined,
        protocol=f"linear probe, {choice_text}",
        note=f"C = {probe.strength:g}, fitted on {len(train.vectors)} items",
    )
