"""Search among a million vectors: build, memory, latency and recall of every backend.

    python benchmarks/bench_search.py                                 # 1,000,000 x 128, all backends
    python benchmarks/bench_search.py --count 20000 --dimension 64    # a minute
    python benchmarks/bench_search.py --only exact --dimension 512

Building and querying are processes of their own. Memory is the peak of what a process holds itself
(``anonymous_mb``) above what its libraries take; pages of the vectors, which stay on the disk, are counted
apart (``mapped_mb``) and can be dropped by the system at any time. Vectors are made, not of a model: clusters
of clusters with a falling spectrum, unit length. ``recall_at_10`` is against exact search, for new vectors
like the items (``near``) and for some moved away from all of them, as texts are from scans (``shifted``).
Axes: N items, E embedding, Q queries.
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from typing import Any

import numpy as np

BLOCK = 16_384
NUM_LATENCY, NUM_RECALL = 50, 200
BACKENDS = ("exact", "flat", "hnsw", "ivf-pq")
SPLITS = 10  # the filter passes a tenth
FILTER = ("split=part3",)
# Name, how far away from the items, filter.
QUERIES = (("near", 0.0, ()), ("shifted", 1.5, ()), ("near_filtered", 0.0, FILTER))


def vectors_of(count: int, dimension: int, seed: int, shift: float = 0.0) -> Iterator[np.ndarray]:
    """``(n, E)`` blocks, N rows in all: 200 groups of 50 clusters, of noise that falls off along the axes."""
    fixed = np.random.default_rng(0)
    spectrum = (1 + np.arange(dimension, dtype=np.float32)) ** -0.5
    groups = fixed.normal(size=(200, dimension)).astype(np.float32) * spectrum
    clusters = fixed.normal(size=(200 * 50, dimension)).astype(np.float32) * spectrum * 0.7
    away = fixed.normal(size=dimension).astype(np.float32) * spectrum
    for number, start in enumerate(range(0, count, BLOCK)):
        rng = np.random.default_rng((seed, number))
        rows = min(BLOCK, count - start)
        which = (len(clusters) * rng.random(rows) ** 2).astype(np.int64)  # some are common, most are rare
        block = groups[which // 50] + clusters[which]
        block += rng.standard_normal((rows, dimension), dtype=np.float32) * spectrum * 0.6
        block += shift * away
        yield block / np.linalg.norm(block, axis=1, keepdims=True)


def source_of() -> Any:
    """What the vectors claim to be of."""
    from radtower.evaluation.features import FeatureSource

    return FeatureSource(
        kind="image", model_id="made", model_revision=None, processor_hash=None, is_normalized=True
    )


def run_build(folder: Path, backend: str, count: int, dimension: int, dtype: str) -> dict[str, Any]:
    """Write the index of streamed vectors."""
    from radtower.evaluation.search.build_index import IndexOptions, write_index
    from radtower.evaluation.search.items import make_items

    if backend != "exact":
        import radtower.evaluation.search.faiss_backend  # noqa: F401 -- not part of the measurement
    items = make_items(
        [f"v{row}" for row in range(count)], {"split": [f"part{row % SPLITS}" for row in range(count)]}
    )
    options = IndexOptions(backend=backend, dtype=dtype)
    about, measured = watched(
        lambda: write_index(source_of(), vectors_of(count, dimension, 1), items, folder, options)
    )
    sizes = {path.name: round(path.stat().st_size / 1e6, 1) for path in folder.iterdir()}
    recall = about.recall.model_dump() if about.recall else None
    return {**measured, "disk_mb": sizes, "parameters": about.parameters, "stored_recall": recall}


def run_query(folder: Path, exact: Path, dimension: int) -> dict[str, Any]:
    """Open the index and ask it."""
    import torch

    from radtower.evaluation.features import Features
    from radtower.evaluation.search.search_index import SearchIndex

    def features(num: int, shift: float = 0.0) -> Features:
        found = torch.from_numpy(np.concatenate(list(vectors_of(num, dimension, 2, shift))))
        return Features(found, [f"q{row}" for row in range(num)], source_of())

    one = [
        Features(features(NUM_LATENCY).vectors[row : row + 1], ["q"], source_of())
        for row in range(NUM_LATENCY)
    ]
    index, opened = watched(lambda: SearchIndex(folder))
    index.search(one[0])  # the first one reads what is not in memory yet
    told: dict[str, Any] = {"open": opened}
    told["one_query_ms"] = latencies(lambda query: index.search(query), one)
    told["one_query_filtered_ms"] = latencies(lambda query: index.search(query, 10, FILTER), one[:20])
    many = features(NUM_RECALL)
    _, measured = watched(lambda: index.search(many))
    told["queries_per_second_in_batches"] = round(NUM_RECALL / measured["seconds"], 1)
    told["memory_mb"] = held()
    told["recall_at_10"] = {"num_queries": NUM_RECALL}
    for name, shift, filters in QUERIES:
        found = index.search(features(NUM_RECALL, shift), 10, filters).rows
        truth = exact / f"truth_{name}.npy"
        if folder == exact:
            np.save(truth, found)
        shares = [len(set(a) & set(b)) / 10 for a, b in zip(found, np.load(truth), strict=True)]
        told["recall_at_10"][name] = round(float(np.mean(shares)), 4)
    return told


def latencies(ask: Callable[[Any], Any], queries: list[Any]) -> dict[str, float]:
    """Median and 95th percentile, in milliseconds."""
    seconds = []
    for query in queries:
        start = time.perf_counter()
        ask(query)
        seconds.append(time.perf_counter() - start)
    return {
        "median": round(1e3 * float(np.median(seconds)), 2),
        "p95": round(1e3 * float(np.quantile(seconds, 0.95)), 2),
    }


def held() -> dict[str, float]:
    """Megabytes that this process holds itself, and that it sees of files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return {
        "anonymous_mb": int(lines["RssAnon"].split()[0]) / 1024,
        "mapped_mb": int(lines["RssFile"].split()[0]) / 1024,
    }


