"""Zero-shot scores of a dual tower against per-finding labels, with patient-bootstrap intervals.

Axes: N studies, F findings.
"""

from collections.abc import Sequence

import numpy as np

from radtower.evaluation.metrics import auroc_per_finding, bootstrap_auroc, macro_mean
from radtower.evaluation.results import MetricResult, Provenance, measured


def zero_shot_results(
    scores: np.ndarray,
    labels: np.ndarray,
    patient_ids: Sequence[str],
    keys: Sequence[str],
    provenance: Provenance,
    num_resamples: int = 2000,
) -> list[MetricResult]:
    """AUROC of every finding and their unweighted mean.

    Args:
        scores: ``(N, F)``, higher where the finding is likelier.
        labels: ``(N, F)``, 0, 1 or -100.
        patient_ids: ``(N,)``; studies of one patient are resampled together.
        keys: Findings, in column order.
        provenance: Data, class set, label source and prompts.
        num_resamples: Resamples of the bootstrap.

    Returns:
        The macro mean first, then one result per finding; undefined ones are null with the reason.
    """
    values = auroc_per_finding(scores, labels)
    intervals, macro_interval = bootstrap_auroc(scores, labels, patient_ids, num_resamples)
    mean = macro_mean(values)
    return [
        measured(
            "macro_auroc",
            mean.value,
            macro_interval,
            provenance,
            n=len(labels),
            undefined_because="no finding has both classes",
            note=f"mean of {mean.num_defined} of {mean.num_findings} findings",
        ),
        *(
            measured(
                "auroc",
                float(values[column]),
                intervals[column],
                provenance,
                n=int((labels[:, column] >= 0).sum()),
                n_positive=int((labels[:, column] == 1).sum()),
                finding=key,
            )
            for column, key in enumerate(keys)
        ),
    ]
