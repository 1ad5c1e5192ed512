"""Zero-shot scores of a dual tower against per-finding labels, with patient-bootstrap intervals.

Axes: N studies, F findings.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch

from radtower.evaluation.metrics import auroc_per_finding, bootstrap_auroc, macro_mean
from radtower.evaluation.results import MetricResult, Provenance, measured
from radtower.modeling.modeling_medclip import MedCLIPModel


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


def embed_studies(
    model: MedCLIPModel,
    study_ids: Sequence[str],
    load_scan: Callable[[str], torch.Tensor],
    batch_size: int = 8,
    on_progress: Callable[[int], None] | None = None,
) -> torch.Tensor:
    """Embed preprocessed scans: ``(N, P)``, unit vectors.

    Args:
        model: In evaluation mode.
        study_ids: Studies in order.
        load_scan: Study id -> ``(C, Z, Y, X)`` float32.
        batch_size: Scans at a time.
        on_progress: Called with the number of scans done.
    """
    embeds = []
    for start in range(0, len(study_ids), batch_size):
        batch = study_ids[start : start + batch_size]
        embeds.append(model.encode_image(torch.stack([load_scan(study_id) for study_id in batch])))
        if on_progress is not None:
            on_progress(start + len(batch))
    return torch.cat(embeds)
