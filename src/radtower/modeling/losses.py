"""Losses: pure functions of tensors. No state, no model, no distributed calls.

Exported with the models, which call them when labels are given; ``training`` calls the same functions.
Axes: B studies in the batch, E embedding, F findings; Q queries, D documents, K keys of a text.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

UNKNOWN_LABEL = -100  # the ignore index of PyTorch and transformers


def masked_binary_cross_entropy(
    logits: torch.Tensor, labels: torch.Tensor, positive_weight: torch.Tensor | None = None
) -> torch.Tensor:
    """Multi-label loss, averaged over the labels that are known.

    Args:
        logits: ``(B, F)``, before the sigmoid.
        labels: ``(B, F)``; probability that the finding is present, or -100 where it is unknown.
        positive_weight: ``(F,)``, > 0; what a present finding counts, where an absent one counts 1. With
            absent / present of the training labels both classes weigh the same. None is 1 for all.

    Returns:
        Scalar; 0, with a gradient of 0, when no label is known.

    Raises:
        ValueError: If the shapes differ, a label is neither in [0, 1] nor -100, or a weight is not positive.
    """
    known, targets = _known_targets(logits, labels)
    weight = None if positive_weight is None else _per_label(positive_weight, logits)[known]
    total = F.binary_cross_entropy_with_logits(
        logits[known].to(targets.dtype), targets, pos_weight=weight, reduction="sum"
    )
    return total / max(1, len(targets))


def asymmetric_loss(
    logits: torch.Tensor,
    labels: torch.Tensor,
    focus_positive: float = 0.0,
    focus_negative: float = 4.0,
    margin: float = 0.05,
) -> torch.Tensor:
    """Multi-label loss that lets easy negatives go, averaged over the labels that are known.

    With p the probability and q = max(p - margin, 0), a present finding costs
    ``-(1 - p)**focus_positive log p`` and an absent one ``-q**focus_negative log(1 - q)``; a soft label mixes
    the two.
    Source: Ridnik et al. 2021, asymmetric focusing and probability shifting, arXiv 2009.14119. Differs from
    it in: a mean over the known labels in place of a sum. The gradient passes through both factors, as the
    equations say; the published code can also stop it there.

    Args:
        logits: ``(B, F)``, before the sigmoid.
        labels: ``(B, F)``; probability that the finding is present, or -100 where it is unknown.
        focus_positive: Exponent for present findings, >= 0.
        focus_negative: Exponent for absent findings, >= 0.
        margin: Absent findings below this probability cost nothing; in [0, 1). All three at 0 is binary
            cross-entropy.

    Returns:
        Scalar; 0, with a gradient of 0, when no label is known.

    Raises:
        ValueError: If the shapes differ, a label is neither in [0, 1] nor -100, an exponent is negative, or
            the margin is outside [0, 1).
    """
    if not (focus_positive >= 0 and focus_negative >= 0 and 0 <= margin < 1):
        raise ValueError(
            f"focus_positive and focus_negative must be >= 0 and margin in [0, 1), got {focus_positive}, "
            f"{focus_negative} and {margin}. The paper uses 0, 4 and 0.05."
        )
    known, targets = _known_targets(logits, labels)
    x = logits[known].to(targets.dtype)
    # A base of 0 has no gradient to an exponent below 1.
    tiny = torch.finfo(targets.dtype).tiny
    absent_probability = torch.sigmoid(-x).clamp_min(tiny)
    shifted = (torch.sigmoid(x) - margin).clamp_min(tiny)
    # log(1 - q) = min(log(1 - p + margin), 0), from log(1 - p), which is finite where 1 - p is not above 0.
    log_margin = torch.full_like(x, margin).log()
    log_absent = torch.logaddexp(F.logsigmoid(-x), log_margin).clamp_max(0)
    present = absent_probability**focus_positive * F.logsigmoid(x)
    absent = shifted**focus_negative * log_absent
    return -(targets * present + (1 - targets) * absent).sum() / max(1, len(targets))


def _known_targets(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Where labels are known, ``(B, F)``, and those labels, in float32 or better."""
    if logits.shape != labels.shape:
        raise ValueError(
            f"labels must have one column per finding, got {tuple(labels.shape)} for logits "
            f"{tuple(logits.shape)}. Set num_labels or findings in the configuration to match."
        )
    known = labels != UNKNOWN_LABEL
    # bf16 would round a soft target.
    targets = labels[known].to(torch.promote_types(logits.dtype, torch.float32))
    # A device sync per step is the price: with a target of -1 the loss has no lower bound, and trains on.
    invalid = targets[~((targets >= 0) & (targets <= 1))]
    if len(invalid):
        raise ValueError(
            f"labels must be in [0, 1] or -100, got {invalid.unique().tolist()}. "
            "Map uncertain and unmentioned findings with a TargetPolicy first."
        )
    return known, targets


