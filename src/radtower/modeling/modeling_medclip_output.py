"""What the dual tower returns.

Axes in this file: B studies, P projected embedding, F findings.
"""

from dataclasses import dataclass, fields
from typing import Any

import torch
from transformers.modeling_outputs import BaseModelOutputWithPooling, ModelOutput


@dataclass
class MedCLIPOutput(ModelOutput):
    """What :meth:`MedCLIPModel.forward` returns.

    Args:
        loss: Scalar, only with ``return_loss=True``.
        logits_per_image: ``(B, B)``, scaled cosine of scan i (row) and report j, plus the bias of ``siglip``;
            the dot product with ``legacy_dot``. None unless both sides are given.
        logits_per_text: Its transpose.
        image_embeds: ``(B, P)``, L2-normalized unless the similarity is ``legacy_dot``; None without scans.
        text_embeds: ``(B, P)``, likewise; None without reports.
        finding_logits_image: ``(B, F)`` of the shared finding head on the scans; None without one.
        finding_logits_text: ``(B, F)`` of the same head on the reports; None without one.
        image_projection: ``(B, P)``, before normalization: what trainers hand to the objective.
        text_projection: ``(B, P)``, likewise.
        logit_scale: ``(1,)``, after ``exp`` and capped.
        logit_bias: ``(1,)``; None unless the loss is ``siglip``.
        text_model_output: What the text tower gave, with its ``hidden_states`` and ``attentions``. None where
            neither is asked for: CLIP always returns it, which keeps the last states in memory, too.
        vision_model_output: Likewise of the image tower.
    """

    loss: torch.Tensor | None = None
    logits_per_image: torch.Tensor | None = None
    logits_per_text: torch.Tensor | None = None
    image_embeds: torch.Tensor | None = None
    text_embeds: torch.Tensor | None = None
    finding_logits_image: torch.Tensor | None = None
    finding_logits_text: torch.Tensor | None = None
    image_projection: torch.Tensor | None = None
    text_projection: torch.Tensor | None = None
    logit_scale: torch.Tensor | None = None
    logit_bias: torch.Tensor | None = None
    text_model_output: BaseModelOutputWithPooling | None = None
    vision_model_output: BaseModelOutputWithPooling | None = None

    def to_tuple(self) -> tuple[Any, ...]:
        """As a tuple, in the order of the fields, with tuples of the towers."""
        # By the fields and not by the keys, of which those that were set later are the last.
        values = (getattr(self, field.name) for field in fields(self))
        given = [value for value in values if value is not None]
        return tuple(value.to_tuple() if isinstance(value, ModelOutput) else value for value in given)
