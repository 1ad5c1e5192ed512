"""faiss behind an index: flat, HNSW and IVF-PQ; the one module that imports it (extra ``faiss``).

The same vectors give the same file: training is seeded, and a graph is built by one thread, because what
threads add at once depends on their timing.
Axes: N items, Q queries, E embedding.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import faiss
import numpy as np
import torch

from radtower.evaluation.search.index_about import Backend

FAISS_VERSION: str = faiss.__version__
_BLOCK_ROWS = 16_384
_PER_LIST = 39  # training vectors per centroid below which faiss warns
_MAX_PER_LIST = 64
_CLASSES: dict[Backend, type] = {
    "flat": faiss.IndexFlat,
    "hnsw": faiss.IndexHNSWFlat,
    "ivf-pq": faiss.IndexIVFPQ,
}
DEFAULTS: dict[Backend, dict[str, int]] = {
    "flat": {},
    # M neighbors per item (Malkov and Yashunin, arXiv 1603.09320); effort while building and searching.
    "hnsw": {"m": 32, "ef_construction": 80, "ef_search": 128},
    # 0: by the number of items and of dimensions. ``oversample``: candidates per answer, which are then
    # compared exactly.
    "ivf-pq": {"num_lists": 0, "code_bytes": 0, "num_probes": 0, "oversample": 20},
}


def resolve_parameters(
    backend: Backend, given: dict[str, int], count: int, dimension: int, seed: int
) -> dict[str, int]:
    """Return all parameters of a backend, those that depend on the data filled in.

    Raises:
        ValueError: If there are too few items to train on, or one cannot be with these data; and see
            :func:`check_parameters`.
    """
    check_parameters(backend, given)
    chosen = {**DEFAULTS[backend], **{name: value for name, value in given.items() if value}}
    if backend != "ivf-pq":
        return chosen | ({"seed": seed} if backend == "hnsw" else {})
    bits = 8 if count >= _PER_LIST * 2**8 else 4
    if count < _PER_LIST * 2**bits:
        raise ValueError(
            f"ivf-pq must have at least {_PER_LIST * 2**bits} items to train on, got {count}. Take exact, "
            "which is fast with so few."
        )
    lists = chosen["num_lists"] or max(1, min(round(4 * count**0.5), count // _PER_LIST))
    code = chosen["code_bytes"] or _largest_divisor(dimension, max(1, dimension // 4))
    if dimension % code:
        raise ValueError(
            f"code_bytes must divide the {dimension} numbers of a vector, got {code}. Choose a divisor."
        )
    if lists > count:
        raise ValueError(f"num_lists must not exceed the {count} items, got {lists}. Choose fewer.")
    probes = min(chosen["num_probes"] or max(8, round(lists / 32)), lists)
    return chosen | {
        "num_lists": lists,
        "code_bytes": code,
        "num_probes": probes,
        "code_bits": bits,
        "seed": seed,
    }


def check_parameters(backend: Backend, given: dict[str, int]) -> None:
    """Refuse parameters that the backend does not have; ask before the vectors are made.

    Raises:
        KeyError: If a parameter is not one of the backend.
        ValueError: If one is negative.
    """
    unknown = sorted(set(given) - set(DEFAULTS[backend]))
    if unknown:
        raise KeyError(
            f"parameters of {backend} must be of {', '.join(DEFAULTS[backend]) or 'none'}, got {unknown}."
        )
    negative = {name: value for name, value in given.items() if value < 0}
    if negative:
        raise ValueError(f"parameters must not be negative, got {negative}. Use 0 for the default.")


def build_faiss(
    backend: Backend,
    vectors: torch.Tensor,
    parameters: dict[str, int],
    path: Path,
    on_progress: Callable[[int], None] | None = None,
) -> "FaissBackend":
    """Build the index of ``(N, E)`` vectors and write it; similarities are inner products.

    Beyond the index itself a block of vectors is in memory, and for IVF-PQ a sample to train on.

    Args:
        backend: Which one.
        vectors: May be memory-mapped, and of half precision.
        parameters: Of :func:`resolve_parameters`.
        path: The new file.
        on_progress: Called with the number of items done.
    """
    index = _empty(backend, vectors.shape[1], parameters)
    if backend == "ivf-pq":
        index.train(_sample(vectors, parameters))
    with _threads(1 if backend == "hnsw" else None):
        for start in range(0, len(vectors), _BLOCK_ROWS):
            index.add(_float32(vectors[start : start + _BLOCK_ROWS]))
            if on_progress is not None:
                on_progress(min(start + _BLOCK_ROWS, len(vectors)))
    faiss.write_index(index, str(path))
    return FaissBackend(index, backend, parameters)


def read_faiss(
    backend: Backend, path: Path, parameters: dict[str, int], shape: tuple[int, int]
) -> "FaissBackend":
    """Read the file of :func:`build_faiss`.

    Raises:
        ValueError: If it is damaged, or its kind, count, dimension or metric are not what they should be.
    """
    try:
        index = faiss.read_index(str(path))
    except RuntimeError as error:
        raise ValueError(
            f"{path.name} must be readable by faiss, got an error. Build the index again."
        ) from error
    found = {
        "kind": type(index).__name__,
        "count": index.ntotal,
        "dimension": index.d,
        "metric": index.metric_type,
    }
    wanted = {
        "kind": found["kind"] if isinstance(index, _CLASSES[backend]) else _CLASSES[backend].__name__,
        "count": shape[0],
        "dimension": shape[1],
        "metric": faiss.METRIC_INNER_PRODUCT,
    }
    if found != wanted:
        raise ValueError(f"{path.name} must be {wanted}, got {found}. Build the index again.")
    return FaissBackend(index, backend, parameters)


class FaissBackend:
    """A built faiss index; rows are those of the vectors it was built from."""

    def __init__(self, index: Any, backend: Backend, parameters: dict[str, int]) -> None:
        self.index = index
        self.backend = backend
        self.parameters = parameters

    def candidates(self, queries: np.ndarray, k: int, passes: np.ndarray | None) -> np.ndarray:
        """Return ``(Q, c)`` rows with c >= k, the likeliest first; -1 where the search found fewer.

        Args:
            queries: ``(Q, E)`` float32.
            k: Rows wanted.
            passes: ``(N,)`` bool, the rows that may be found. None: all. The fewer pass, the more
                is searched.
        """
        count = self.index.ntotal
        selector, share = None, 1.0
        if passes is not None:
            selector = faiss.IDSelectorBitmap(np.packbits(passes, bitorder="little"))
            share = passes.sum() / count
        num = min(k * self.parameters.get("oversample", 1), count)
        rows: np.ndarray = self.index.search(queries, num, params=self._effort(num, share, selector))[1]
        return rows

    def _effort(self, num: int, share: float, selector: Any) -> Any:
        arguments = {} if selector is None else {"sel": selector}
        if self.backend == "hnsw":
            effort = max(self.parameters["ef_search"], num) / share
            return faiss.SearchParametersHNSW(efSearch=min(int(effort) + 1, self.index.ntotal), **arguments)
        if self.backend == "ivf-pq":
            lists = self.parameters["num_lists"]
            probes = min(int(self.parameters["num_probes"] / share) + 1, lists)
            return faiss.SearchParametersIVF(nprobe=probes, **arguments)
        return faiss.SearchParameters(**arguments)


def _empty(backend: Backend, dimension: int, parameters: dict[str, int]) -> Any:
    metric = faiss.METRIC_INNER_PRODUCT
    if backend == "flat":
        return faiss.IndexFlat(dimension, metric)
    if backend == "hnsw":
        graph = faiss.IndexHNSWFlat(dimension, parameters["m"], metric)
        graph.hnsw.efConstruction = parameters["ef_construction"]
        graph.hnsw.rng = faiss.RandomGenerator(parameters["seed"])
        return graph
    lists = faiss.IndexFlat(dimension, metric)
    index = faiss.IndexIVFPQ(
        lists, dimension, parameters["num_lists"], parameters["code_bytes"], parameters["code_bits"], metric
    )
    index.cp.seed = index.pq.cp.seed = parameters["seed"]
    return index


def _sample(vectors: torch.Tensor, parameters: dict[str, int]) -> np.ndarray:
    """Vectors to train on, in the order of the file."""
    wanted = _MAX_PER_LIST * max(parameters["num_lists"], 2 ** parameters["code_bits"])
    if wanted >= len(vectors):
        return _float32(vectors)
    rows = np.random.default_rng(parameters["seed"]).choice(len(vectors), wanted, replace=False)
    return _float32(vectors[torch.from_numpy(np.sort(rows))])


def _float32(vectors: torch.Tensor) -> np.ndarray:
    return np.ascontiguousarray(vectors.to(torch.float32).numpy())


def _largest_divisor(number: int, limit: int) -> int:
    return next(divisor for divisor in range(limit, 0, -1) if number % divisor == 0)


@contextmanager
def _threads(number: int | None) -> Iterator[None]:
    before = faiss.omp_get_max_threads()
    if number is not None:
        faiss.omp_set_num_threads(number)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(before)
