"""A short hash of what a model is: its weights and its configuration, wherever its files lie.

The name of a folder is no identity: the next training writes another model into a folder of the same name.
"""

import hashlib
import json
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

_NUM_SAMPLES = 256  # values per tensor that are hashed as they are
# Where a model lies and which release wrote it; neither changes a vector.
_INCIDENTAL = frozenset(
    {
        "_commit_hash",
        "_name_or_path",
        "architectures",
        "auto_map",
        "dtype",
        "torch_dtype",
        "transformers_version",
    }
)


def model_hash(model: PreTrainedModel) -> str:
    """Return 16 hex digits that change with any setting of the configuration, and with the weights.

    Every bit of every tensor counts, in a sum of integers, which no order of adding changes, and evenly
    spaced values count in their places: seconds for billions of weights, where SHA-256 of all takes a minute.
    It tells models apart that were trained; it is no protection against one made to collide. Names of tensors
    stay out: releases of transformers rename them. Load as float32, always: the dtype counts.
    """
    digest = hashlib.sha256(json.dumps(_settings(model.config.to_diff_dict()), sort_keys=True).encode())
    for part in sorted(_tensor_hash(tensor) for tensor in _tensors(model)):
        digest.update(part)
    return digest.hexdigest()[:16]


def _tensors(model: nn.Module) -> list[torch.Tensor]:
    """What is saved, each tensor once: a tied one has two names."""
    found = {tensor.data_ptr(): tensor for tensor in model.state_dict().values() if tensor.numel()}
    return list(found.values())


@torch.no_grad()
def _tensor_hash(tensor: torch.Tensor) -> bytes:
    flat = tensor.detach().contiguous().view(-1)
    step = max(1, len(flat) // _NUM_SAMPLES)
    sample = flat[::step].cpu().contiguous().view(torch.uint8).numpy().tobytes()
    whole = int(_as_integers(flat).sum(dtype=torch.int64))
    told = f"{tuple(tensor.shape)} {tensor.dtype} {whole}".encode()
    return hashlib.sha256(told + sample).digest()


def _as_integers(flat: torch.Tensor) -> torch.Tensor:
    kinds = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
    return flat if flat.dtype == torch.bool else flat.view(kinds[flat.element_size()])


def _settings(content: Any) -> Any:
    """The configuration without what is incidental, at any depth."""
    if isinstance(content, dict):
        return {str(key): _settings(value) for key, value in content.items() if key not in _INCIDENTAL}
    if isinstance(content, list | tuple):
        return [_settings(value) for value in content]
    return content if isinstance(content, str | int | float | bool | None) else str(content)
