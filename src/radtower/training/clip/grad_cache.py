"""Large batches in the memory of small ones, with the gradients of the large one.

A contrastive loss needs the vectors of the whole batch, but not their activations: encode the batch in chunks
without gradient, take the gradient of the loss at the vectors, and encode each chunk once more to pass its
share of that gradient on. Dropout draws the same numbers both times.
Source: Gao et al. 2021, arXiv 2101.06983.
Axes: B studies of this process, E width of a tower.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from radtower.training.clip.pair_loss import PAIR_FIELDS, SCALAR_FIELDS

Inputs = Mapping[str, torch.Tensor]
# The loss is made of the vectors of the whole batch; logits of a model's own would be a matrix of that size.
VECTORS_ONLY = {"return_loss": False, "return_logits": False}


def cached_backward(
    model: nn.Module,
    inputs: Inputs,
    chunk_size: int,
    loss_of: Callable[[dict[str, torch.Tensor | None]], torch.Tensor],
    backward: Callable[[torch.Tensor], None],
    without_sync: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> torch.Tensor:
    """Add the gradients of one batch to the weights.

    Batch normalization sees the statistics of a chunk, and moves its running ones once per chunk.

    Args:
        model: Dual tower, wrapped for distributed training or not.
        inputs: What its forward takes, ``(B, ...)`` each.
        chunk_size: Studies whose activations are in memory at a time, >= 1.
        loss_of: From the joined outputs of the chunks to the loss of the batch.
        backward: Runs the backward pass of a scalar, as ``accelerator.backward``.
        without_sync: Context in which gradients are not exchanged between processes; the last chunk is
            outside of it.

    Returns:
        The loss, without gradient.

    Raises:
        ValueError: If ``chunk_size`` is below 1.
    """
    if chunk_size < 1:
        raise ValueError(f"chunk_size must be at least 1, got {chunk_size}. Use what fits into memory.")
    chunks = list(_chunks(inputs, chunk_size))
    states, outputs = [], []
    with torch.no_grad(), _kept_running_statistics(model):
        # Distributed data parallel would exchange buffers, and not every process has as many chunks.
        encoder = model.module if isinstance(model, DistributedDataParallel) else model
        for chunk in chunks:
            states.append(_RandomState())
            outputs.append(encoder(**chunk, **VECTORS_ONLY))
    leaves = _leaves(outputs)
    loss = loss_of(leaves)
    torch.autograd.backward(loss, inputs=[leaf for leaf in leaves.values() if leaf is not None])
    starts = [0, *torch.tensor([len(_first(chunk)) for chunk in chunks]).cumsum(0).tolist()]
    for number, chunk in enumerate(chunks):
        is_last = number == len(chunks) - 1
        rows = slice(starts[number], starts[number + 1])
        with nullcontext() if is_last else without_sync():
            with states[number].replayed():
                output = model(**chunk, **VECTORS_ONLY)
            backward(_surrogate(output, leaves, rows, has_scalars=is_last))
    return loss.detach()


def require_equal_shares(counts: Sequence[int]) -> None:
    """Refuse a batch for which processes with shards of the weights would wait for each other forever.

    They exchange weights in every chunk; with whole weights they meet in the last one only.

    Args:
        counts: Studies of each process.

    Raises:
        ValueError: If they differ.
    """
    if len(set(counts)) > 1:
        raise ValueError(
            f"processes with shards of the weights must have equally many studies of a batch, got {counts}. "
            "Set dataloader_drop_last, or leave chunk_size out."
        )


def _chunks(inputs: Inputs, size: int) -> Iterator[dict[str, torch.Tensor]]:
    for start in range(0, len(_first(inputs)), size):
        yield {name: value[start : start + size] for name, value in inputs.items()}


def _first(inputs: Inputs) -> torch.Tensor:
    return next(iter(inputs.values()))


def _leaves(outputs: list[Any]) -> dict[str, torch.Tensor | None]:
    """The vectors of the batch and the scalars, as leaves that gradients stop at."""
    found: dict[str, torch.Tensor | None] = {}
    for name in PAIR_FIELDS:
        parts = [output[name] for output in outputs if output.get(name) is not None]
        found[name] = torch.cat(parts).detach().requires_grad_() if parts else None
    for name in SCALAR_FIELDS:
        value = outputs[0].get(name)
        found[name] = None if value is None else value.detach().requires_grad_()
    return found


def _surrogate(
    output: Any, leaves: dict[str, torch.Tensor | None], rows: slice, *, has_scalars: bool
) -> torch.Tensor:
    """A scalar whose gradient is the share of these rows; the scalars' are added once."""
    total: torch.Tensor | float = 0.0
    for name, leaf in leaves.items():
        if leaf is None or leaf.grad is None:
            continue
        if name in PAIR_FIELDS:
            total = total + (output[name] * leaf.grad[rows].to(output[name].dtype)).sum()
        elif has_scalars:
            total = total + (output[name] * leaf.grad).sum()
    assert isinstance(total, torch.Tensor)  # the loss depends on both projections
    return total


class _RandomState:
    """The random generators as they are now, of the processor and of the GPU in use."""

    def __init__(self) -> None:
        self.cpu = torch.get_rng_state()
        self.gpu = torch.cuda.get_rng_state() if torch.cuda.is_available() else None

    @contextmanager
    def replayed(self) -> Iterator[None]:
        """Draw the same numbers again inside, and go on outside as if nothing had been drawn."""
        now = _RandomState()
        self._set()
        try:
            yield
        finally:
            now._set()

    def _set(self) -> None:
        torch.set_rng_state(self.cpu)
        if self.gpu is not None:
            torch.cuda.set_rng_state(self.gpu)


@contextmanager
def _kept_running_statistics(model: nn.Module) -> Iterator[None]:
    """Encoding without gradient must not count as having seen the batch."""
    norms = [m for m in model.modules() if getattr(m, "track_running_stats", False)]
    kept = [[buffer.clone() for buffer in norm.buffers(recurse=False)] for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for buffer, value in zip(norm.buffers(recurse=False), buffers, strict=True):
                buffer.copy_(value)
