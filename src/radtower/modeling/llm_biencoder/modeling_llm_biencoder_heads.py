"""Heads on the token states of the report encoder: findings of a report.

Axes in this file: B texts, T tokens, E embedding, F findings.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ...configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from ..losses import masked_binary_cross_entropy
from ..modeling_llm_biencoder import LLMBiEncoder, LLMBiEncoderPreTrainedModel
from .modeling_finding_attention import SENTENCE_BIAS, FindingAttention
from .modeling_layer_states import LayerStates
from .modeling_llm_biencoder_base import FINDING_FIELDS, check_built
from .modeling_sentence_bounds import sentence_of, sentence_table


@dataclass
class LLMBiEncoderClassifierOutput(ModelOutput):
    """Scores of the findings, and where in the text they come from.

    Args:
        loss: Scalar, only with labels.
        logits: ``(B, F)``, before the sigmoid and before ``config.label_temperature``, which divides them.
        token_weights: ``(B, F, T)``, attention of each finding over the tokens; rows sum to 1.
        log_normalizer: ``(B, F)``, logarithm of what the attention was divided by; the logit itself, where a
            finding attends by sentence. It puts parts of one text together that were read apart: their
            shares are ``log_normalizer.softmax(dim=0)`` over the parts. The logit of the whole is the mean of
            the logits, weighted by the shares; by sentence it is their ``logsumexp(dim=0)``.
        hidden_states: As :class:`LLMBiEncoder` returns them. None unless asked for.
        attentions: Likewise, of the decoder.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_weights: torch.Tensor | None = None
    log_normalizer: torch.Tensor | None = None
    hidden_states: tuple[torch.Tensor, ...] | None = None
    attentions: tuple[torch.Tensor, ...] | None = None


class LLMBiEncoderForSequenceClassification(LLMBiEncoderPreTrainedModel):
    """Report in, one logit per finding out; the findings are ``config.id2label``.

    Args:
        config: Decoder and direction; ``id2label`` gives the findings, ``finding_pooling`` and
            ``finding_layers`` how they read. The pooling of the encoder is not used.
    """

    def __init__(self, config: LLMBiEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = LLMBiEncoder(config, add_pooling_layer=False)
        assert config.num_labels is not None  # transformers fills id2label
        self.num_labels = config.num_labels
        self.layer_states = LayerStates(self.encoder.model, config.finding_layers)
        self.finding_attention = FindingAttention(
            config.decoder_width * len(self.layer_states), config.num_labels, config.finding_pooling
        )
        if config.finding_pooling == "sentences":
            decoder_config: Any = config.text_config
            self.register_buffer("sentence_table", torch.zeros(decoder_config.vocab_size, dtype=torch.uint8))
            self.sentence_table: torch.Tensor
        self._built = {name: getattr(config, name) for name in FINDING_FIELDS}
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, FindingAttention):
            init.zeros_(module.mean)
            init.ones_(module.std)
            if module.pooling == "sentences":
                init.constant_(module.score.bias, SENTENCE_BIAS)
        if module is self and self.config.finding_pooling == "sentences":
            init.zeros_(self.sentence_table)

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the decoder."""
        return self.encoder.get_input_embeddings()

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the token embedding of the decoder; a token that is new ends no sentence."""
        self.encoder.set_input_embeddings(value)
        if self.config.finding_pooling == "sentences" and isinstance(value, nn.Embedding):
            num_added = value.num_embeddings - len(self.sentence_table)
            self.sentence_table = F.pad(self.sentence_table, (0, num_added))

    def set_tokenizer(self, tokenizer: Any) -> None:
        """Tell a new model where sentences end; a stored one knows.

        Args:
            tokenizer: The one that its texts go through.
        """
        if self.config.finding_pooling == "sentences":
            self.sentence_table.copy_(sentence_table(tokenizer, len(self.sentence_table)))

    def token_states(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Return ``(B, T, W)``, what the finding attention reads: the chosen layers side by side."""
        return self._read(input_ids, attention_mask)[0]

    def _read(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None, **inner: bool | None
    ) -> tuple[torch.Tensor, Any]:
        """What the finding attention reads, and the output of the encoder."""
        with self.layer_states as found:
            output = self.encoder(input_ids, attention_mask, return_dict=True, **inner)
            return found.beside(output.last_hidden_state), output

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> LLMBiEncoderClassifierOutput:
        """Score every finding.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 1 for real tokens. None means no padding.
            labels: ``(B, F)`` in [0, 1], -100 where unknown. None skips the loss.
            output_hidden_states: See :meth:`LLMBiEncoder.forward`.
            output_attentions: Likewise.

        Returns:
            See :class:`LLMBiEncoderClassifierOutput`.

        Raises:
            RuntimeError: If a new model was not told where sentences end, or the configuration was edited
                where the model cannot follow.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden, read = self._read(
            input_ids,
            attention_mask,
            output_hidden_states=output_hidden_states,
            output_attentions=output_attentions,
        )
        sentences = self._sentences(input_ids, attention_mask)
        logits, token_weights, log_normalizer = self.finding_attention(hidden, attention_mask, sentences)
        loss = None if labels is None else masked_binary_cross_entropy(logits, labels)
        return LLMBiEncoderClassifierOutput(
            loss=loss,
            logits=logits,
            token_weights=token_weights,
            log_normalizer=log_normalizer,
            hidden_states=read.hidden_states,
            attentions=read.attentions,
        )

    def _sentences(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor | None:
        is_traced = torch.compiler.is_compiling() or torch.jit.is_tracing()  # a check would end the graph
        if not is_traced:
            check_built(self.config, self._built)
        if self.config.finding_pooling == "tokens":
            return None
        if not is_traced and not self.sentence_table.any():
            raise RuntimeError(
                "the model must know where sentences end, got an empty sentence_table. Call "
                "set_tokenizer(tokenizer) before the first use of a new model."
            )
        return sentence_of(input_ids, attention_mask, self.sentence_table)
