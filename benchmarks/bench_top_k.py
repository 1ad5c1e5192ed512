"""Time exact top-k in blocks against full argsorts of the similarity matrix, and measure its memory.

Prints one JSON document. ``full_run`` is one call of ``top_k``: seconds, and the peak of resident memory
above that of the process with its libraries loaded, inputs included. The sorts would take too long and too
much memory for all queries, so ``side_by_side`` gives all methods the same blocks of queries, in alternation,
so that other load meets all; medians of the blocks.

Every method gets vectors and gives sorted rows: the float32 product, which all share, is in its seconds, and
``product_share_of_top_k`` is what it is of ours, in CPU seconds. ``numpy_argsort_stable`` is the sort that
gives the same answer, ties included; ``numpy_argsort`` is numpy's fastest, in AVX-512 where there is one.
Vectors are random and normal.
"""

import argparse
import json
import resource
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from radtower.evaluation.retrieval.top_k import top_k

GIBI = 2**30


def peak_gib() -> float:
    """Return the peak of resident memory so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIBI


def vectors(num_rows: int, width: int, seed: int) -> np.ndarray:
    """Unit vectors, made in place."""
    values = np.random.default_rng(seed).standard_normal((num_rows, width), dtype=np.float32)
    values /= np.linalg.norm(values, axis=1, keepdims=True)
    return values


def side_by_side(
    queries: np.ndarray, gallery: np.ndarray, k: int, block: int, num_blocks: int
) -> dict[str, Any]:
    """Time all methods on the same blocks of queries."""
    columns = torch.from_numpy(gallery).T

    def similarities(some: np.ndarray) -> torch.Tensor:
        return torch.from_numpy(some) @ columns

    methods: dict[str, Callable[[np.ndarray], np.ndarray]] = {
        "matrix_product_only": lambda some: similarities(some).numpy(),
        "top_k": lambda some: top_k(some, gallery, k, similarity="dot").rows,
        "numpy_argsort_stable": lambda some: np.argsort(-similarities(some).numpy(), axis=1, kind="stable"),
        "numpy_argsort": lambda some: np.argsort(-similarities(some).numpy(), axis=1),
        "torch_argsort": lambda some: torch.argsort(similarities(some), dim=1, descending=True).numpy(),
    }
    wall: dict[str, list[float]] = {name: [] for name in methods}
    cpu: dict[str, list[float]] = {name: [] for name in methods}
    is_same = True
    for turn in range(num_blocks + 1):  # the first block warms up and does not count
        some = queries[max(0, turn - 1) * block :][:block]
        answers = {}
        for name, method in methods.items():
            start = time.perf_counter(), time.process_time()
            answers[name] = method(some)[:, :k].copy()
            if turn:
                wall[name].append(time.perf_counter() - start[0])
                cpu[name].append(time.process_time() - start[1])
        is_same &= bool(np.array_equal(answers["top_k"], answers["numpy_argsort_stable"]))
    seconds, cpu_seconds = ({n: statistics.median(v) for n, v in times.items()} for times in (wall, cpu))
    sorts = [name for name in methods if name.endswith(("argsort", "stable"))]
    return {
        "queries_per_block": block,
        "blocks": num_blocks,
        "same_answer_as_stable_sort": is_same,
        "ms_per_query": {name: round(1000 * value / block, 4) for name, value in seconds.items()},
        "cpu_ms_per_query": {name: round(1000 * value / block, 4) for name, value in cpu_seconds.items()},
        "sort_over_top_k": {name: round(seconds[name] / seconds["top_k"], 2) for name in sorts},
        "cpu_sort_over_top_k": {name: round(cpu_seconds[name] / cpu_seconds["top_k"], 2) for name in sorts},
        "product_share_of_top_k": round(cpu_seconds["matrix_product_only"] / cpu_seconds["top_k"], 3),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--queries", type=int, default=50_000)
    parser.add_argument("--gallery", type=int, default=50_000)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--k", type=int, default=50)
    parser.add_argument("--block", type=int, default=1024, help="queries per block of the comparison")
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    before = peak_gib()
    queries, gallery = vectors(given.queries, given.width, 0), vectors(given.gallery, given.width, 1)
    with_inputs = peak_gib()
    start = time.perf_counter(), time.process_time()
    found = top_k(queries, gallery, given.k)
    full_run = {
        "seconds": round(time.perf_counter() - start[0], 1),
        "cpu_seconds": round(time.process_time() - start[1], 1),
        "peak_gib_above_libraries": round(peak_gib() - before, 3),
        "of_which_inputs_gib": round(with_inputs - before, 3),
        "answer_gib": round((found.rows.nbytes + found.similarities.nbytes) / GIBI, 3),
    }
    result = {
        "what": f"top {given.k} of {given.gallery} for {given.queries} queries, width {given.width}, float32",
        "threads": given.threads,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "full_run": full_run,
        "side_by_side": side_by_side(queries, gallery, given.k, given.block, given.blocks),
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
