"""The loss of a batch that is spread over processes: each compares its own scans with the reports of all.

Axes: B studies of this process, N studies of all processes, P projected embedding, F findings, K keys.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from radtower.modeling.losses import UNKNOWN_LABEL, masked_binary_cross_entropy
from radtower.modeling.modeling_medclip import FINDING_LOSS_WEIGHT
from radtower.modeling.modeling_pair_losses import ONE_PROCESS, ProcessGroup
from radtower.modeling.modeling_pair_objective import PairObjective
from radtower.modeling.modeling_pair_relation import PairRelation
from radtower.training.gather import gather_with_gradient, is_distributed, own_rows, row_counts

# What the loss reads of a model's output; GradCache keeps the gradients of these.
PAIR_FIELDS = ("image_projection", "text_projection", "finding_logits_image", "finding_logits_text")
SCALAR_FIELDS = ("logit_scale", "logit_bias")


@dataclass(frozen=True, kw_only=True)
class PairLoss:
    """Contrastive loss of the studies of all processes, plus the finding losses of GreenRFM.

    Args:
        objective: That of the model.
    """

    objective: PairObjective

    def __call__(
        self,
        output: Mapping[str, Any],
        labels: torch.Tensor | None = None,
        pair_keys: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Loss of this process, whose mean over processes is that of the whole batch, and so for gradients.

        Args:
            output: Of :class:`MedCLIPModel`, with the fields of ``PAIR_FIELDS`` and ``SCALAR_FIELDS``.
            labels: ``(B, F)``.
            pair_keys: ``(B, K)``.
        """
        images, texts = output["image_projection"].float(), output["text_projection"].float()
        counts = row_counts(len(images), images.device)
        # Labels have a part in what is positive with soft targets only.
        labels_of_pairs = labels if self.objective.needs_labels else None
        relation = PairRelation(
            own=own_rows(counts, images.device),
            row_keys=pair_keys,
            column_keys=None if pair_keys is None else gather_with_gradient(pair_keys, counts),
            row_labels=labels_of_pairs,
            column_labels=None if labels_of_pairs is None else gather_with_gradient(labels_of_pairs, counts),
            label_share=0.0 if labels_of_pairs is None else self.objective.label_share,
        )
        loss = self.objective(
            images,
            gather_with_gradient(texts, counts),
            output["logit_scale"],
            output.get("logit_bias"),
            relation,
            processes(),
        )
        return loss if labels is None else loss + _finding_loss(output, labels)


def processes() -> ProcessGroup:
    """The processes of this training, as the losses of pairs need them."""
    if not is_distributed():
        return ONE_PROCESS
    return ProcessGroup(dist.get_world_size(), _reduced(dist.ReduceOp.SUM), _reduced(dist.ReduceOp.MAX))


def _reduced(operation: Any) -> Any:
    def reduce(tensor: torch.Tensor) -> torch.Tensor:
        total = tensor.clone()
        dist.all_reduce(total, operation)
        return total

    return reduce


def _finding_loss(output: Mapping[str, Any], labels: torch.Tensor) -> torch.Tensor:
    """Mean over the known labels of all processes, not of each."""
    num_known = (labels != UNKNOWN_LABEL).sum()
    group = processes()
    share = group.world_size * num_known / group.sum(num_known).clamp(min=1)
    total = labels.new_zeros((), dtype=torch.float32)
    for name in ("finding_logits_image", "finding_logits_text"):
        if output.get(name) is not None:
            total = total + FINDING_LOSS_WEIGHT * masked_binary_cross_entropy(output[name], labels)
    return total * share
