"""From the states of tokens to a logit per finding, and to where in the text it comes from.

Axes in this file: B texts, T tokens, W width of the states, F findings.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

# First score of a sentence: a report has dozens of them, and few have any given finding.
SENTENCE_BIAS = -4.0


class FindingAttention(nn.Module):
    """One learned query per finding attends to the tokens; its own weights score what it found.

    With ``pooling="tokens"`` a finding attends once, over the whole text. With ``"sentences"`` it attends
    within each sentence, every sentence has a score, and the logit is the logarithm of the sum of their
    exponentials, a smooth maximum: one sentence is enough for a finding, and where the finding is absent,
    every sentence is an example of that (multiple-instance learning, Ilse et al. 2018, arXiv 1802.04712).

    Args:
        width: Size W of the states.
        num_findings: Number F of findings.
        pooling: ``tokens`` or ``sentences``.
    """

    def __init__(
        self, width: int, num_findings: int, pooling: Literal["tokens", "sentences"] = "tokens"
    ) -> None:
        super().__init__()
        self.pooling = pooling
        self.query = nn.Linear(width, num_findings, bias=False)
        self.score = nn.Linear(width, num_findings)
        # A few features of a language model are far larger than the others.
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("std", torch.ones(width))
        self.mean: torch.Tensor
        self.std: torch.Tensor

    @torch.no_grad()
    def standardize(self, states: torch.Tensor) -> None:
        """Fix the scale of the features, before training.

        Args:
            states: ``(N, W)``, of N >= 2 real tokens of the training texts.

        Raises:
            ValueError: If there is one token or none.
        """
        if len(states) < 2:
            raise ValueError(
                f"states must be of at least 2 tokens, got {len(states)}. Take those of some training texts."
            )
        self.mean.copy_(states.double().mean(dim=0))
        self.std.copy_(states.double().std(dim=0).clamp(min=1e-6))

    def forward(
        self, hidden: torch.Tensor, mask: torch.Tensor, sentences: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Score the findings of texts.

        Args:
            hidden: ``(B, T, W)``.
            mask: ``(B, T)``, 1 for real tokens.
            sentences: ``(B, T)`` numbers of sentences, where the pooling is by sentences.

        Returns:
            Logits, token weights and log normalizer of the output.
        """
        # bf16 has three digits: an exponent and a sum of thousands need more.
        with torch.autocast(hidden.device.type, enabled=False):
            hidden = (hidden.float() - self.mean) / self.std
            affinity = F.linear(hidden, self.query.weight.float()) / hidden.shape[-1] ** 0.5
            scores = F.linear(hidden, self.score.weight.float(), self.score.bias.float())
        affinity = affinity.masked_fill(mask[..., None] == 0, float("-inf"))
        if self.pooling == "tokens":
            weights = affinity.softmax(dim=1)
            # Scoring every token and averaging the scores equals scoring the average: the layer is affine.
            logits = (weights * scores).sum(dim=1)
            return logits, weights.transpose(1, 2), affinity.logsumexp(dim=1)
        assert sentences is not None
        return _by_sentence(affinity, scores, sentences)


def _by_sentence(
    affinity: torch.Tensor, scores: torch.Tensor, sentences: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend within sentences, and join them; ``(B, T, F)`` each and ``(B, T)`` -> as the head."""
    places = sentences[..., None].expand_as(affinity)
    empty = affinity.new_zeros(len(affinity), int(sentences.max()) + 1, affinity.shape[-1])
    # Less the largest of its own sentence: against that of the text, all of a sentence could vanish.
    largest = empty.fill_(float("-inf")).scatter_reduce(1, places, affinity.detach(), "amax")
    exponents = (affinity - largest.gather(1, places).clamp(min=torch.finfo(affinity.dtype).min)).exp()
    totals = torch.zeros_like(largest).scatter_add(1, places, exponents)
    sums = torch.zeros_like(largest).scatter_add(1, places, exponents * scores)
    is_there = totals > 0
    per_sentence = (sums / totals.where(is_there, 1)).masked_fill(~is_there, float("-inf"))
    logits = per_sentence.logsumexp(dim=1)
    share = (per_sentence - logits[:, None]).exp().gather(1, places)  # of the logit's gradient
    weights = share * exponents / totals.gather(1, places).clamp(min=torch.finfo(totals.dtype).tiny)
    return logits, weights.transpose(1, 2), logits
