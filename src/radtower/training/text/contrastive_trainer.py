"""Trainer of text encoders on pairs: negatives are the other documents of the batch, of all processes.

Axes: B pairs of this process, D documents of all processes, E embedding.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Sampler
from transformers import EvalPrediction

from radtower.modeling.losses import cosine_similarities, info_nce, matryoshka_info_nce, shares_key
from radtower.training.gather import gather_with_gradient, own_rows, row_counts
from radtower.training.text.contrastive_batches import PairDataset, SourceSampler
from radtower.training.trainer import RadTowerTrainer

STATISTICS = ("positive_similarity", "negative_similarity", "accuracy")
# Cosines of a trained model spread over tenths, those of a raw LLM over hundredths.
_COLLAPSED_SPREAD = 1e-5


@dataclass(frozen=True, kw_only=True)
class ContrastiveLoss:
    """Loss of one batch; see :func:`info_nce`.

    Args:
        scale: Inverse temperature.
        is_symmetric: Whether documents look for their queries, too; hard negatives have none.
        dims: Cuts of the vectors that are trained together (Matryoshka). Empty trains whole vectors.
        dim_weights: One per cut. None is 1 for all.
    """

    scale: float
    is_symmetric: bool = True
    dims: Sequence[int] = ()
    dim_weights: Sequence[float] | None = None

    def __call__(
        self, query_embeds: torch.Tensor, document_embeds: torch.Tensor, document_keys: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Compare with the documents of all processes.

        Args:
            query_embeds: ``(B, E)`` of this process.
            document_embeds: ``(B + H, E)``: the positives, then the hard negatives.
            document_keys: ``(B + H, K)``, as :class:`PairCollator` makes them.

        Returns:
            The loss of this process, whose mean over processes is that of the global batch; and ``(B, 3)``:
            similarity of the positive, mean similarity of the negatives, whether the positive comes first;
            the last two are NaN for a query that has no negative.
        """
        device, num_queries = query_embeds.device, len(query_embeds)
        document_counts = row_counts(len(document_embeds), device)
        documents = gather_with_gradient(document_embeds, document_counts)
        keys = gather_with_gradient(document_keys, document_counts)
        positives = own_rows(document_counts, device)[:num_queries]
        is_ignored = shares_key(document_keys[:num_queries], keys)
        loss = self._one_way(query_embeds, documents, positives, is_ignored)
        query_counts = row_counts(num_queries, device)
        if self.is_symmetric:
            queries = gather_with_gradient(query_embeds, query_counts)
            query_keys = gather_with_gradient(document_keys[:num_queries], query_counts)
            reverse = self._one_way(
                document_embeds[:num_queries],
                queries,
                own_rows(query_counts, device),
                shares_key(document_keys[:num_queries], query_keys),
            )
            loss = (loss + reverse) / 2
        share = num_queries * len(query_counts) / sum(query_counts)
        with torch.no_grad():
            statistics = _statistics(cosine_similarities(query_embeds, documents), positives, is_ignored)
        return loss * share, statistics

    def _one_way(
        self,
        queries: torch.Tensor,
        documents: torch.Tensor,
        positives: torch.Tensor,
        is_ignored: torch.Tensor,
    ) -> torch.Tensor:
        if not self.dims:
            return info_nce(queries, documents, positives, self.scale, is_ignored)
        return matryoshka_info_nce(
            queries,
            documents,
            positives,
            self.scale,
            is_ignored,
            dims=self.dims,
            weights=self.dim_weights,
        )


class ContrastiveTextTrainer(RadTowerTrainer):
    """Trains a text encoder on batches of :class:`PairCollator`.

    Logs the mean similarity of positives and negatives and how often the positive comes first. With gradient
    accumulation the negatives are those of one small batch.

    Args:
        contrastive_loss: What is minimized.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over the batch

    def __init__(self, *args: Any, contrastive_loss: ContrastiveLoss, **kwargs: Any) -> None:
        kwargs.setdefault("compute_metrics", mean_statistics)
        super().__init__(*args, **kwargs)
        self.contrastive_loss = contrastive_loss
        self._statistics: list[torch.Tensor] = []

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, and with ``return_outputs`` the ``(B, 3)`` of the loss.

        Raises:
            FloatingPointError: If all texts of the batch have the same vector.
        """
        queries = _encode(model, inputs["query_chunks"])[inputs["query_rows"]]
        documents = _encode(model, inputs["document_chunks"])[inputs["document_rows"]]
        # bf16 has 3 digits, and similarities differ in the third.
        with torch.autocast(queries.device.type, enabled=False):
            loss, statistics = self.contrastive_loss(queries, documents, inputs["document_keys"])
        if model.training:  # a last batch of evaluation may be one pair whose texts are cut to the same
            self._require_spread(queries, documents)
            self._statistics.append(statistics.nanmean(dim=0))
        return (loss, statistics) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, Any, torch.Tensor | None]:
        """Measure a batch; the ``(B, 3)`` of the loss stand in for predictions."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss, statistics = self.compute_loss(model, inputs, return_outputs=True)
        labels = torch.zeros(len(statistics), device=statistics.device)
        return (loss, None, None) if prediction_loss_only else (loss, statistics, labels)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, with the mean statistics of the batches since the last time."""
        if "loss" in logs and self._statistics:
            mean = self.accelerator.gather(torch.stack(self._statistics).nanmean(dim=0)[None]).nanmean(dim=0)
            measured = zip(STATISTICS, mean.tolist(), strict=True)
            logs = {**logs, **{name: value for name, value in measured if not math.isnan(value)}}
            self._statistics = []
        super().log(logs, start_time)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        assert isinstance(dataset, PairDataset)
        return SourceSampler(dataset, self.args.train_batch_size * self.args.world_size)

    def _require_spread(self, queries: torch.Tensor, documents: torch.Tensor) -> None:
        similarity = cosine_similarities(queries.detach(), documents.detach())
        spread = (similarity.max() - similarity.min()).item()
        if similarity.numel() > 1 and spread < _COLLAPSED_SPREAD:
            raise FloatingPointError(
                f"texts must have different vectors, got cosines within {spread:.1e} of each other at step "
                f"{self.state.global_step}. Lower learning_rate or scale, and check that the texts differ."
            )


def mean_statistics(prediction: EvalPrediction) -> dict[str, float]:
    """Average the ``(N, 3)`` statistics of an evaluation over the queries that have them."""
    predictions: Any = prediction.predictions
    known = {
        name: column[np.isfinite(column)] for name, column in zip(STATISTICS, predictions.T, strict=True)
    }
    return {name: float(values.mean()) for name, values in known.items() if len(values)}


def _encode(model: nn.Module, chunks: Sequence[Mapping[str, torch.Tensor]]) -> torch.Tensor:
    return torch.cat([model(**chunk).pooler_output for chunk in chunks])


def _statistics(similarity: torch.Tensor, positives: torch.Tensor, is_ignored: torch.Tensor) -> torch.Tensor:
    rows = torch.arange(len(similarity), device=similarity.device)
    positive = similarity[rows, positives]
    is_negative = ~is_ignored
    is_negative[rows, positives] = False
    # 0 / 0 is NaN: a query without a negative tells nothing of the model, and does not count as right.
    negative = (similarity * is_negative).sum(dim=1) / is_negative.sum(dim=1)
    hardest = similarity.masked_fill(~is_negative, -1.0).max(dim=1).values
    is_first = (positive > hardest).float().masked_fill(~is_negative.any(dim=1), torch.nan)
    return torch.stack([positive, negative, is_first], dim=1)
