"""Masked next-token prediction: how a decoder learns to read in both directions (LLM2Vec, arXiv 2404.05961).

Axes in this file: B texts, T tokens, E width of the decoder, V vocabulary, M hidden tokens.
"""

import os
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ...configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from ..llm_sources.modeling_llm_import import find_llm
from ..modeling_llm_biencoder import LLMBiEncoder, LLMBiEncoderPreTrainedModel

IGNORED = -100  # the ignore index of PyTorch
CHECKED_TOKENS = 8
MAX_HEAD_DIFFERENCE = 1e-4  # relative, between two ways to multiply the same matrices
TARGETS_AT_A_TIME = 512  # logits of so many tokens are in memory at once: 100 MB for a vocabulary of 50,000


@dataclass
class MaskedNTPOutput(ModelOutput):
    """Prediction of hidden tokens.

    Args:
        loss: Scalar, the mean over the hidden tokens of the batch; only with labels.
        logits: ``(B, T, V)`` float32, only without labels. Row t is the prediction of token t, from the state
            before it; row 0 is all zero, since nothing stands before it.
        text_losses: ``(B,)``, sum over the hidden tokens of each text; only with labels.
        num_targets: ``(B,)`` int64, hidden tokens of each text; only with labels.
        hidden_states: As :class:`LLMBiEncoder` returns them. None unless asked for.
        attentions: Likewise.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    text_losses: torch.Tensor | None = None
    num_targets: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class LLMBiEncoderForMaskedNTP(LLMBiEncoderPreTrainedModel):
    """Text with hidden tokens in, their prediction out; a token is predicted from the state before it.

    That state predicted the next token in pre-training, too: the language-model head stays as it was.

    Args:
        config: Decoder and direction. The pooling is not used.
    """

    def __init__(self, config: LLMBiEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = LLMBiEncoder(config, add_pooling_layer=False)
        decoder_config = config.text_config
        assert isinstance(decoder_config, PreTrainedConfig)  # the configuration resolved it
        # A tied head has no weights of its own: saved is the encoder, and nothing can come apart.
        self.lm_head: nn.Linear | None = None
        if not decoder_config.tie_word_embeddings:
            self.lm_head = nn.Linear(config.decoder_width, decoder_config.vocab_size, bias=False)
        self.post_init()

    @classmethod
    def from_llm(
        cls,
        path: str | os.PathLike[str],
        *,
        num_hidden_layers: int | None = None,
        dtype: torch.dtype | str = torch.float32,
        **config: Any,
    ) -> "LLMBiEncoderForMaskedNTP":
        """Wrap a causal language model with its head.

        Args:
            path: Model folder, Hub id, or a ``.gguf`` file, which is dequantized.
            num_hidden_layers: Keep only the lowest layers. None keeps all.
            dtype: Precision of the weights; ``"auto"`` is what the source says.
            **config: Fields of :class:`LLMBiEncoderConfig`, and ``attn_implementation``; the pooling is
                ``mean`` unless they say otherwise.

        Raises:
            ValueError: If the pooling has weights, which would be left out; the head is more than a matrix;
                or as for :meth:`LLMBiEncoder.from_llm`.
        """
        settings = {"pooling": "mean", **config}
        if settings["pooling"] == "latent_attention":
            raise ValueError(
                "pooling must have no weights, got 'latent_attention': they would not be trained here. "
                "Use mean, and add the head in the next stage."
            )
        encoder = LLMBiEncoder.from_llm(path, num_hidden_layers=num_hidden_layers, dtype=dtype, **settings)
        head = _read_head(path, encoder.dtype)
        model: LLMBiEncoderForMaskedNTP = cls._from_config(encoder.config, dtype=encoder.dtype)
        model.encoder.load_state_dict(encoder.state_dict())
        if model.lm_head is not None:
            model.lm_head.load_state_dict({"weight": head})
        model.encoder.tokenizer = encoder.tokenizer
        return model.eval()

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the decoder."""
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> MaskedNTPOutput:
        """Predict hidden tokens.

        Args:
            input_ids: ``(B, T)``, with something else in the place of hidden tokens.
            attention_mask: ``(B, T)``, 1 for real tokens, padded on either side. None means no padding.
            labels: ``(B, T)``, the ids of the hidden tokens, -100 elsewhere. None gives logits instead.
            output_hidden_states: See :meth:`LLMBiEncoder.forward`.
            output_attentions: Likewise.

        Raises:
            ValueError: If nothing is hidden, or a hidden token has none before it.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        read = self.encoder(
            input_ids,
            attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
            return_dict=True,
        )
        hidden = read.last_hidden_state
        inner = {"hidden_states": read.hidden_states, "attentions": read.attentions}
        if labels is None:
            return MaskedNTPOutput(logits=F.pad(self._logits(hidden[:, :-1]), (0, 0, 1, 0)), **inner)
        is_target = labels != IGNORED
        _check_targets(is_target, attention_mask)
        token_losses = self._token_losses(hidden[:, :-1][is_target[:, 1:]], labels[is_target])
        rows = is_target.nonzero()[:, 0]
        text_losses = token_losses.new_zeros(len(labels)).index_add(0, rows, token_losses)
        return MaskedNTPOutput(
            loss=token_losses.mean(),
            text_losses=text_losses.detach(),
            num_targets=is_target.sum(dim=1),
            **inner,
        )

    def _logits(self, states: torch.Tensor) -> torch.Tensor:
        embedding: Any = self.encoder.get_input_embeddings()
        weight = embedding.weight if self.lm_head is None else self.lm_head.weight
        return F.linear(states, weight).float()

    def _chunk_losses(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(self._logits(states), targets, reduction="none")

    def _token_losses(self, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """``(M, E)``, ``(M,)`` -> cross-entropy ``(M,)``, without all ``(M, V)`` logits at a time."""
        if len(targets) <= TARGETS_AT_A_TIME:
            return self._chunk_losses(states, targets)
        losses = [
            checkpoint(self._chunk_losses, *chunk, use_reentrant=False)
            for chunk in zip(states.split(TARGETS_AT_A_TIME), targets.split(TARGETS_AT_A_TIME), strict=True)
        ]
        return torch.cat(losses)


@torch.no_grad()
def _read_head(path: str | os.PathLike[str], dtype: torch.dtype) -> torch.Tensor:
    """Weight ``(V, E)`` of the language-model head; refused where the logits are not this product alone."""
    source = find_llm(path)
    gguf = {"gguf_file": source.gguf_file} if source.gguf_file else {}
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        source.folder, dtype=dtype, output_loading_info=True, trust_remote_code=False, **gguf
    )
    llm, report = loaded
    if report["missing_keys"]:
        raise ValueError(
            f"path must hold the language-model head, got {sorted(report['missing_keys'])[0]} missing. "
            "Point to a complete causal language model."
        )
    weight: torch.Tensor = llm.get_output_embeddings().weight
    ids = torch.arange(CHECKED_TOKENS)[None]
    output = llm.eval()(ids, output_hidden_states=True, use_cache=False)
    expected, got = output.logits.float(), F.linear(output.hidden_states[-1], weight).float()
    difference = float((got - expected).abs().max() / expected.abs().max())
    if not difference <= MAX_HEAD_DIFFERENCE:
        raise ValueError(
            f"the logits must be states times the head, got a relative difference of {difference:.1e} for "
            f"{type(llm).__name__}. This family scales, caps or shifts them: it cannot be trained here."
        )
    return weight


def _check_targets(is_target: torch.Tensor, attention_mask: torch.Tensor) -> None:
    """Refuse what would train in silence: the state before the first token is padding, or not there."""
    if not is_target.any():
        raise ValueError("labels must hide at least one token, got only -100. Hide one per text.")
    has_one_before = F.pad(attention_mask[:, :-1], (1, 0)) * attention_mask
    rows = (is_target & (has_one_before == 0)).any(dim=1).nonzero().flatten().tolist()
    if rows:
        raise ValueError(
            f"a hidden token must follow a real one, got the first or padding hidden in rows {rows}. "
            "Never hide the first token of a text."
        )
