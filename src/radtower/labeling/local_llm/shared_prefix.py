"""Score every answer of every question behind one report with a single pass over the report.

B reports, H tokens of the head, T tokens of a row, Q nodes of the answer tree, S of them scored, F findings,
A answers, V vocabulary.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer

from radtower.labeling.findings import Status
from radtower.labeling.local_llm.scoring_prompt import ScoringPrompt

FULL, SLIDING = "full_attention", "sliding_attention"  # as transformers names them in layer_types


class SharedPrefixScorer:
    """Scores the answers of a prompt behind many reports.

    What no report changes, the head, is encoded once. The rest is one row: the report, the tail, and the
    questions of all findings side by side. The mask lets a token of a question see the prompt and its own
    question, and its position is counted from the end of the prompt, so that the numbers are those of one
    full prompt per question. Rows are padded in front, so that questions stand in the same columns.

    Args:
        model: Causal language model with attention in every layer, in eval mode.
        prompt: Head, tail and questions.

    Raises:
        ValueError: If a layer of the model has neither full nor sliding-window attention.
    """

    def __init__(self, model: PreTrainedModel, prompt: ScoringPrompt) -> None:
        self.model = model
        self.prompt = prompt
        self._kind, self._window = _attention_kind(model.config.get_text_config())
        tree = prompt.tree
        device = model.device
        self._nodes = torch.tensor(tree.token_ids, device=device)
        self._depths = torch.tensor(tree.depths, device=device)
        self._sees = torch.zeros(len(tree.token_ids), len(tree.token_ids), dtype=torch.bool, device=device)
        for node, lineage in enumerate(tree.lineages):
            self._sees[node, list(lineage)] = True
        steps = [(answer, *step) for answer, steps in enumerate(tree.answers) for step in steps]
        self._answers, nodes, self._tokens = (
            torch.tensor(column, device=device) for column in zip(*steps, strict=True)
        )
        self._scored, self._places = nodes.unique(return_inverse=True)
        self._head = self._encode_head()

    @torch.no_grad()
    def log_probabilities(self, reports: Sequence[Sequence[int]]) -> Tensor:
        """Score the answers behind each report.

        Args:
            reports: Token ids of each report.

        Returns:
            ``(B, F, A)`` float32, logarithm of the probability of each whole answer.
        """
        lengths = torch.tensor([len(report) for report in reports], device=self.model.device)
        width = int(lengths.max())
        rows = [[0] * (width - len(report)) + [*report, *self.prompt.tail] for report in reports]
        tokens = torch.tensor(rows, dtype=torch.long, device=self.model.device).view(len(rows), -1)
        ids = torch.cat([tokens, self._nodes.expand(len(rows), -1)], dim=1)
        positions = self._positions(lengths, width)
        logits = self.model(
            input_ids=ids,
            attention_mask=self._masks(lengths, width, positions),
            position_ids=positions,
            past_key_values=self._head_cache(len(rows)),
            use_cache=True,
            logits_to_keep=self._scored + tokens.shape[1],
        ).logits
        steps = torch.log_softmax(logits.float(), dim=-1)[:, self._places, self._tokens]
        sums = steps.new_zeros(len(rows), len(self.prompt.tree.answers)).index_add(1, self._answers, steps)
        return sums.view(len(rows), -1, len(Status))

    def _positions(self, lengths: Tensor, width: int) -> Tensor:
        """``(B, T)``: place of each token in its own full prompt; padding has the place of the first."""
        columns = torch.arange(width + len(self.prompt.tail), device=lengths.device)
        before = (columns - (width - lengths)[:, None]).clamp(min=0)
        nodes = (lengths + len(self.prompt.tail))[:, None] + self._depths
        return len(self.prompt.head) + torch.cat([before, nodes], dim=1)

    def _masks(self, lengths: Tensor, width: int, positions: Tensor) -> Tensor | Mapping[str, Tensor]:
        """Additive mask ``(B, 1, T, H + T)``, or one for each kind of layer."""
        num_rows, num_columns = positions.shape
        columns = torch.arange(num_columns, device=positions.device)
        sees = columns <= columns[:, None]
        start = num_columns - len(self._nodes)
        sees[start:, start:] = self._sees
        is_token = columns >= (width - lengths)[:, None]
        head = torch.ones(
            num_rows, num_columns, len(self.prompt.head), dtype=torch.bool, device=columns.device
        )
        full = torch.cat([head, sees & is_token[:, None]], dim=2)
        if self._kind == {FULL}:
            return self._additive(full)
        head_places = torch.arange(len(self.prompt.head), device=columns.device).expand(num_rows, -1)
        keys = torch.cat([head_places, positions], dim=1)
        near = full & (positions[:, :, None] - keys[:, None] < self._window)
        if self._kind == {SLIDING}:
            return self._additive(near)
        return {FULL: self._additive(full), SLIDING: self._additive(near)}

    def _additive(self, mask: Tensor) -> Tensor:
        # Of numbers: eager attention adds a mask of booleans as 0 and 1, in silence.
        dtype = self.model.dtype
        hidden = torch.zeros(mask.shape, dtype=dtype, device=mask.device)
        return hidden.masked_fill_(~mask, torch.finfo(dtype).min)[:, None]

    @torch.no_grad()
    def _encode_head(self) -> list[tuple[Tensor, Tensor]]:
        cache = DynamicCache()  # without the configuration: sliding layers would drop what is out of reach
        ids = torch.tensor([self.prompt.head], device=self.model.device)
        self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
        states: list[tuple[Tensor, Tensor]] = []
        for layer in cache.layers:
            assert isinstance(layer, DynamicLayer)  # without a configuration every layer is one
            assert layer.keys is not None
            assert layer.values is not None
            states.append((layer.keys, layer.values))
        return states

    def _head_cache(self, num_rows: int) -> DynamicCache:
        cache = DynamicCache()
        cache.layers = [_HeadLayer(keys, values, num_rows) for keys, values in self._head]
        return cache


class _HeadLayer(DynamicLayer):
    """Keys and values of the head; those of a pass are handed back and not kept, for there is no next."""

    def __init__(self, keys: Tensor, values: Tensor, num_rows: int) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys = keys.expand(num_rows, -1, -1, -1)
        self.values = values.expand(num_rows, -1, -1, -1)

    def update(
        self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        assert self.keys is not None
        assert self.values is not None
        return torch.cat([self.keys, key_states], dim=-2), torch.cat([self.values, value_states], dim=-2)


def _attention_kind(config: PreTrainedConfig) -> tuple[set[str], int]:
    """Kinds of the layers, and how many tokens a sliding window spans (0 without)."""
    window = getattr(config, "sliding_window", None)
    # Mistral and its like have a window and no layer_types: then every layer slides.
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if kinds - {FULL, SLIDING}:
        raise ValueError(
            f"model must have full or sliding-window attention in every layer, got {sorted(kinds)}. "
            "Take another model, or serve this one and use the backend 'endpoint'."
        )
    return kinds, int(window or 0)
