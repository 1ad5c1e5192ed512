"""Vectors and items -> the folder of an index. ``index.json`` comes last: half an index cannot be read.

Axes: N items, E embedding.
"""

import hashlib
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import numpy as np
import pandas as pd
import torch

from radtower.evaluation.bootstrap import count_bootstrap, percentile_interval
from radtower.evaluation.features import Features, FeatureSource, refuse_batch_dependent
from radtower.evaluation.search.index_about import (
    ABOUT_FILE,
    BACKENDS,
    Backend,
    IndexAbout,
    Recall,
    metric_of,
    write_about,
)
from radtower.evaluation.search.items import ITEMS_FILE, REPORT, write_items
from radtower.evaluation.search.nearest import CandidateSource, nearest
from radtower.evaluation.search.vector_file import VectorType, read_vectors, write_vectors

VECTORS_FILE = "vectors.safetensors"
FAISS_FILE = "index.faiss"
DATA_FILES = (VECTORS_FILE, ITEMS_FILE, FAISS_FILE)
_RECALL_K = 10
_BLOCK_ROWS = 16_384
_TIE_TOLERANCE = 1e-6


@dataclass(frozen=True, kw_only=True)
class IndexOptions:
    """How an index is built.

    Args:
        backend: ``exact`` compares all items and needs nothing else; ``flat``, ``hnsw`` and ``ivf-pq`` are
            faiss's.
        dtype: Of the stored vectors.
        parameters: Of the backend; those that are missing are chosen.
        seed: Of training, and of the queries that recall is measured with.
        num_recall_queries: For ``hnsw`` and ``ivf-pq``; as many as there are items, at most.
        dataset: Name of the data, for the card.
        is_phantom: Whether the items are synthetic.
    """

    backend: Backend = "exact"
    dtype: VectorType = "float32"
    parameters: dict[str, int] = field(default_factory=dict)
    seed: int = 0
    num_recall_queries: int = 200
    dataset: str | None = None
    is_phantom: bool = False


def write_features_index(
    features: Features,
    items: pd.DataFrame,
    folder: str | Path,
    options: IndexOptions = IndexOptions(),
    on_progress: Callable[[int], None] | None = None,
) -> IndexAbout:
    """Build the index of features, row by row those of ``items``; see :func:`write_index`."""
    return write_index(
        features.source, _blocks(features.vectors), items, folder, options, on_progress=on_progress
    )


def write_index(
    source: FeatureSource,
    blocks: Iterable[np.ndarray],
    items: pd.DataFrame,
    folder: str | Path,
    options: IndexOptions = IndexOptions(),
    *,
    on_progress: Callable[[int], None] | None = None,
) -> IndexAbout:
    """Build an index; an earlier one in the folder is replaced when the new one is whole.

    Vectors are streamed to the disk and read from there: memory is a block, the table of items and what
    faiss holds.

    Args:
        source: Of the vectors.
        blocks: ``(n, E)`` each, N rows in all.
        items: N rows of :func:`make_items`.
        folder: New, empty or an index.
        options: How.
        on_progress: Called with the number of items that the backend has.

    Raises:
        ImportError: If the backend is one of faiss and that is not installed.
        KeyError: If a parameter is not one of the backend.
        ValueError: If the vectors depend on their batch or are not as the source says, a parameter is
            invalid, or the folder holds something else.
    """
    check_buildable(folder, options)
    refuse_batch_dependent(source)
    folder = Path(folder)
    first, rest = _first_of(blocks)
    shape = (len(items), first.shape[1])
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".partial-") as name:
        partial = Path(name)
        write_vectors(rest, shape, partial / VECTORS_FILE, metric_of(source), options.dtype)
        write_items(items, partial)
        about = IndexAbout(
            kind=source.kind,
            model_id=source.model_id,
            model_revision=source.model_revision,
            model_hash=source.model_hash,
            processor_hash=source.processor_hash,
            is_normalized=source.is_normalized,
            metric=metric_of(source),
            dimension=shape[1],
            count=shape[0],
            dtype=options.dtype,
            backend=options.backend,
            has_text=REPORT in items,
            finding_columns=tuple(str(name) for name in items if str(items[name].dtype) == "Int8"),
            dataset=options.dataset,
            phantom=options.is_phantom,
            created=datetime.now(UTC),
        )
        if options.backend != "exact":
            about = _with_faiss(about, partial, options, on_progress)
        write_about(about, partial)
        _install(partial, folder)
    return about


