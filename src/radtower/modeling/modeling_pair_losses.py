"""Contrastive losses of scans and reports, in blocks of rows: no ``(B, B)`` matrix is ever whole.

The similarities of a block are made, used and dropped, and made once more for the gradient. Across processes,
each compares its own scans with the reports of all; what it needs to know of the other scans are four sums
per report, and so only the reports have to be gathered.
Axes in this file: R scans of this process, C reports of all processes, r scans of a block, E embedding.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from .modeling_pair_relation import PairRelation

BLOCK_ELEMENTS = 2**22  # similarities at a time: 16 MB, and a few times that for what is made of them


def _alone(tensor: torch.Tensor) -> torch.Tensor:
    return tensor


@dataclass(frozen=True)
class ProcessGroup:
    """The processes that share a batch; the default is one that has it all.

    Args:
        world_size: How many there are.
        sum: Sum of a tensor over processes, the same in each. Without gradient.
        max: Elementwise maximum over processes, likewise.
    """

    world_size: int = 1
    sum: Callable[[torch.Tensor], torch.Tensor] = _alone
    max: Callable[[torch.Tensor], torch.Tensor] = _alone


ONE_PROCESS = ProcessGroup()


def symmetric_info_nce(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    relation: PairRelation | None = None,
    group: ProcessGroup = ONE_PROCESS,
) -> torch.Tensor:
    """Contrastive loss of paired scans and reports, with one positive or with a mass that is spread.

    Cross-entropy of the targets of ``relation`` with the softmax over reports, and with that over scans.
    Source: Radford et al. 2021, figure 3, arXiv 2103.00020; several positives: Khosla et al. 2020, equation
    2, arXiv 2004.11362.

    Args:
        image_embeds: ``(R, E)``; L2-normalized for cosines.
        text_embeds: ``(C, E)``, likewise; those of this process, or of all, gathered with gradient.
        logit_scale: One element > 0; inverse temperature, after ``exp``.
        relation: What belongs together. None pairs row i with column i, and everything else is a negative,
            also where two studies have the same report.
        group: The processes whose reports are the columns.

    Returns:
        Scalar, the mean of both directions; ``log(C)`` when the embeddings carry no information. Across
        processes, the mean of their values is the loss of the whole batch, and so for gradients.

    Raises:
        ValueError: If the shapes do not fit.
    """
    relation = _checked(image_embeds, text_embeds, relation, group)
    images, texts, scale = _precise(image_embeds, text_embeds, logit_scale)
    loss: torch.Tensor = _SymmetricInfoNCE.apply(images, texts, scale, relation, group)
    return loss


def sigmoid_loss(
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    logit_scale: torch.Tensor | float,
    logit_bias: torch.Tensor | float,
    relation: PairRelation | None = None,
    group: ProcessGroup = ONE_PROCESS,
) -> torch.Tensor:
    """Whether each scan and report belong together, as a question of its own (SigLIP).

    Source: Zhai et al. 2023, section 3.2, arXiv 2303.15343: summed over reports, averaged over scans.

    Args:
        image_embeds: ``(R, E)``, L2-normalized.
        text_embeds: ``(C, E)``, L2-normalized, of all processes.
        logit_scale: One element > 0, after ``exp``; the paper begins at 10.
        logit_bias: One element; the paper begins at -10, since most pairs do not belong together.
        relation: What belongs together; labels have no part in it. None pairs row i with column i.
        group: The processes whose reports are the columns.

    Returns:
        Scalar; its mean over processes is the loss of the whole batch, and so for gradients.

    Raises:
        ValueError: If the shapes do not fit.
    """
    relation = _checked(image_embeds, text_embeds, relation, group)
    images, texts, scale, bias = _precise(image_embeds, text_embeds, logit_scale, logit_bias)
    loss: torch.Tensor = _Sigmoid.apply(images, texts, scale, bias, relation, group)
    return loss


def matryoshka(
    loss: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    image_embeds: torch.Tensor,
    text_embeds: torch.Tensor,
    dims: Sequence[int],
) -> torch.Tensor:
    """Average a loss over the first ``dims`` numbers of the vectors, each cut normalized anew.

    Source: Kusupati et al. 2022, equation 1 with equal weights, arXiv 2205.13147.

    Args:
        loss: Of two sides of unit vectors.
        image_embeds: ``(R, E)``, of any length.
        text_embeds: ``(C, E)``.
        dims: Sizes of the cuts, each in 1..E and named once.

    Raises:
        ValueError: If a size is out of range or named twice, or there is none.
    """
    width = image_embeds.shape[1]
    if not dims or len(set(dims)) < len(dims) or not all(1 <= dim <= width for dim in dims):
        raise ValueError(
            f"dims must be different sizes between 1 and {width}, got {list(dims)}. Name each cut once."
        )
    values = [
        loss(F.normalize(image_embeds[:, :dim], dim=-1), F.normalize(text_embeds[:, :dim], dim=-1))
        for dim in dims
    ]
    return torch.stack(values).mean()


class _SymmetricInfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        texts: torch.Tensor,
        scale: torch.Tensor,
        relation: PairRelation,
        group: ProcessGroup,
    ) -> torch.Tensor:
        shares = _shares(relation)
        columns = _Columns.empty(texts, len(shares))
        row_lse, row_dot = images.new_empty(len(images)), images.new_zeros(len(images))
        for rows, logits in _blocks(images, texts, scale):
            row_lse[rows] = logits.logsumexp(dim=1)
            columns.add_exponents(logits)
            if relation.is_own_only:
                own = relation.own[rows]
                row_dot[rows] = logits.gather(1, own[:, None])[:, 0]
                columns.mass[0][own] = 1.0
                columns.dot[0][own] = row_dot[rows]
                continue
            for kind, (share, mass) in enumerate(relation.parts(rows)):
                weighted = mass * logits
                row_dot[rows] += share * weighted.sum(dim=1) / mass.sum(dim=1)
                columns.mass[kind] += mass.sum(dim=0)
                columns.dot[kind] += weighted.sum(dim=0)
        columns.share(group)
        column_lse = columns.log_sums()
        column_dot = (texts.new_tensor(shares)[:, None] * columns.dot / columns.mass).sum(dim=0)
        ctx.save_for_backward(images, texts, scale, row_lse, column_lse, columns.mass)
        ctx.relation, ctx.factor = relation, group.world_size / (2 * len(texts))
        own_columns = (column_lse - column_dot)[relation.own]
        return ctx.factor * ((row_lse - row_dot).sum() + own_columns.sum())

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, texts, scale, row_lse, column_lse, column_mass = ctx.saved_tensors
        relation: PairRelation = ctx.relation
        total = _Gradients(images, texts)
        for rows, logits in _blocks(images, texts, scale):
            excess = (logits - row_lse[rows, None]).exp_()
            excess += (logits - column_lse).exp_()
            if relation.is_own_only:
                excess.scatter_add_(1, relation.own[rows, None], excess.new_full((len(excess), 1), -2.0))
            else:
                for (share, mass), of_column in zip(relation.parts(rows), column_mass, strict=True):
                    excess -= share * mass * (1 / mass.sum(dim=1, keepdim=True) + 1 / of_column)
            excess *= ctx.factor * gradient
            total.add(rows, excess, logits, scale)
        return total.images, total.texts, total.scale, None, None


class _Sigmoid(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        images: torch.Tensor,
        texts: torch.Tensor,
        scale: torch.Tensor,
        bias: torch.Tensor,
        relation: PairRelation,
        group: ProcessGroup,
    ) -> torch.Tensor:
        ctx.save_for_backward(images, texts, scale, bias)
        ctx.relation, ctx.factor = relation, group.world_size / len(texts)
        loss = images.new_zeros(())
        for rows, logits in _blocks(images, texts, scale):
            loss += F.softplus(logits.add_(bias).mul_(_signs(relation, rows, logits)).neg_()).sum()
        return ctx.factor * loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        images, texts, scale, bias = ctx.saved_tensors
        total, of_bias = _Gradients(images, texts), torch.zeros_like(bias)
        for rows, logits in _blocks(images, texts, scale):
            signs = _signs(ctx.relation, rows, logits).neg_()
            excess = ((logits + bias) * signs).sigmoid_() * signs
            excess *= ctx.factor * gradient
            of_bias += excess.sum()
            total.add(rows, excess, logits, scale)
        return total.images, total.texts, total.scale, of_bias, None, None


@dataclass
class _Columns:
    """Sums over rows, of the columns; two kinds of mass at most."""

    largest: torch.Tensor  # (C,)
    exponents: torch.Tensor  # (C,), less the largest
    mass: torch.Tensor  # (kinds, C)
    dot: torch.Tensor  # (kinds, C), of mass and logits

    @classmethod
    def empty(cls, texts: torch.Tensor, kinds: int) -> "_Columns":
        zeros = texts.new_zeros(2 * kinds + 1, len(texts))
        largest = texts.new_full((len(texts),), float("-inf"))
        return cls(largest, zeros[0], zeros[1 : 1 + kinds], zeros[1 + kinds :])

    def add_exponents(self, logits: torch.Tensor) -> None:
        largest = torch.maximum(self.largest, logits.amax(dim=0))
        self.exponents *= (self.largest - largest).exp()
        self.exponents += (logits - largest).exp_().sum(dim=0)
        self.largest = largest

    def share(self, group: ProcessGroup) -> None:
        largest = group.max(self.largest)
        self.exponents = group.sum(self.exponents * (self.largest - largest).exp())
        self.largest, self.mass, self.dot = largest, group.sum(self.mass), group.sum(self.dot)

    def log_sums(self) -> torch.Tensor:
        return self.largest + self.exponents.log()


class _Gradients:
    """Of both sides and of the scale, block by block."""

    def __init__(self, images: torch.Tensor, texts: torch.Tensor) -> None:
        self.images, self.texts = torch.empty_like(images), torch.zeros_like(texts)
        self.scale = images.new_zeros(())
        self._sides = images, texts

    def add(self, rows: slice, of_logits: torch.Tensor, logits: torch.Tensor, scale: torch.Tensor) -> None:
        images, texts = self._sides
        self.scale += (of_logits * logits).sum() / scale
        with torch.autocast(images.device.type, enabled=False):
            self.images[rows] = (of_logits @ texts).mul_(scale)
            self.texts.addmm_(of_logits.T, images[rows] * scale)


def _blocks(
    images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor
) -> Iterator[tuple[slice, torch.Tensor]]:
    """Blocks of rows with their logits ``(r, C)``."""
    size = max(1, BLOCK_ELEMENTS // len(texts))
    for start in range(0, len(images), size):
        rows = slice(start, min(start + size, len(images)))
        with torch.autocast(images.device.type, enabled=False):  # a backward pass may be inside of one
            logits = (images[rows] * scale) @ texts.T
        yield rows, logits


def _signs(relation: PairRelation, rows: slice, logits: torch.Tensor) -> torch.Tensor:
    """1 for what belongs together, else -1."""
    if relation.is_own_only or relation.row_keys is None:
        return torch.full_like(logits, -1.0).scatter_(1, relation.own[rows, None], 1.0)
    return relation.positives(rows).to(logits.dtype) * 2 - 1


def _shares(relation: PairRelation) -> list[float]:
    return [share for share in (1 - relation.label_share, relation.label_share) if share]


def _precise(
    images: torch.Tensor, texts: torch.Tensor, *scalars: torch.Tensor | float
) -> tuple[torch.Tensor, ...]:
    """Everything in float32 or better: bf16 has 3 digits, and logits of 100 differ in the fourth."""
    dtype = torch.promote_types(torch.promote_types(images.dtype, texts.dtype), torch.float32)
    numbers = [torch.as_tensor(value, device=images.device).to(dtype).squeeze() for value in scalars]
    return images.to(dtype), texts.to(dtype), *numbers


def _checked(
    images: torch.Tensor, texts: torch.Tensor, relation: PairRelation | None, group: ProcessGroup
) -> PairRelation:
    """The relation, where all fits."""
    is_whole = group.world_size > 1 and relation is not None
    if (
        images.ndim != 2
        or images.shape[1:] != texts.shape[1:]
        or (len(images) != len(texts) and not is_whole)
    ):
        raise ValueError(
            f"image_embeds and text_embeds must pair up row by row, got {tuple(images.shape)} and "
            f"{tuple(texts.shape)}. Give one report per scan and one projection_dim."
        )
    if relation is None:
        return PairRelation(own=torch.arange(len(images), device=images.device))
    known = relation.column_keys if relation.column_labels is None else relation.column_labels
    num_columns = len(texts) if known is None else len(known)
    if len(relation.own) != len(images) or num_columns != len(texts):
        raise ValueError(
            f"relation must be of {len(images)} rows and {len(texts)} columns, got {len(relation.own)} and "
            f"{num_columns}. Make it of the same batch."
        )
    return relation
