"""Rows of all processes, in the order of their ranks, with gradients: negatives across processes.

Each process computes the loss of its own queries against everybody's documents. The backward pass sums over
processes what each found about a row, and hands it to the process the row came from.
Source: the local loss with gathered gradients of OpenCLIP; Chen et al. 2020, arXiv 2002.05709, section 2.1.
Axes: N rows of this process, W processes, E embedding.
"""

from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import torch
import torch.distributed as dist

Item = TypeVar("Item")


def is_distributed() -> bool:
    """Whether there are other processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def num_processes() -> int:
    """How many processes train together."""
    return dist.get_world_size() if is_distributed() else 1


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


@torch.no_grad()
def divided(
    items: Sequence[Item], compute: Callable[[list[Item]], torch.Tensor], device: torch.device
) -> torch.Tensor:
    """Compute a row per item; each process computes its share, and all get all.

    All processes must call it with the same items. Neighbors go to different processes: where items are in
    order of their size, the shares take about as long.

    Args:
        items: M of any kind, at least one.
        compute: From some of the items to their rows ``(m, E)``.
        device: Of tensors that can be exchanged.

    Returns:
        ``(M, E)`` on the CPU, in the order of ``items``; the same bits in every process.
    """
    if not is_distributed():
        return compute(list(items)).cpu()
    shares = [list(range(start, len(items), num_processes())) for start in range(num_processes())]
    # One item at least, so that all know the width.
    rows = compute([items[place] for place in shares[dist.get_rank()] or [0]])
    counts = [max(1, len(share)) for share in shares]
    parts = gather_with_gradient(rows.to(device), counts).cpu().split(counts)
    table = torch.empty(len(items), *rows.shape[1:], dtype=rows.dtype)
    for share, part in zip(shares, parts, strict=True):
        table[torch.tensor(share, dtype=torch.long)] = part[: len(share)]
    return table


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
