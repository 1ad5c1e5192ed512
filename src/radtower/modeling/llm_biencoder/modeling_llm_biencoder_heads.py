"""Heads on the token states of the report encoder: findings of a report.

Axes in this file: B texts, T tokens, E embedding, F findings.
"""

from dataclasses import dataclass

import torch
from torch import nn
from transformers.modeling_outputs import ModelOutput
from transformers.utils.generic import can_return_tuple

from ...configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from ..losses import masked_binary_cross_entropy
from ..modeling_llm_biencoder import LLMBiEncoder, LLMBiEncoderPreTrainedModel


@dataclass
class LLMBiEncoderClassifierOutput(ModelOutput):
    """Scores of the findings, and where in the text they come from.

    Args:
        loss: Scalar, only with labels.
        logits: ``(B, F)``, before the sigmoid and before ``config.label_temperature``, which divides them.
        token_weights: ``(B, F, T)``, attention of each finding over the tokens; rows sum to 1.
        log_normalizer: ``(B, F)``, logarithm of what the attention was divided by. It puts parts of one text
            together that were read apart: the logit of all their tokens is the mean of the logits, weighted
            by ``log_normalizer.softmax(dim=0)`` over the parts.
    """

    loss: torch.Tensor | None = None
    logits: torch.Tensor | None = None
    token_weights: torch.Tensor | None = None
    log_normalizer: torch.Tensor | None = None


class FindingAttention(nn.Module):
    """One learned query per finding attends to the tokens; its own weights score what it found.

    Args:
        width: Size of the hidden states.
        num_findings: Number F of findings.
    """

    def __init__(self, width: int, num_findings: int) -> None:
        super().__init__()
        self.query = nn.Linear(width, num_findings, bias=False)
        self.score = nn.Linear(width, num_findings)

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """``(B, T, E)`` and its ``(B, T)`` mask -> logits, token weights and log normalizer of the output."""
        affinity = self.query(hidden).float() / hidden.shape[-1] ** 0.5
        affinity = affinity.masked_fill(mask[..., None] == 0, float("-inf"))
        weights = affinity.softmax(dim=1)
        # Scoring every token and averaging the scores equals scoring the average: the layer is affine.
        logits = (weights * self.score(hidden).float()).sum(dim=1)
        return logits, weights.transpose(1, 2), affinity.logsumexp(dim=1)


class LLMBiEncoderForSequenceClassification(LLMBiEncoderPreTrainedModel):
    """Report in, one logit per finding out; the findings are ``config.id2label``.

    Args:
        config: Decoder and direction; ``id2label`` gives the findings. The pooling is not used.
    """

    def __init__(self, config: LLMBiEncoderConfig) -> None:
        super().__init__(config)
        self.encoder = LLMBiEncoder(config, add_pooling_layer=False)
        assert config.num_labels is not None  # transformers fills id2label
        self.num_labels = config.num_labels
        self.finding_attention = FindingAttention(config.decoder_width, config.num_labels)
        self.post_init()

    def get_input_embeddings(self) -> nn.Module:
        """Token embedding of the decoder."""
        return self.encoder.get_input_embeddings()

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> LLMBiEncoderClassifierOutput:
        """Score every finding.

        Args:
            input_ids: ``(B, T)``.
            attention_mask: ``(B, T)``, 1 for real tokens. None means no padding.
            labels: ``(B, F)`` in [0, 1], -100 where unknown. None skips the loss.

        Returns:
            ``logits``, ``token_weights``, ``log_normalizer`` and ``loss``, see
            :class:`LLMBiEncoderClassifierOutput`.
        """
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        hidden = self.encoder(input_ids, attention_mask, return_dict=True).last_hidden_state
        logits, token_weights, log_normalizer = self.finding_attention(hidden, attention_mask)
        loss = None if labels is None else masked_binary_cross_entropy(logits, labels)
        return LLMBiEncoderClassifierOutput(
            loss=loss, logits=logits, token_weights=token_weights, log_normalizer=log_normalizer
        )
