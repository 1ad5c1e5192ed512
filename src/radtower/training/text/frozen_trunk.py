"""The frozen lower layers of a report encoder, computed once per distinct text.

Axes in this file: B texts, T tokens, E width of the decoder.
"""

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.utils.data import get_worker_info

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.text.state_store import DiskStates, MemoryStates

# Largest relative difference from the whole model that is rounding: the layers are the same, not the batches.
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-9}
TOLERANCE_OF_SHORT_TYPES = 5e-2  # bf16 has 8 bits, and every layer rounds
CHECKED_LENGTHS = (3, 17, 8)  # tokens of the texts of the check


class FrozenTrunk:
    """While it is attached, the decoder begins above the frozen layers, from states that are stored.

    Nothing else changes: collators give token ids, models and trainers call the encoder, and what is saved is
    the whole model. A text is known by its token ids; states of unknown ones are computed where they are
    needed, and :meth:`add` computes many at once, faster. The frozen layers run in eval mode (no dropout) and
    without autocast.

    Args:
        encoder: Whose token embedding and lowest layers are frozen; see :func:`freeze_lower_layers`. Attached
            at once; :meth:`remove`, or the end of a ``with`` block, detaches.
        num_layers: Decoder layers below which the states are stored.
        dtype: Of the stored states. bf16 takes half the place and rounds them to 3 digits.
        folder: Where the states are kept for further runs, keyed by the weights and the token ids. None keeps
            them in memory.
        tokens_per_batch: Padded tokens that :meth:`add` computes at a time.

    Raises:
        ValueError: If a layer is not there or not frozen, the encoder has a prompt, or its family cannot
            begin in the middle: the result is compared with that of the whole model.
    """

    def __init__(
        self,
        encoder: LLMBiEncoder,
        num_layers: int,
        *,
        dtype: torch.dtype = torch.float32,
        folder: str | Path | None = None,
        tokens_per_batch: int = 4096,
    ) -> None:
        self.decoder: Any = encoder.model
        self.num_layers = num_layers
        self.tokens_per_batch = tokens_per_batch
        self._require_frozen(encoder)
        self._versions = self._weight_versions()
        self._weights_hash = self._hash_of_weights()
        self._states: MemoryStates | DiskStates = MemoryStates(dtype)
        if folder is not None:
            self._states = DiskStates(dtype, Path(folder) / f"{self._weights_hash[:16]}-{str(dtype)[6:]}")
        self._all_layers: tuple[nn.ModuleList, Any] | None = None
        self._require_equal()
        self._handles = [
            self.decoder.register_forward_pre_hook(self._begin_above, with_kwargs=True),
            self.decoder.register_forward_hook(self._end_above, always_call=True),
        ]

    def __enter__(self) -> "FrozenTrunk":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __len__(self) -> int:
        """Texts whose states are stored."""
        return len(self._states)

    def remove(self) -> None:
        """Detach: the decoder computes all of its layers again."""
        for handle in self._handles:
            handle.remove()

    def add(self, rows: Iterable[Sequence[int]]) -> None:
        """Compute the states of texts that are not stored yet, those of like length together.

        Args:
            rows: Token ids of each text, without padding.
        """
        missing = {key: list(row) for row in rows if (key := _key(row)) not in self._states}
        for keys in self._batches(missing):
            device = self.decoder.get_input_embeddings().weight.device
            ids, mask = _pad([missing[key] for key in keys], device)
            states = self._compute(ids, mask)
            self._states.put({key: states[n, : len(missing[key])] for n, key in enumerate(keys)})

    def states(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Return what the frozen layers give: ``(B, T, E)``, zero where there is padding.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, padded on either side.

        Raises:
            ValueError: If a text has padding in its middle.
            RuntimeError: If a worker process of a data loader meets a text that is not stored: every worker
                would compute it again.
        """
        self._forget_if_weights_changed()
        present = attention_mask.bool()
        holes = (
            (present[:, 1:] != present[:, :-1]).sum(dim=1) + present[:, 0] + present[:, -1] > 2
        ).nonzero()
        if len(holes):
            raise ValueError(
                f"attention_mask must be one block per text, got gaps in rows {holes.flatten().tolist()}. "
                "Pad at the ends."
            )
        rows = [ids[kept].tolist() for ids, kept in zip(input_ids.cpu(), present.cpu(), strict=True)]
        keys = [_key(row) for row in rows]
        if any(key not in self._states for key in keys):
            if get_worker_info() is not None:
                raise RuntimeError(
                    f"a data loader worker must find every text stored, got a new one among {len(keys)}. "
                    "Call add with all texts first."
                )
            self.add(rows)
        weight = self.decoder.get_input_embeddings().weight
        result = weight.new_zeros(*input_ids.shape, weight.shape[1])
        result[present] = torch.cat([self._states.get(key) for key in keys]).to(result)
        return result

    def _batches(self, rows: dict[str, list[int]]) -> Iterator[list[str]]:
        """Keys in batches of like length, none larger than ``tokens_per_batch`` unless a single text is."""
        batch: list[str] = []
        for key in sorted(rows, key=lambda key: len(rows[key])):
            if batch and (len(batch) + 1) * len(rows[key]) > self.tokens_per_batch:
                yield batch
                batch = []
            batch.append(key)
        if batch:
            yield batch

    @torch.no_grad()
    def _compute(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """``(B, T)`` -> ``(B, T, E)``, the output of the last frozen layer."""
        found: list[Any] = []
        handle = self.decoder.layers[self.num_layers - 1].register_forward_hook(
            lambda _module, _args, output: found.append(output)
        )
        try:
            with (
                _in_eval_mode(self.decoder),
                torch.autocast(ids.device.type, enabled=False),
                self._only_layers(slice(0, self.num_layers)),
            ):
                # Not decoder(...): its hooks are ours.
                self.decoder.forward(input_ids=ids, attention_mask=mask, use_cache=False)
        finally:
            handle.remove()
        states: torch.Tensor = found[0][0] if isinstance(found[0], tuple) else found[0]
        return states

    @contextmanager
    def _only_layers(self, chosen: slice) -> Iterator[None]:
        """Inside, the decoder has some of its layers only."""
        self._choose(chosen)
        try:
            yield
        finally:
            self._restore()

    def _choose(self, chosen: slice) -> None:
        layers, config = self.decoder.layers, self.decoder.config
        layer_types = getattr(config, "layer_types", None)
        self._all_layers = (layers, layer_types)
        # Not decoder.layers = ...[chosen] alone: families with several kinds of attention look the kind up by
        # place.
        self.decoder.layers = layers[chosen]
        if layer_types is not None:
            config.layer_types = layer_types[chosen]

    def _restore(self) -> None:
        if self._all_layers is None:
            return
        layers, layer_types = self._all_layers
        self.decoder.layers = layers
        if layer_types is not None:
            self.decoder.config.layer_types = layer_types
        self._all_layers = None

    def _begin_above(
        self, decoder: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        if kwargs.get("input_ids") is None:
            raise ValueError(
                f"texts must come as token ids where states are stored, got {sorted(kwargs)}. Pass input_ids."
            )
        states = self.states(kwargs["input_ids"], kwargs["attention_mask"])
        self._choose(slice(self.num_layers, None))
        return args, {**kwargs, "input_ids": None, "inputs_embeds": states}

    def _end_above(self, decoder: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        self._restore()

    def _require_frozen(self, encoder: LLMBiEncoder) -> None:
        num_layers = len(self.decoder.layers)
        if not 1 <= self.num_layers <= num_layers:
            raise ValueError(
                f"num_layers must be between 1 and {num_layers}, got {self.num_layers}. "
                "Without frozen layers there is nothing to store."
            )
        trained = [name for name, parameter in self._weights() if parameter.requires_grad]
        if trained:
            raise ValueError(
                f"stored layers must be frozen, got {len(trained)} trained weights such as {trained[0]}. "
                "Call freeze_lower_layers, and keep adapters above it."
            )
        if encoder.config.num_prompt_tokens:
            raise ValueError(
                f"the encoder must have no prompt tokens, got {encoder.config.num_prompt_tokens}. Every "
                "layer sees them, and soft ones change: use text_prefix, or train without the stored states."
            )

    @torch.no_grad()
    def _require_equal(self) -> None:
        """Compare with the whole model, on token ids drawn at random, padded."""
        weight = self.decoder.get_input_embeddings().weight
        generator = torch.Generator().manual_seed(0)
        rows = [torch.randint(len(weight), (n,), generator=generator).tolist() for n in CHECKED_LENGTHS]
        ids, mask = _pad(rows, weight.device)
        alone = [self._compute(*_pad([row], weight.device))[0] for row in rows]
        begun = nn.utils.rnn.pad_sequence(alone, batch_first=True)
        with _in_eval_mode(self.decoder), torch.autocast(ids.device.type, enabled=False):
            settings = {"attention_mask": mask, "use_cache": False}
            whole = self.decoder.forward(input_ids=ids, **settings).last_hidden_state
            with self._only_layers(slice(self.num_layers, None)):
                above = self.decoder.forward(inputs_embeds=begun, **settings).last_hidden_state
        kept = mask.bool()
        difference = float((above[kept] - whole[kept]).abs().max() / whole[kept].abs().max())
        limit = TOLERANCE.get(weight.dtype, TOLERANCE_OF_SHORT_TYPES)
        if not difference <= limit:
            raise ValueError(
                f"the decoder must give the same above stored states, got a relative difference of "
                f"{difference:.1e} (limit {limit:.0e}) for {type(self.decoder).__name__}. "
                "This family cannot begin in the middle: train without the stored states."
            )

    def _weights(self) -> Iterator[tuple[str, nn.Parameter]]:
        """Names and weights below the stored states."""
        yield from self.decoder.get_input_embeddings().named_parameters("embedding")
        yield from self.decoder.layers[: self.num_layers].named_parameters("layers")

    def _weight_versions(self) -> list[int]:
        return [parameter._version for _, parameter in self._weights()]

    def _hash_of_weights(self) -> str:
        """SHA-256 of everything that the stored states depend on."""
        config = self.decoder.config.to_json_string(use_diff=False)
        digest = hashlib.sha256(f"{type(self.decoder).__name__} {self.num_layers} {config}".encode())
        for name, parameter in self._weights():
            digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
            digest.update(parameter.detach().cpu().contiguous().view(torch.uint8).numpy().data)
        return digest.hexdigest()

    def _forget_if_weights_changed(self) -> None:
        """Refuse states of other weights; a resumed run writes the same ones again."""
        versions = self._weight_versions()
        if versions == self._versions:
            return
        if self._hash_of_weights() != self._weights_hash:
            raise ValueError(
                "frozen weights must stay as they are, got others than at the start. Make a new FrozenTrunk."
            )
        self._versions = versions


def freeze_lower_layers(encoder: LLMBiEncoder, num_layers: int) -> None:
    """Stop training the token embedding and the lowest decoder layers; 0 trains everything.

    Raises:
        ValueError: If there are fewer layers.
    """
    layers = encoder.model.layers
    if not 0 <= num_layers <= len(layers):
        raise ValueError(
            f"num_frozen_layers must be between 0 and {len(layers)}, got {num_layers}. "
            "Keep more layers, or freeze fewer."
        )
    if num_layers:
        encoder.get_input_embeddings().requires_grad_(False)
        layers[:num_layers].requires_grad_(False)


def _key(row: Sequence[int]) -> str:
    return hashlib.sha256(b"".join(int(token).to_bytes(4, "little") for token in row)).hexdigest()


def _pad(rows: Sequence[Sequence[int]], device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and mask, each ``(B, T)``, padded on the right."""
    tensors = [torch.tensor(row, device=device) for row in rows]
    ids = nn.utils.rnn.pad_sequence(tensors, batch_first=True)
    mask = nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    return ids, mask


@contextmanager
def _in_eval_mode(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards every part is as it was."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, mode in modes:
            part.training = mode
