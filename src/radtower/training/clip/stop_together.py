"""A step that one process cannot go on from ends the training of all, and all say why.

A process that stopped alone would leave the others waiting for it, for half an hour with gloo, unless its
launcher ends them, as torchrun does.
Axes: B studies of this process.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist

from radtower.training.gather import is_distributed


@dataclass(frozen=True, kw_only=True)
class Problem:
    """What is wrong in this process.

    Args:
        message: For the error; it leaves this process.
        is_cause: Whether it arose here. The loss of a process also reads vectors of others.
    """

    message: str
    is_cause: bool = True


def stop_together(problem: Problem | None, device: torch.device) -> None:
    """Raise in all processes what one of them says; all must call it.

    Args:
        problem: None where there is nothing wrong in this process.
        device: Of tensors that can be exchanged.

    Raises:
        FloatingPointError: With the messages of those processes where it arose, else of all that have one.
    """
    problems = [problem] if problem is not None else []
    if is_distributed():
        problems = _of_all(problem, device)
    if problems:
        causes = [found for found in problems if found.is_cause] or problems
        raise FloatingPointError(" ".join(dict.fromkeys(found.message for found in causes)))


def _of_all(problem: Problem | None, device: torch.device) -> list[Problem]:
    # One number in every step; words only in the last one.
    num_problems = torch.tensor(int(problem is not None), device=device)
    dist.all_reduce(num_problems)
    if not num_problems:
        return []
    found: list[Problem | None] = [None] * dist.get_world_size()
    dist.all_gather_object(found, problem)
    return [other for other in found if other is not None]


def problem_of_loss(
    loss: torch.Tensor, vectors: Sequence[torch.Tensor], names: Sequence[str] | None, step: int
) -> Problem | None:
    """Describe a loss that is not finite, and say which studies it comes from.

    Args:
        loss: Scalar, of this process.
        vectors: ``(B, P)`` each, what it is made of. Where some are not finite, only their studies are named.
        names: Of the B volumes; None if they have none.
        step: For the message.
    """
    if torch.isfinite(loss):
        return None
    is_damaged = torch.stack([~side.isfinite().all(dim=1) for side in vectors]).any(dim=0).tolist()
    volumes = "volumes that the data do not name"
    if names is not None:
        damaged = [name for name, is_bad in zip(names, is_damaged, strict=True) if is_bad]
        volumes = f"volumes {', '.join(damaged or names)}"
    message = (
        f"the loss must be finite, got {loss.item()} at step {step} for {volumes}. "
        "Look at their scans and reports, or lower learning_rate."
    )
    return Problem(message=message, is_cause=any(is_damaged))