def watched(action: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result, its seconds, and the peak of memory above the start."""
    before, peak, is_done = held(), held(), Event()

    def watch() -> None:
        while not is_done.wait(0.02):
            for name, value in held().items():
                peak[name] = max(peak[name], value)

    watcher = Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    try:
        result = action()
    finally:
        seconds = time.perf_counter() - start
        is_done.set()
        watcher.join()
    for name, value in held().items():
        peak[name] = max(peak[name], value)
    above = {f"peak_{name}": round(peak[name] - before[name], 1) for name in peak}
    return result, {"seconds": round(seconds, 2), **above}


def in_process(*arguments: object) -> dict[str, Any]:
    """Run this file with other arguments and read what it prints."""
    command = [sys.executable, __file__, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{arguments[:2]} failed: {done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=128)
    parser.add_argument("--dtype", choices=("float32", "float16"), default="float32")
    parser.add_argument("--only", choices=BACKENDS, action="append")
    parser.add_argument("--folder", type=Path, help="Where indexes are written. Without: a temporary folder.")
    parser.add_argument("--step", choices=("build", "query"), help=argparse.SUPPRESS)
    parser.add_argument("--index", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--exact", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--backend", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.step == "build":
        print(
            json.dumps(
                run_build(options.index, options.backend, options.count, options.dimension, options.dtype)
            )
        )
        return
    if options.step == "query":
        print(json.dumps(run_query(options.index, options.exact, options.dimension)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        print(json.dumps(measure(options, Path(name)), indent=1))


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Build and ask each backend; exact search is built first, because the others are compared with it."""
    import faiss
    import torch

    size = ("--count", options.count, "--dimension", options.dimension, "--dtype", options.dtype)
    document: dict[str, Any] = {
        "vectors": [options.count, options.dimension],
        "dtype": options.dtype,
        "threads": torch.get_num_threads(),
        "faiss": faiss.__version__,
        "torch": torch.__version__,
    }
    wanted = options.only or BACKENDS
    for backend in dict.fromkeys(("exact", *wanted)):
        index = folder / backend
        built = in_process("--step", "build", "--index", index, "--backend", backend, *size)
        if backend in wanted or backend == "exact":  # it writes what is true
            asked = in_process("--step", "query", "--index", index, "--exact", folder / "exact", *size)
            document[backend] = {"build": built, "query": asked}
            print(f"{backend} done", file=sys.stderr)
    return document


if __name__ == "__main__":
    main()
