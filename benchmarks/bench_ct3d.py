"""Compare our 3D ResNet-18 with torchvision's r3d_18 of the same weights: speed, agreement, training memory.

Prints one JSON document. Needs Linux and torchvision, which the package itself does not:

    pip install --no-deps --target DIR torchvision
    python benchmarks/bench_ct3d.py --torchvision DIR

Inference is timed in alternation, so that other load meets both; ``cpu_ratio`` (user and system seconds of
the process) is the fair one on a shared machine. Peak memory is what one training step (batch 1, forward and
backward, float32) adds to a process that holds the model: the high-water mark minus what was resident before,
after a step on a tiny volume has loaded all code. Each case runs in a process of its own.
"""

import argparse
import importlib
import importlib.metadata
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

from radtower.modeling.modeling_ct3d import CT3DVisionModel

TINY = (16, 32, 32)


def find_torchvision(folder: str | None) -> torch.library.Library:
    """Make torchvision importable; after transformers, which would import it and fail."""
    if folder is not None:
        sys.path.append(folder)
    # Beside a torch built for CPU its own operators do not load; the import asks for the schemas of two.
    library = torch.library.Library("torchvision", "FRAGMENT")
    for name in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, name):
            library.define(f"{name}(Tensor boxes, Tensor scores, float threshold) -> Tensor")
    return library


def build_torchvision() -> nn.Module:
    """r3d_18 without its head, seeded, with running statistics and scales that are not the identity."""
    torch.manual_seed(0)
    model = importlib.import_module("torchvision.models.video").r3d_18(weights=None)
    model.fc = nn.Identity()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.BatchNorm3d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_(0, 0.1)
        for _ in range(3):
            model.train()(torch.randn(2, 3, *TINY))
    return model


def build(name: str) -> nn.Module:
    """``torchvision`` in its default layout, or ``radtower`` with the same weights."""
    theirs = build_torchvision()
    if name == "torchvision":
        return theirs
    model = CT3DVisionModel.from_video_resnet(theirs.state_dict(), num_channels=3)
    if name == "radtower_checkpointed":
        model.activation_checkpointing_enable()
    return model


def embed(model: nn.Module, volume: torch.Tensor) -> torch.Tensor:
    """``(B, 512)`` from either model."""
    output = model(volume)
    return output if isinstance(output, torch.Tensor) else output.pooler_output


def cpu_seconds() -> float:
    """User and system time of this process."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_inference(size: tuple[int, int, int], rounds: int) -> dict[str, Any]:
    """Time both models in turn, after one round that does not count."""
    models = {name: build(name).eval() for name in ("torchvision", "radtower")}
    volume = torch.rand(1, 3, *size) * 2 - 1
    cpu: dict[str, list[float]] = {name: [] for name in models}
    wall: dict[str, list[float]] = {name: [] for name in models}
    outputs = {}
    with torch.inference_mode():
        for turn in range(rounds + 1):
            for name, model in models.items():
                start_cpu, start = cpu_seconds(), time.perf_counter()
                outputs[name] = embed(model, volume)
                if turn:
                    cpu[name].append(cpu_seconds() - start_cpu)
                    wall[name].append(time.perf_counter() - start)
    difference = (outputs["radtower"] - outputs["torchvision"]).abs().max()
    ratios = [theirs / ours for theirs, ours in zip(cpu["torchvision"], cpu["radtower"], strict=True)]
    return {
        "rounds": rounds,
        "max_relative_difference": float(difference / outputs["torchvision"].abs().max()),
        "cpu_seconds": {name: statistics.median(values) for name, values in cpu.items()},
        "wall_seconds": {name: statistics.median(values) for name, values in wall.items()},
        "cpu_ratio": statistics.median(ratios),
        "cpu_ratio_range": [min(ratios), max(ratios)],
        "wall_ratio": statistics.median(wall["torchvision"]) / statistics.median(wall["radtower"]),
    }


def measure_step_memory(name: str, size: tuple[int, int, int]) -> float:
    """MB that a training step adds to this process at its peak."""
    model = build(name).train()

    def step(shape: tuple[int, int, int]) -> None:
        embed(model, torch.rand(1, 3, *shape)).square().mean().backward()

    step(TINY)
    model.zero_grad(set_to_none=True)
    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
    resident_kb = pages * os.sysconf("SC_PAGE_SIZE") // 1024
    step(size)
    return (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - resident_kb) / 1024


def measure_memory(common: list[str]) -> dict[str, Any]:
    """Peak of a step of each case, in fresh processes."""
    peaks = {}
    for name in ("torchvision", "radtower", "radtower_checkpointed"):
        command = [sys.executable, __file__, "--memory-of", name, *common]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        peaks[name] = float(done.stdout)
    return {
        "peak_mb": peaks,
        "checkpointed_ratio": peaks["radtower_checkpointed"] / peaks["torchvision"],
        "plain_ratio": peaks["radtower"] / peaks["torchvision"],
    }


def _repeat(given: argparse.Namespace) -> list[str]:
    """The arguments that a process for one case needs too."""
    folder = [] if given.torchvision is None else ["--torchvision", given.torchvision]
    return ["--threads", str(given.threads), "--size", *map(str, given.size), *folder]


def main() -> None:
    """Run what the arguments ask for and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", type=int, nargs=3, default=(96, 192, 192), metavar=("Z", "Y", "X"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument(
        "--torchvision", metavar="DIR", help="folder it was installed to; else where Python looks"
    )
    parser.add_argument("--memory-of", help=argparse.SUPPRESS)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    size = tuple(given.size)
    library = find_torchvision(given.torchvision)  # its schemas live as long as it does
    if given.memory_of:
        print(measure_step_memory(given.memory_of, size))
        return
    result = {
        "size_zyx": size,
        "threads": given.threads,
        "torch": torch.__version__,
        "torchvision": importlib.metadata.version("torchvision"),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "inference": measure_inference(size, given.rounds),
        "training_memory": measure_memory(_repeat(given)),
    }
    print(json.dumps(result, indent=2))
    del library


if __name__ == "__main__":
    main()
