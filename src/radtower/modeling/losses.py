"""Losses: pure functions of tensors. No state, no model, no distributed calls.

Exported with the models, which call them when labels are given; ``training`` calls the same functions.
Axes: B studies in the batch, E embedding, F findings.
"""

import torch
import torch.nn.functional as F

UNKNOWN_LABEL = -100  # the ignore index of PyTorch and transformers


def masked_binary_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Multi-label loss, averaged over the labels that are known.

    Args:
        logits: ``(B, F)``, before the sigmoid.
        labels: ``(B, F)``; probability that the finding is present, or -100 where it is unknown.

    Returns:
        Scalar; 0, with a gradient of 0, when no label is known.

    Raises:
        ValueError: If the shapes differ, or a label is neither in [0, 1] nor -100.
    """
    if logits.shape != labels.shape:
        raise ValueError(
            f"labels must have one column per finding, got {tuple(labels.shape)} for logits "
            f"{tuple(logits.shape)}. Set num_labels or findings in the configuration to match."
        )
    known = labels != UNKNOWN_LABEL
    targets = labels[known].to(logits.dtype)
    # A device sync per step is the price: with a target of -1 the loss has no lower bound, and trains on.
    invalid = targets[~((targets >= 0) & (targets <= 1))]
    if len(invalid):
        raise ValueError(
            f"labels must be in [0, 1] or -100, got {invalid.unique().tolist()}. "
            "Map uncertain and unmentioned findings with a TargetPolicy first."
        )
    total = F.binary_cross_entropy_with_logits(logits[known], targets, reduction="sum")
    return total / max(1, len(targets))


def symmetric_info_nce(
    image_embeds: torch.Tensor, text_embeds: torch.Tensor, logit_scale: torch.Tensor
) -> torch.Tensor:
    """Contrastive loss of paired scans and reports (Radford et al. 2021, figure 3, arXiv 2103.00020).

    Row i of both inputs is one study; every other row is a negative, also where two studies have the
    same report: keep such pairs out of a batch.

    Args:
        image_embeds: ``(B, E)``, L2-normalized.
        text_embeds: ``(B, E)``, L2-normalized.
        logit_scale: One element; inverse temperature, after ``exp``.

    Returns:
        Scalar, the mean of both directions; ``log(B)`` when the embeddings carry no information.

    Raises:
        ValueError: If the two shapes differ.
    """
    if image_embeds.shape != text_embeds.shape:
        raise ValueError(
            f"image_embeds and text_embeds must pair up row by row, got {tuple(image_embeds.shape)} and "
            f"{tuple(text_embeds.shape)}. Give one report per scan and one projection_dim."
        )
    logits = logit_scale * image_embeds @ text_embeds.T
    pairs = torch.arange(len(logits), device=logits.device)
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2
