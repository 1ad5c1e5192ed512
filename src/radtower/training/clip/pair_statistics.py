"""What a batch says about the training: how far apart pairs and others are, and whether all fell together.

Axes: B studies of this process, P projected embedding.
"""

import torch
import torch.nn.functional as F

from radtower.training.clip.stop_together import Problem

QUANTILES = (0.05, 0.5, 0.95)
# Cosines of a trained model spread over tenths; of towers that say the same of everything, over nothing.
COLLAPSED_SPREAD = 1e-5
MAX_ROWS = 1024  # of a batch that are looked at: the matrix of all of them may not fit
NUM_BINS = 40  # of [-1, 1]


def pair_statistics(
    images: torch.Tensor, texts: torch.Tensor, pair_keys: torch.Tensor | None = None
) -> dict[str, float]:
    """Describe the cosines of a batch: quantiles of pairs and of all others, and how often the pair is first.

    Args:
        images: ``(B, P)``, projected.
        texts: ``(B, P)``, projected; row i belongs to row i.
        pair_keys: ``(B, K)``; what shares one is neither a pair nor another.

    Returns:
        ``positive_similarity_p05``, ``_p50``, ``_p95``, ``negative_similarity_...`` and ``accuracy``, the
        share of scans whose own report is nearer than all others; without a negative, those of pairs alone.
    """
    similarity = _cosines(images, texts)
    is_other = _others(similarity, pair_keys)
    found = _quantiles("positive_similarity", similarity.diagonal())
    if is_other.any():
        hardest = similarity.masked_fill(~is_other, -2.0).amax(dim=1)
        found |= _quantiles("negative_similarity", similarity[is_other])
        found["accuracy"] = (similarity.diagonal() > hardest).float().mean().item()
    return found


def similarity_histograms(
    images: torch.Tensor, texts: torch.Tensor, pair_keys: torch.Tensor | None = None
) -> dict[str, list[int]]:
    """Count the cosines of pairs and of all others in bins of equal width from -1 to 1.

    Args:
        images: As of :func:`pair_statistics`, and so are the others.
        texts: Likewise.
        pair_keys: Likewise.

    Returns:
        ``positive_similarity_counts`` and ``negative_similarity_counts``, ``NUM_BINS`` each.
    """
    similarity = _cosines(images, texts)
    kinds = {"positive": similarity.diagonal(), "negative": similarity[_others(similarity, pair_keys)]}
    # Rounding may carry a cosine beyond 1, and torch.histc leaves out what is beyond.
    counts = {
        name: torch.histc(values.clamp(-1, 1), NUM_BINS, -1.0, 1.0).int() for name, values in kinds.items()
    }
    return {f"{name}_similarity_counts": found.tolist() for name, found in counts.items()}


def problem_of_spread(images: torch.Tensor, texts: torch.Tensor, step: int) -> Problem | None:
    """Describe towers that say the same of everything: all cosines of scans and reports are equal.

    Args:
        images: ``(B, P)``, projected.
        texts: ``(B, P)``, projected.
        step: For the message.
    """
    similarity = _cosines(images, texts)
    spread = (similarity.max() - similarity.min()).item()
    if similarity.numel() == 1 or not spread < COLLAPSED_SPREAD:
        return None
    return Problem(
        message=f"scans and reports must have different vectors, got cosines within {spread:.1e} of each "
        f"other at step {step}. Lower learning_rate, and check that scans and reports differ."
    )


def _others(similarity: torch.Tensor, pair_keys: torch.Tensor | None) -> torch.Tensor:
    """Which scans and reports are negatives: neither a pair nor alike by a key."""
    is_other = ~torch.eye(len(similarity), dtype=torch.bool, device=similarity.device)
    if pair_keys is not None:
        for column in pair_keys[:MAX_ROWS].unbind(dim=1):
            is_other &= (column[:, None] != column) | (column == 0)
    return is_other


def _cosines(images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
    images, texts = (F.normalize(side[:MAX_ROWS].float(), dim=-1) for side in (images, texts))
    return images @ texts.T


def _quantiles(name: str, values: torch.Tensor) -> dict[str, float]:
    # torch.quantile refuses more than 16 million values.
    ordered = values.sort().values
    places = [round(quantile * (len(ordered) - 1)) for quantile in QUANTILES]
    return {
        f"{name}_p{q * 100:02.0f}": ordered[place].item() for q, place in zip(QUANTILES, places, strict=True)
    }
