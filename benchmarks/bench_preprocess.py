"""Throughput and peak memory of preprocessing ``.nii.gz`` scans, beside the equivalent MONAI pipeline.

    pip install --no-deps monai
    python benchmarks/bench_preprocess.py

Both read the same synthetic files and return the same geometry: 1 x 96 x 192 x 192 at 3 x 1.5 x 1.5 mm, in
[-1, 1]. Each pipeline runs in processes of its own, one thread each, in turns, so that whatever else the
machine does hits both. Linux only. Prints one JSON document. The files are ellipsoids under noise: they stand
for the size and the entropy of a scan, and for nothing else.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

SHAPE, SIZE, SPACING_MM = (300, 512, 512), (96, 192, 192), (3.0, 1.5, 1.5)
WINDOW_HU, WHOLE_RANGE_HU = (-1000.0, 200.0), (-1024.0, 3071.0)
# LPS, as this project and SimpleITK hold scans, and RAS, as nibabel and most NIfTI writers do.
DIRECTIONS = ([1, 0, 0, 0, 1, 0, 0, 0, 1], [-1, 0, 0, 0, -1, 0, 0, 0, 1])
# MONAI keeps the first voxel where it was and crops whole voxels; RadTower keeps the center. With these
# spacings an even number of output voxels spans the scan exactly: both grids coincide, and outputs compare.
SCAN_SPACING_MM = (3.0 * 125 / 299, 1.5 * 255 / 511, 1.5 * 255 / 511)
PIPELINES = ("radtower", "monai", "radtower_linear", "monai_linear")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=5, help="processes of each pipeline and kind of file")
    parser.add_argument("--files", type=int, default=3, help="scans that each process reads")
    parser.add_argument("--worker", nargs=2, metavar=("PIPELINE", "FOLDER"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(run_worker(*arguments.worker)))
        return
    with tempfile.TemporaryDirectory() as folder:
        results = {}
        for dtype in ("int16", "float32"):
            scans = Path(folder) / dtype
            write_scans(scans, arguments.files, dtype)
            results[dtype] = compare(scans, arguments.repeats)
        print(json.dumps({"scan": SHAPE, "output": SIZE, "cores": os.cpu_count(), **results}, indent=1))


def compare(scans: Path, repeats: int) -> dict[str, Any]:
    """Run both pipelines in turns and return the medians and their ratios."""
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in PIPELINES}
    for turn in range(repeats):
        for name in ("radtower", "monai") if turn else PIPELINES:
            runs[name].append(start_worker(name, scans))
    ours, theirs = runs["radtower"], runs["monai"]
    outputs = {name: np.load(scans / f"{name}.npy") for name in PIPELINES}
    return {
        "files": len(list(scans.glob("*.nii.gz"))),
        "megabytes_of_a_file": round(next(scans.glob("*.nii.gz")).stat().st_size / 1e6),
        "seconds_per_scan": {"radtower": mid(ours, "seconds"), "monai": mid(theirs, "seconds")},
        "throughput_ratio": round(mid(theirs, "seconds") / mid(ours, "seconds"), 2),
        "throughput_ratio_of_each_turn": [
            round(b["seconds"] / a["seconds"], 2) for a, b in zip(ours, theirs, strict=True)
        ],
        "peak_megabytes": {"radtower": mid(ours, "peak_mb"), "monai": mid(theirs, "peak_mb")},
        "megabytes_after_import": {"radtower": mid(ours, "import_mb"), "monai": mid(theirs, "import_mb")},
        "peak_memory_ratio": round(mid(ours, "peak_mb") / mid(theirs, "peak_mb"), 3),
        "peak_memory_ratio_above_import": round(above_import(ours) / above_import(theirs), 3),
        # One window over all values and no low-pass: the same arithmetic, so what is left is rounding.
        "largest_difference_hu_same_arithmetic": largest_hu(
            outputs["radtower_linear"], outputs["monai_linear"]
        ),
        # As used: the low-pass takes away noise that linear interpolation keeps, and RadTower clamps to the
        # window before it interpolates, so that metal does not bleed into its neighbors.
        "mean_difference_hu_as_used": mean_hu(outputs["radtower"], outputs["monai"]),
    }


def largest_hu(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(abs(one - other).max()) / 2 * (WHOLE_RANGE_HU[1] - WHOLE_RANGE_HU[0]), 3)


def mean_hu(one: np.ndarray, other: np.ndarray) -> float:
    return round(float(abs(one - other).mean()) / 2 * (WINDOW_HU[1] - WINDOW_HU[0]), 1)


def mid(runs: list[dict[str, Any]], key: str) -> float:
    return round(median(run[key] for run in runs), 3)


def above_import(runs: list[dict[str, Any]]) -> float:
    return median(run["peak_mb"] - run["import_mb"] for run in runs)


def start_worker(pipeline: str, scans: Path) -> dict[str, Any]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "ITK_GLOBAL_DEFAULT_NUMBER_OF_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, "--worker", pipeline, str(scans)],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return dict(json.loads(done.stdout.splitlines()[-1]))


def run_worker(pipeline: str, folder: str) -> dict[str, Any]:
    """Preprocess every scan of the folder in this process and measure it."""
    is_linear = pipeline.endswith("_linear")
    preprocess = (radtower_pipeline if pipeline.startswith("radtower") else monai_pipeline)(is_linear)
    import_mb = peak_megabytes()
    paths = sorted(Path(folder).glob("*.nii.gz"))
    start = time.perf_counter()
    for path in paths:
        output = preprocess(path)
    seconds = (time.perf_counter() - start) / len(paths)
    peak_mb = peak_megabytes()
    np.save(Path(folder) / f"{pipeline}.npy", output)
    return {"seconds": seconds, "peak_mb": peak_mb, "import_mb": import_mb}


def peak_megabytes() -> float:
    """Return the peak of this program alone; ``ru_maxrss`` would begin with that of the parent process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    (line,) = (line for line in status.splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def radtower_pipeline(is_linear: bool) -> Callable[[Path], np.ndarray]:
    import torch

    torch.set_num_threads(1)
    import radtower

    window_hu = WHOLE_RANGE_HU if is_linear else WINDOW_HU
    processor = radtower.CT3DImageProcessor(SPACING_MM, SIZE, [window_hu], antialias=not is_linear)
    return lambda path: processor(path)["pixel_values"][0, 0].numpy()


def monai_pipeline(is_linear: bool) -> Callable[[Path], np.ndarray]:
    import torch

    torch.set_num_threads(1)
    from monai.transforms import (
        Compose,
        EnsureChannelFirst,
        LoadImage,
        Orientation,
        ResizeWithPadOrCrop,
        ScaleIntensityRange,
        Spacing,
    )

    window_hu = WHOLE_RANGE_HU if is_linear else WINDOW_HU
    pipeline = Compose(
        [
            LoadImage(image_only=True),
            EnsureChannelFirst(),
            Orientation("LPS"),
            Spacing(SPACING_MM[::-1], mode="bilinear"),
            ScaleIntensityRange(*window_hu, -1.0, 1.0, clip=True),
            ResizeWithPadOrCrop(SIZE[::-1], mode="constant", value=-1.0),
        ]
    )
    return lambda path: pipeline(path)[0].numpy().transpose(2, 1, 0)


def write_scans(folder: Path, num_files: int, dtype: str) -> None:
    """Write noisy bodies of air, soft tissue, lung and bone, stored as MONAI and scanners write them."""
    import SimpleITK as sitk
    from scipy.ndimage import gaussian_filter

    folder.mkdir()
    for seed in range(num_files):
        rng = np.random.default_rng(seed)
        noise = gaussian_filter(rng.normal(size=SHAPE).astype(np.float32), (0.3, 0.7, 0.7))
        volume = body() + noise * (25.0 / noise.std())  # 25 HU: a usual dose
        image = sitk.GetImageFromArray(np.clip(volume.round(), -1024, 3071).astype(dtype))
        image.SetSpacing(SCAN_SPACING_MM[::-1])
        image.SetDirection(DIRECTIONS[seed % 2])
        sitk.WriteImage(image, str(folder / f"{seed}.nii.gz"), useCompression=True)


def body() -> np.ndarray:
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    volume = np.full(SHAPE, -1000.0, np.float32)
    is_body = ((y - 256) / 180) ** 2 + ((x - 256) / 230) ** 2 < 1
    volume[np.broadcast_to(is_body, SHAPE)] = 40
    volume[((y - 250) / 120) ** 2 + ((abs(x - 256) - 110) / 85) ** 2 + ((z - 160) / 130) ** 2 < 1] = -850
    is_spine = ((y - 380) / 30) ** 2 + ((x - 256) / 30) ** 2 < 1
    volume[np.broadcast_to(is_spine, SHAPE)] = 400
    return volume


if __name__ == "__main__":
    main()
