"""Weights that lie in shards, a part of each tensor in each process (FSDP2), and whole ones out of them.

In several processes everything here that reads weights exchanges them: all processes must call it.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any, cast

import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.fsdp import FSDPModule, register_fsdp_forward_method
from torch.distributed.tensor import DTensor, distribute_tensor

State = dict[str, torch.Tensor]


def prepare_for_shards(model: nn.Module) -> None:
    """Make of a model what accelerate and DeepSpeed can cut into shards.

    transformers collects the classes of blocks of all parts of a model, and a part names all that its family
    may have: accelerate refuses those that are not there, and cannot cut what holds the embedding of tokens,
    which it cuts itself. PyTorch and DeepSpeed cut contiguous weights only.
    """
    embedding = _input_embedding(model)
    kinds = {type(module).__name__ for module in model.modules()}
    holders = {type(m).__name__ for m in model.modules() if any(part is embedding for part in m.modules())}
    named = getattr(model, "_no_split_modules", None)
    if named is not None:
        cast(Any, model)._no_split_modules = (set(named) & kinds) - holders
    for parameter in model.parameters():
        # Not contiguous(): a kernel of one voxel is that whatever its strides, and DeepSpeed reads them.
        if parameter.stride() != torch.empty(parameter.shape, device="meta").stride():
            parameter.data = parameter.data.clone(memory_format=torch.contiguous_format)


def _input_embedding(model: nn.Module) -> nn.Module | None:
    find = getattr(model, "get_input_embeddings", None)
    return None if find is None else cast(nn.Module | None, find())


def is_sharded(model: nn.Module) -> bool:
    """Whether each process holds parts of the weights only."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_state(model: nn.Module) -> State:
    """Gather the weights of a model.

    Returns:
        Whole tensors on the CPU under the names of ``model.state_dict()``, in the first process; nothing in
        the others.
    """
    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    return cast(State, get_model_state_dict(model, options=options))


def whole_tensors(values: Mapping[str, torch.Tensor], *, is_kept: bool) -> State:
    """Gather tensors that are cut as weights are, such as an average; whole ones stay as they are.

    Args:
        values: The same names in every process.
        is_kept: Whether this process wants them; else it returns nothing.
    """
    found = {}
    for name, value in values.items():
        whole = value.full_tensor() if isinstance(value, DTensor) else value
        if is_kept:
            found[name] = whole.cpu()
    return found


def local_part(tensor: torch.Tensor) -> torch.Tensor:
    """Return what of a tensor lies in this process; the tensor itself, if it is whole."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def cut_like(values: Mapping[str, torch.Tensor], model: nn.Module) -> State:
    """Cut whole tensors, the same in every process, as those of their name in ``model`` are cut."""
    found = {}
    for name, own in model.state_dict().items():
        value = values[name].to(own.device)
        if isinstance(own, DTensor):
            value = distribute_tensor(value, own.device_mesh, own.placements)
        found[name] = value
    return found


def merged_state(model: nn.Module, state: Mapping[str, torch.Tensor]) -> State:
    """Add low-rank updates to whole weights, where the model itself lies in shards and cannot be merged.

    Args:
        model: With adapters; not changed.
        state: Whole tensors under its names.

    Returns:
        Weights under the names of the model without adapters.

    Raises:
        ValueError: If merging gives a weight that is not finite.
    """
    found = dict(state)
    for prefix, scaling in _updates(model):
        down, up = (found.pop(f"{prefix}.lora_{part}.default.weight") for part in "AB")
        for name in [name for name in found if name.startswith(f"{prefix}.base_layer.")]:
            found[name.replace(".base_layer.", ".")] = found.pop(name)
        name = f"{prefix}.weight"
        found[name] = found[name] + ((up @ down) * scaling).to(found[name].dtype)
        if not found[name].isfinite().all():
            raise ValueError(
                f"merged weights must be finite, got others in {name}. Take an earlier checkpoint."
            )
    return found


def called_as_forward(model: nn.Module, method: str) -> Callable[..., Any]:
    """Return a method that may be called outside of ``forward``: the weights are whole while it runs."""
    if not isinstance(model, FSDPModule):
        return cast(Callable[..., Any], getattr(model, method))
    # Under another name: forward itself calls the method, and must not gather what it has gathered.
    name = f"_{method}_of_whole_weights"
    if not hasattr(model, name):
        setattr(model, name, getattr(model, method))
        register_fsdp_forward_method(model, name)
    return cast(Callable[..., Any], getattr(model, name))


def _updates(model: nn.Module) -> Iterator[tuple[str, float]]:
    """Name of each linear layer that has an update, and the factor of the update."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module.scaling["default"]
