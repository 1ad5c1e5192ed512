"""States of several layers of a decoder, side by side, for heads that read more than the last one.

Axes in this file: B texts, T tokens, E width of the decoder, K layers.
"""

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import torch
from torch import nn


class LayerStates:
    """Collects what goes into decoder layers while a text is encoded; used as a context.

    What goes into layer k is the output of the k layers below it. It is the input that is looked at, because
    a decoder may begin in the middle, from stored states.

    Args:
        decoder: Of transformers, with its layers in ``layers``.
        num_layers: How many layers are below each state; all of them means the output of the decoder, behind
            its last norm. None is that alone.
    """

    def __init__(self, decoder: nn.Module, num_layers: Sequence[int] | None) -> None:
        layers: Any = decoder.layers
        self._decoder: Any = decoder
        self._layers = list(layers)
        self._chosen = [len(self._layers)] if num_layers is None else list(num_layers)
        self._found: dict[int, torch.Tensor] = {}
        self._handles: list[Any] = []

    def __len__(self) -> int:
        """Number K of states."""
        return len(self._chosen)

    def __enter__(self) -> "LayerStates":
        self._found.clear()
        for depth in self._chosen:
            if depth < len(self._layers):
                hook = self._keeper(depth)
                self._handles.append(self._layers[depth].register_forward_pre_hook(hook, with_kwargs=True))
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        self._found.clear()

    def beside(self, last: torch.Tensor) -> torch.Tensor:
        """Return ``(B, T, K E)``, the states in the order chosen.

        Args:
            last: ``(B, T, E)``, output of the decoder.

        Raises:
            RuntimeError: If the decoder did not run through a layer.
        """
        missing = [depth for depth in self._chosen if depth < len(self._layers) and depth not in self._found]
        if missing:
            raise RuntimeError(
                f"every chosen layer must run, got nothing from {missing}. Store no states above them."
            )
        states = [self._found.get(depth, last) for depth in self._chosen]
        return states[0] if len(states) == 1 else torch.cat(states, dim=-1)

    def _keeper(self, depth: int) -> Any:
        def keep(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            # Without the last layer it is a run that only fills the store, of other texts.
            if self._decoder.layers[-1] is self._layers[-1]:
                self._found[depth] = args[0] if args else kwargs["hidden_states"]

        return keep
