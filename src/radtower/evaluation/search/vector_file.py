"""Vectors on disk: one safetensors file, written a block at a time and read without being loaded.

Axes: N items, E embedding.
"""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from radtower.evaluation.retrieval.ranks import Similarity

VectorType = Literal["float32", "float16"]
_NAME = "vectors"
_CODES: dict[VectorType, tuple[str, str]] = {"float32": ("F32", "<f4"), "float16": ("F16", "<f2")}
_UNIT_TOLERANCE = 1e-2  # float16 and bfloat16 towers round


def write_vectors(
    blocks: Iterable[np.ndarray],
    shape: tuple[int, int],
    path: str | Path,
    metric: Similarity,
    dtype: VectorType = "float32",
) -> None:
    """Write vectors as they come, so that no more than a block is in memory.

    Args:
        blocks: ``(n, E)`` each, N rows in all.
        shape: (N, E).
        path: The new file.
        metric: ``cosine`` wants unit vectors.
        dtype: Of the file.

    Raises:
        ValueError: If the blocks have another shape, a number is not finite or too large for ``dtype``, or a
            vector of a cosine index does not have length 1.
    """
    code, numpy_code = _CODES[dtype]
    num_bytes = shape[0] * shape[1] * np.dtype(numpy_code).itemsize
    entry = {"dtype": code, "shape": list(shape), "data_offsets": [0, num_bytes]}
    header = json.dumps({_NAME: entry}).encode()
    header += b" " * (-len(header) % 8)  # the numbers begin at a multiple of 8
    done = 0
    with Path(path).open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for block in blocks:
            check_vectors(block, shape[1], metric, done)
            with np.errstate(over="ignore"):  # refused by name below
                stored = np.ascontiguousarray(block, dtype=numpy_code)
            if not np.isfinite(stored).all():
                raise ValueError(f"vectors must fit {dtype}, got larger numbers. Store float32.")
            file.write(stored.data)
            done += len(block)
    if done != shape[0]:
        raise ValueError(f"vectors must be {shape[0]} rows, one per item, got {done}. Embed again.")


def read_vectors(path: str | Path) -> torch.Tensor:
    """Return ``(N, E)`` float32 or float16, memory-mapped: the pages that are read come from the disk.

    Raises:
        ValueError: If the file is damaged, or holds anything else.
    """
    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise ValueError(
            f"{Path(path).name} must be a safetensors file, got: {error}. Build the index again."
        ) from error
    vectors = tensors.get(_NAME)
    if list(tensors) != [_NAME] or vectors is None or vectors.ndim != 2:
        raise ValueError(
            f"{Path(path).name} must hold one matrix {_NAME!r}, got {sorted(tensors)}. Build the index again."
        )
    return vectors


def check_vectors(block: np.ndarray, dimension: int, metric: Similarity, first_row: int = 0) -> None:
    """Refuse vectors that cannot be stored or compared.

    Args:
        block: ``(n, E)``.
        dimension: E.
        metric: ``cosine`` wants unit vectors.
        first_row: What the first row of the block is called in a message.

    Raises:
        ValueError: If the shape is another, a number is not finite, or a length is not 1.
    """
    if block.ndim != 2 or block.shape[1] != dimension:
        raise ValueError(
            f"vectors must have {dimension} numbers each, got a block of shape {block.shape}. Embed again."
        )
    if not np.isfinite(block).all():
        num_invalid = int((~np.isfinite(block)).any(axis=1).sum())
        raise ValueError(
            f"vectors must be finite, got {num_invalid} with NaN or infinity among rows {first_row} to "
            f"{first_row + len(block) - 1}. Find their cause."
        )
    if metric == "cosine":
        lengths = np.sqrt(np.einsum("ne,ne->n", block, block, dtype=np.float32))
        num_other = int((np.abs(lengths - 1) > _UNIT_TOLERANCE).sum())
        if num_other:
            raise ValueError(
                f"vectors of a cosine index must have length 1, got {num_other} others among rows "
                f"{first_row} to {first_row + len(block) - 1}. Normalize them."
            )
