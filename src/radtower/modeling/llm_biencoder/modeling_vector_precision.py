"""Vectors in fewer dimensions and fewer bits, as sentence-transformers and vector databases write them.

Axes in this file: N vectors, E embedding.
"""

from typing import Literal, get_args

import torch
import torch.nn.functional as F

Precision = Literal["float32", "int8", "uint8", "binary", "ubinary"]
NUM_STEPS = 255  # between the ends of a range


def shorten(vectors: torch.Tensor, truncate_dim: int | None, should_normalize: bool) -> torch.Tensor:
    """Keep the first ``truncate_dim`` dimensions (arXiv 2205.13147), then bring vectors to length 1.

    Raises:
        ValueError: If ``truncate_dim`` is not in 1..E.
    """
    if truncate_dim is not None and not 1 <= truncate_dim <= vectors.shape[-1]:
        raise ValueError(
            f"truncate_dim must be between 1 and {vectors.shape[-1]}, got {truncate_dim}. "
            "Leave it out to keep every dimension."
        )
    vectors = vectors[..., :truncate_dim]
    return F.normalize(vectors, dim=-1) if should_normalize else vectors


def check_precision(precision: str, ranges: torch.Tensor | None, width: int) -> None:
    """Refuse, before the work, what :func:`quantize_vectors` cannot do.

    Raises:
        ValueError: If ``precision`` is unknown, ``ranges`` come with one that has none or miss where they
            are needed, are not ``(2, width)``, or begin above their end.
    """
    if precision not in get_args(Precision):
        raise ValueError(
            f"precision must be one of {list(get_args(Precision))}, got {precision!r}. Choose one."
        )
    if (ranges is not None) != precision.endswith("int8"):
        given = "none" if ranges is None else f"shape {tuple(ranges.shape)}"
        raise ValueError(
            f"ranges must come with int8 and uint8 and nothing else, got {given} with {precision!r}. Take "
            "minimum and maximum of each dimension over a fixed calibration set, and keep them."
        )
    if ranges is not None and (ranges.shape != (2, width) or not bool((ranges[0] <= ranges[1]).all())):
        raise ValueError(
            f"ranges must be (2, {width}), minimum above maximum nowhere, got shape {tuple(ranges.shape)}. "
            "Stack minimum and maximum of the vectors, as long as they will be."
        )


def quantize_vectors(
    vectors: torch.Tensor, precision: Precision, ranges: torch.Tensor | None = None
) -> torch.Tensor:
    """Store vectors in 8 bits or 1 bit per dimension.

    The arithmetic is that of ``quantize_embeddings`` of sentence-transformers, but for the ranges, which are
    never taken from the vectors at hand: two calls would give codes that cannot be compared.

    Args:
        vectors: ``(N, E)``.
        precision: ``float32`` changes nothing. ``uint8`` numbers 256 steps from the minimum to the maximum
            of each dimension, beyond which values are clamped; ``int8`` is that minus 128. ``ubinary`` packs
            the signs, eight dimensions to a byte, the first in the highest bit; ``binary`` is that minus 128.
        ranges: ``(2, E)``, minimum and maximum of each dimension; for ``int8`` and ``uint8`` only.

    Returns:
        ``(N, E)``, or ``(N, ceil(E / 8))`` of bits.

    Raises:
        ValueError: See :func:`check_precision`.
    """
    check_precision(precision, ranges, vectors.shape[-1])
    if precision == "float32":
        return vectors
    if ranges is not None:
        low, high = ranges.to(vectors)
        step = (high - low) / NUM_STEPS
        step = torch.where(step == 0, 1, step)
        codes = ((vectors - low) / step).floor().clamp(0, NUM_STEPS)
    else:
        bits = F.pad((vectors > 0).float(), (0, -vectors.shape[-1] % 8)).unflatten(-1, (-1, 8))
        codes = bits @ torch.tensor([128.0, 64.0, 32.0, 16.0, 8.0, 4.0, 2.0, 1.0], device=vectors.device)
    is_signed = precision in ("int8", "binary")
    return (codes - 128).to(torch.int8) if is_signed else codes.to(torch.uint8)
