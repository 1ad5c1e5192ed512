"""Hidden states by the hash of their text: in memory, or in files that later runs find again.

Axes in this file: T tokens, E width of the decoder.
"""

import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file


class MemoryStates:
    """States ``(T, E)`` of each text in a dictionary.

    Args:
        dtype: They are stored in.
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.dtype = dtype
        self._by_key: dict[str, torch.Tensor] = {}

    def __len__(self) -> int:
        return len(self._by_key)

    def __contains__(self, key: str) -> bool:
        return key in self._by_key

    def get(self, key: str) -> torch.Tensor:
        """Return the states of a text: ``(T, E)`` on the CPU."""
        return self._by_key[key]

    def put(self, states: Mapping[str, torch.Tensor]) -> None:
        """Store states ``(T, E)`` of several texts."""
        # A copy: a slice would keep the whole padded batch alive.
        self._by_key |= {key: value.to("cpu", self.dtype, copy=True) for key, value in states.items()}


class DiskStates:
    """States ``(T, E)`` of each text in safetensors files, which are mapped and not read at once.

    A file appears complete or not at all, under a name of its own: several runs can fill one folder.

    Args:
        dtype: They are stored in.
        folder: For one set of weights only; made if it is not there.
    """

    def __init__(self, dtype: torch.dtype, folder: Path) -> None:
        self.dtype = dtype
        self.folder = folder
        self._file_of: dict[str, Any] = {}
        folder.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.glob("*.safetensors")):
            self._open(path)

    def __len__(self) -> int:
        return len(self._file_of)

    def __contains__(self, key: str) -> bool:
        return key in self._file_of

    def get(self, key: str) -> torch.Tensor:
        """Return the states of a text: ``(T, E)`` on the CPU."""
        states: torch.Tensor = self._file_of[key].get_tensor(key)
        return states

    def put(self, states: Mapping[str, torch.Tensor]) -> None:
        """Store states ``(T, E)`` of several texts in a new file."""
        path = self.folder / f"{uuid.uuid4().hex}.safetensors"
        partial = path.with_suffix(".partial")
        save_file({key: value.to("cpu", self.dtype).contiguous() for key, value in states.items()}, partial)
        partial.replace(path)
        self._open(path)

    def _open(self, path: Path) -> None:
        file = safe_open(path, framework="pt")
        self._file_of |= dict.fromkeys(file.keys(), file)
