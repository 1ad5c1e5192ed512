"""Rows of all processes, in the order of their ranks, with gradients: negatives across processes.

Each process computes the loss of its own queries against everybody's documents. The backward pass sums over
processes what each found about a row, and hands it to the process the row came from.
Source: the local loss with gathered gradients of OpenCLIP; Chen et al. 2020, arXiv 2002.05709, section 2.1.
Axes: N rows of this process, W processes, E embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def row_counts(num_rows: int, device: torch.device) -> list[int]:
    """Number of rows of each process; they may differ, as in a last batch."""
    if not is_distributed():
        return [num_rows]
    counts = torch.zeros(dist.get_world_size(), dtype=torch.int64, device=device)
    counts[dist.get_rank()] = num_rows
    dist.all_reduce(counts)
    return counts.tolist()


def own_rows(counts: Sequence[int], device: torch.device) -> torch.Tensor:
    """Positions ``(N,)`` of this process's rows among the gathered ones."""
    rank = dist.get_rank() if is_distributed() else 0
    start = sum(counts[:rank])
    return torch.arange(start, start + counts[rank], device=device)


def gather_with_gradient(tensor: torch.Tensor, counts: Sequence[int] | None = None) -> torch.Tensor:
    """Concatenate the rows of all processes; gradients flow back to where each row came from.

    With one process it is the tensor itself.

    Args:
        tensor: ``(N, ...)``, the same type and trailing shape in every process.
        counts: From :func:`row_counts`. None asks for them.

    Returns:
        ``(N_0 + ... + N_{W-1}, ...)``, in the order of the ranks.
    """
    if not is_distributed():
        return tensor
    counts = row_counts(len(tensor), tensor.device) if counts is None else counts
    gathered: torch.Tensor = _Gather.apply(tensor, tuple(counts))
    return gathered


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: torch.Tensor, counts: tuple[int, ...]) -> torch.Tensor:
        ctx.counts = counts
        # Backends exchange equal shapes only.
        padded = tensor.new_zeros(max(counts), *tensor.shape[1:])
        padded[: len(tensor)] = tensor
        parts = [torch.empty_like(padded) for _ in counts]
        dist.all_gather(parts, padded)
        return torch.cat([part[:count] for part, count in zip(parts, counts, strict=True)])

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        # A reduce-scatter moves less, and gloo has none.
        total = gradients[0].contiguous().clone()
        dist.all_reduce(total)
        return total[own_rows(ctx.counts, total.device)], None
