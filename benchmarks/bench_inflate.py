"""Seconds to inflate one ``.nii.gz`` with four libraries, and to preprocess it with two of them.

    pip install zlib-ng
    python benchmarks/bench_inflate.py

One process, one thread, in turns; CPU seconds, medians. Prints one JSON document. The file is the one of
``bench_preprocess.py``.
"""

import gzip
import json
import tempfile
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from bench_preprocess import SIZE, SPACING_MM, WINDOW_HU, write_scans
from isal import isal_zlib
from zlib_ng import zlib_ng

import radtower
from radtower.processing.reading import nifti

ROUNDS = 9  # the first is not counted


def inflate(path: Path, library: Any) -> None:
    """Inflate in pieces of the size that the reader uses."""
    member = library.decompressobj(nifti.GZIP_WINDOW_BITS)
    with path.open("rb") as stream:
        while piece := stream.read(nifti.CHUNK_BYTES):
            member.decompress(piece)


def inflate_with_gzip(path: Path) -> None:
    with gzip.open(path) as stream:
        stream.read()


def preprocess(path: Path, library: Any) -> None:
    nifti.isal_zlib = library  # the reader uses nothing else of it
    processor = radtower.CT3DImageProcessor(SPACING_MM, SIZE, [WINDOW_HU])
    processor(path)


def cpu_seconds(cases: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Median over the rounds of each case, in turns."""
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for _ in range(ROUNDS):
        for name, case in cases.items():
            start = time.process_time()
            case()
            seconds[name].append(time.process_time() - start)
    return {name: round(median(values[1:]), 3) for name, values in seconds.items()}


def main() -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {"rounds": ROUNDS - 1}
    with tempfile.TemporaryDirectory() as folder:
        for dtype in ("int16", "float32"):
            write_scans(Path(folder) / dtype, 1, dtype)
            path = Path(folder) / dtype / "0.nii.gz"
            libraries = {"zlib": zlib, "isal": isal_zlib, "zlib-ng": zlib_ng}
            whole = {name: libraries[name] for name in ("zlib", "isal")}
            results[dtype] = {
                "inflate": cpu_seconds(
                    {"gzip.open": lambda path=path: inflate_with_gzip(path)}
                    | {name: lambda p=path, lib=lib: inflate(p, lib) for name, lib in libraries.items()}
                ),
                "preprocess": cpu_seconds(
                    {name: lambda p=path, lib=lib: preprocess(p, lib) for name, lib in whole.items()}
                ),
            }
    print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