def _per_label(weight: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
    """``(F,)`` -> ``(B, F)``, float32."""
    if weight.shape != logits.shape[1:] or not bool((weight > 0).all()):
        raise ValueError(
            f"positive_weight must be one number above 0 per finding, got {weight.tolist()} for "
            f"{logits.shape[1]} findings. Leave out findings that are never present."
        )
    return weight.to(logits.device, torch.promote_types(logits.dtype, torch.float32)).expand(logits.shape)


def info_nce(
    query_embeds: torch.Tensor,
    document_embeds: torch.Tensor,
    positive_columns: torch.Tensor,
    scale: float | torch.Tensor,
    is_ignored: torch.Tensor | None = None,
) -> torch.Tensor:
    """Contrastive loss of queries against the documents of a batch, hard negatives among them.

    Every document but its own is a negative of a query, unless it is ignored: a false negative, such as the
    same report once more, would be pushed away from what it equals.
    Source: van den Oord et al. 2018, equation 4, arXiv 1807.03748, with cosine similarity divided by a
    temperature of 1 / ``scale``.

    Args:
        query_embeds: ``(Q, E)``, normalized here.
        document_embeds: ``(D, E)``, normalized here.
        positive_columns: ``(Q,)``; the row of ``document_embeds`` that belongs to each query.
        scale: Inverse temperature, one element, > 0.
        is_ignored: ``(Q, D)``, True where a document is no negative of a query. The positive is kept whatever
            it says. None ignores nothing.

    Returns:
        Scalar, the mean over queries; 0 where a query has no negative left.

    Raises:
        ValueError: If the shapes do not fit, or a positive is not among the documents.
    """
    similarity = cosine_similarities(query_embeds, document_embeds)
    _require_positives(positive_columns, similarity)
    logits = similarity * scale
    if is_ignored is not None:
        if is_ignored.shape != logits.shape:
            raise ValueError(
                f"is_ignored must have a row per query and a column per document, got "
                f"{tuple(is_ignored.shape)} for {tuple(logits.shape)}. Compare the same rows."
            )
        is_own = F.one_hot(positive_columns, logits.shape[1]).bool()
        logits = logits.masked_fill(is_ignored & ~is_own, float("-inf"))
    return F.cross_entropy(logits, positive_columns)


def matryoshka_info_nce(
    query_embeds: torch.Tensor,
    document_embeds: torch.Tensor,
    positive_columns: torch.Tensor,
    scale: float | torch.Tensor,
    is_ignored: torch.Tensor | None = None,
    *,
    dims: Sequence[int],
    weights: Sequence[float] | None = None,
) -> torch.Tensor:
    """Sum :func:`info_nce` over the first ``dims`` numbers of the vectors, so that each can be used alone.

    Source: Kusupati et al. 2022, equation 1, arXiv 2205.13147.

    Args:
        query_embeds: ``(Q, E)``; each cut is normalized anew.
        document_embeds: ``(D, E)``.
        positive_columns: As in :func:`info_nce`, as are the next two.
        scale: Inverse temperature.
        is_ignored: ``(Q, D)``.
        dims: Sizes of the cuts, each in 1..E and named once.
        weights: One per cut, >= 0. None is 1 for all.

    Returns:
        Scalar, the weighted sum.

    Raises:
        ValueError: If a size is out of range or named twice, or there is not one weight per size.
    """
    width = query_embeds.shape[1]
    if not dims or len(set(dims)) < len(dims) or not all(1 <= dim <= width for dim in dims):
        raise ValueError(
            f"dims must be different sizes between 1 and {width}, got {list(dims)}. Name each cut once."
        )
    shares = [1.0] * len(dims) if weights is None else list(weights)
    if len(shares) != len(dims) or min(shares) < 0:
        raise ValueError(
            f"weights must be one number >= 0 for each of {len(dims)} dims, got {shares}. "
            "Leave them out to weigh all cuts alike."
        )
    total = query_embeds.new_zeros(())
    for dim, share in zip(dims, shares, strict=True):
        total = total + share * info_nce(
            query_embeds[:, :dim], document_embeds[:, :dim], positive_columns, scale, is_ignored
        )
    return total


def cosine_similarities(query_embeds: torch.Tensor, document_embeds: torch.Tensor) -> torch.Tensor:
    """Cosine of every query ``(Q, E)`` with every document ``(D, E)``: ``(Q, D)``.

    Raises:
        ValueError: If the widths differ.
    """
    if query_embeds.ndim != 2 or query_embeds.shape[1:] != document_embeds.shape[1:]:
        raise ValueError(
            f"query_embeds and document_embeds must be (Q, E) and (D, E), got {tuple(query_embeds.shape)} "
            f"and {tuple(document_embeds.shape)}. Encode both with one model."
        )
    return F.normalize(query_embeds, dim=-1) @ F.normalize(document_embeds, dim=-1).T


def shares_key(row_keys: torch.Tensor, column_keys: torch.Tensor) -> torch.Tensor:
    """Tell which texts are the same in some respect, and so no negatives of each other.

    Args:
        row_keys: ``(Q, K)`` int64: hashes of a text, its labels and so on; 0 is no key, and equals nothing.
        column_keys: ``(D, K)``.

    Returns:
        ``(Q, D)`` bool, True where a row and a column have a key in common.
    """
    shared = torch.zeros(len(row_keys), len(column_keys), dtype=torch.bool, device=row_keys.device)
    for row_key in row_keys.unbind(dim=1):
        for column_key in column_keys.unbind(dim=1):
            shared |= (row_key[:, None] == column_key) & (row_key != 0)[:, None]
    return shared


def _require_positives(positive_columns: torch.Tensor, similarity: torch.Tensor) -> None:
    num_queries, num_documents = similarity.shape
    is_inside = (positive_columns >= 0) & (positive_columns < num_documents)
    if positive_columns.shape != (num_queries,) or not bool(is_inside.all()):
        raise ValueError(
            f"positive_columns must name one of {num_documents} documents for each of {num_queries} queries, "
            f"got {positive_columns.tolist()[:8]}. Count documents from 0."
        )