def check_buildable(folder: str | Path, options: IndexOptions) -> None:
    """Refuse before the work what could not be built after it.

    Raises:
        ImportError: If the backend is one of faiss and that is not installed.
        KeyError: If a parameter is not one of the backend.
        ValueError: If the backend is unknown, a parameter is negative, there are too few queries for an
            interval, or the folder holds something else than an index.
    """
    if options.backend not in BACKENDS:
        raise ValueError(f"backend must be one of {', '.join(BACKENDS)}, got {options.backend!r}.")
    if options.backend != "exact":
        require_faiss()
        _faiss_backend().check_parameters(options.backend, options.parameters)
    elif options.parameters:
        raise KeyError(f"parameters of exact must be none, got {sorted(options.parameters)}. Leave them out.")
    if options.num_recall_queries < 2:
        raise ValueError(f"num_recall_queries must be at least 2, got {options.num_recall_queries}. Use 200.")
    folder = Path(folder)
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / ABOUT_FILE).exists()):
        raise ValueError(
            f"the folder of an index must be new, empty or an index, got {folder.name!r} with something "
            "else. Name another."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)


def require_faiss() -> None:
    """Refuse to go on without faiss.

    Raises:
        ImportError: If it is not installed.
    """
    if find_spec("faiss") is None:
        raise ImportError(
            "this index needs faiss from the extra 'faiss'. Run pip install 'radtower[faiss]', or take the "
            "backend exact."
        )


def _faiss_backend() -> ModuleType:
    from radtower.evaluation.search import faiss_backend  # noqa: PLC0415 -- an extra

    return faiss_backend


def _with_faiss(
    about: IndexAbout, folder: Path, options: IndexOptions, on_progress: Callable[[int], None] | None
) -> IndexAbout:
    faiss_backend = _faiss_backend()
    vectors = read_vectors(folder / VECTORS_FILE)
    parameters = faiss_backend.resolve_parameters(
        about.backend, options.parameters, about.count, about.dimension, options.seed
    )
    built = faiss_backend.build_faiss(about.backend, vectors, parameters, folder / FAISS_FILE, on_progress)
    return about.model_copy(
        update={
            "parameters": parameters,
            "faiss_version": faiss_backend.FAISS_VERSION,
            "faiss_sha256": file_sha256(folder / FAISS_FILE),
            "recall": None if about.backend == "flat" else measure_recall(vectors, built, options),
        }
    )


def measure_recall(
    vectors: torch.Tensor, source: CandidateSource, options: IndexOptions = IndexOptions()
) -> Recall | None:
    """Compare the backend with exact search; None where there are no 10 others to find.

    An item as near as the last of the true ones is as good as that: of equal vectors none is the right one.
    """
    count = len(vectors)
    if count <= _RECALL_K:
        return None
    rng = np.random.default_rng(options.seed)
    rows = np.sort(rng.choice(count, min(options.num_recall_queries, count), replace=False))
    queries = vectors[torch.from_numpy(rows)].to(torch.float32)
    true, found = (nearest(vectors, queries, _RECALL_K + 1, source=which) for which in (None, source))
    shares = []
    for row, (truth, answer) in enumerate(zip(true.rows, found.rows, strict=True)):
        last = true.similarities[row][truth != rows[row]][:_RECALL_K][-1]
        others = found.similarities[row][answer != rows[row]][:_RECALL_K]
        shares.append((others >= last - _TIE_TOLERANCE * abs(last)).mean())
    values = np.array(shares)

    def weighted_mean(counts: np.ndarray) -> np.ndarray:
        means: np.ndarray = counts @ values / counts.sum(axis=1)
        return means

    ids = np.arange(len(rows))
    interval = percentile_interval(count_bootstrap(weighted_mean, ids, seed=options.seed), ids)
    return Recall(
        k=_RECALL_K,
        value=float(values.mean()),
        ci_low=interval.low,
        ci_high=interval.high,
        num_queries=len(rows),
    )


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _install(partial: Path, folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    (folder / ABOUT_FILE).unlink(missing_ok=True)
    for name in DATA_FILES:
        if (partial / name).exists():
            (partial / name).replace(folder / name)
        else:
            (folder / name).unlink(missing_ok=True)
    (partial / ABOUT_FILE).replace(folder / ABOUT_FILE)


def _blocks(vectors: torch.Tensor) -> Iterator[np.ndarray]:
    for start in range(0, len(vectors), _BLOCK_ROWS):
        yield vectors[start : start + _BLOCK_ROWS].to("cpu", torch.float32).numpy()


def _first_of(blocks: Iterable[np.ndarray]) -> tuple[np.ndarray, Iterator[np.ndarray]]:
    """The first block, and all blocks."""
    iterator = iter(blocks)
    first = next(iterator, None)
    if first is None or first.ndim != 2:
        raise ValueError(
            f"vectors must come in blocks (n, E), got {'none' if first is None else first.shape}. Embed some."
        )

    def all_blocks() -> Iterator[np.ndarray]:
        yield first
        yield from iterator

    return first, all_blocks()
