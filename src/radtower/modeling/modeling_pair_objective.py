"""What a dual tower is trained for: the loss of its configuration, in one call for models and trainers.

Axes in this file: R scans of this process, C reports of all processes, P projected embedding.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F

from .modeling_pair_losses import ONE_PROCESS, ProcessGroup, matryoshka, sigmoid_loss, symmetric_info_nce
from .modeling_pair_relation import PairRelation


@dataclass(frozen=True, kw_only=True)
class PairObjective:
    """The contrastive loss of a dual tower; fields as in :class:`MedCLIPConfig`."""

    loss: Literal["infonce", "siglip", "soft_infonce"] = "infonce"
    similarity: Literal["cosine", "legacy_dot"] = "cosine"
    label_share: float = 0.5
    matryoshka_dims: Sequence[int] = ()

    @property
    def needs_labels(self) -> bool:
        """Whether the relation of pairs goes by their findings."""
        return self.loss == "soft_infonce"

    def embed(self, projected: torch.Tensor) -> torch.Tensor:
        """Projected vectors ``(B, P)`` as they are compared: float32, of length 1 for cosines."""
        projected = _precise(projected)
        return F.normalize(projected, dim=-1) if self.similarity == "cosine" else projected

    def logits(
        self,
        image_embeds: torch.Tensor,
        text_embeds: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> torch.Tensor:
        """``(R, C)`` of embedded scans and reports, as the loss sees them."""
        similarity = image_embeds @ text_embeds.T
        if self.similarity == "legacy_dot":
            return similarity
        return scale * similarity if bias is None else scale * similarity + bias

    def __call__(
        self,
        images: torch.Tensor,
        texts: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor | None,
        relation: PairRelation,
        group: ProcessGroup = ONE_PROCESS,
    ) -> torch.Tensor:
        """Loss of projected vectors.

        Args:
            images: ``(R, P)``, not normalized.
            texts: ``(C, P)``, not normalized; of all processes, gathered with gradient.
            scale: One element, after ``exp``.
            bias: One element, for ``siglip``.
            relation: What belongs together.
            group: The processes whose reports are the columns.
        """

        def of_cut(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
            if self.loss == "siglip":
                assert bias is not None  # a model with this loss has one
                return sigmoid_loss(images, texts, scale, bias, relation, group)
            factor = scale if self.similarity == "cosine" else 1.0
            return symmetric_info_nce(images, texts, factor, relation, group)

        if self.matryoshka_dims:
            return matryoshka(of_cut, _precise(images), _precise(texts), self.matryoshka_dims)
        return of_cut(self.embed(images), self.embed(texts))


def _precise(vectors: torch.Tensor) -> torch.Tensor:
    return vectors if vectors.dtype == torch.float64 else vectors.float()
