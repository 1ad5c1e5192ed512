"""Findings as a model's own head scores them: the shared head of a dual tower, or a classifier of scans.

Axes: N items, P projected embedding, E embedding, F findings asked for, H findings of the head.
"""

from collections.abc import Sequence

import numpy as np
import torch

from radtower.evaluation.read_outs.labeled_vectors import ReadOutScores
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.modeling.modeling_medclip import MedCLIPModel

Headed = MedCLIPModel | CT3DVisionForImageClassification
_UNIT_TOLERANCE = 1e-3


def head_findings(model: Headed) -> tuple[str, ...]:
    """Return the findings that a model's head scores, in column order.

    Raises:
        ValueError: If a dual tower has no head.
    """
    if isinstance(model, CT3DVisionForImageClassification):
        return tuple(name for _, name in sorted(dict(model.config.id2label or {}).items()))
    if model.finding_head is None:
        raise ValueError(
            "model must have a finding head, got a dual tower that was aligned without findings. "
            "Choose another read-out."
        )
    return tuple(model.config.findings)


@torch.no_grad()
def head_logits(model: Headed, vectors: torch.Tensor) -> np.ndarray:
    """Return the ``(N, H)`` logits of the head.

    Args:
        model: With a head.
        vectors: ``(N, P)`` projected scans of a dual tower, not normalized:
            ``encode_image(..., normalize=False)``; ``(N, E)`` pooled scans of a classifier.

    Raises:
        ValueError: If the model has no head, or all vectors are normalized: the head would read others than
            it was trained on.
    """
    head_findings(model)
    norms = vectors.norm(dim=-1)
    if ((norms - 1).abs() < _UNIT_TOLERANCE).all():
        raise ValueError(
            f"vectors must be as the tower gives them for its head, got {len(vectors)} of length 1. "
            "Embed with normalize=False."
        )
    head = model.finding_head if isinstance(model, MedCLIPModel) else model.classifier
    assert head is not None  # checked above
    logits: torch.Tensor = head(vectors.to(head.weight.device, head.weight.dtype))
    return logits.float().cpu().numpy()


def finding_head_read_out(
    model: Headed,
    test: torch.Tensor,
    keys: Sequence[str],
    validation: torch.Tensor | None = None,
) -> ReadOutScores:
    """Score vectors with the model's own head, as probabilities; a finding it does not know has no score.

    Args:
        model: With a head.
        test: ``(N, P)`` or ``(N, E)``, see :func:`head_logits`.
        keys: Findings asked for, by key.
        validation: Vectors of the validation split; None without one.

    Raises:
        ValueError: If the model has no head, the vectors are normalized, or it knows none of the findings.
    """
    known = {name: column for column, name in enumerate(head_findings(model))}
    undefined = {key: "the finding head does not know it" for key in keys if key not in known}
    if len(undefined) == len(keys):
        raise ValueError(
            f"the finding head must know one of the {len(keys)} findings, got {', '.join(known)}. "
            "Choose a class set with its keys."
        )

    def scores(vectors: torch.Tensor) -> np.ndarray:
        logits = head_logits(model, vectors)
        columns = [logits[:, known[key]] if key in known else np.full(len(logits), np.nan) for key in keys]
        # Probabilities: a fixed threshold means the same for a head as for a softmax.
        return torch.from_numpy(np.stack(columns, axis=1)).double().sigmoid().numpy()

    return ReadOutScores(
        test=scores(test),
        validation=None if validation is None else scores(validation),
        undefined=undefined,
        protocol="finding head",
        note=f"{len(keys) - len(undefined)} of {len(keys)} findings known to the head",
    )
