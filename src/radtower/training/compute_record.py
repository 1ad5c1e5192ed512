"""What a run was computed on and for how long, for its ``run.yaml`` and the card of its model."""

import platform
import time
from pathlib import Path
from typing import Any

import torch
import yaml
from transformers import TrainingArguments

from radtower.training.arguments import RECORD_FILE


class ComputeClock:
    """Counts the hours of a run, over all the times that it was resumed."""

    def __init__(self) -> None:
        self._hours_before: float | None = None
        self._began: float | None = None

    def start(self, checkpoint: str | None) -> None:
        """Begin to count; behind the hours of the checkpoint that the run goes on from, if there is one."""
        self._hours_before = 0.0 if checkpoint is None else _hours_of(Path(checkpoint))
        self._began = time.monotonic()

    def record(self, arguments: TrainingArguments) -> dict[str, Any]:
        """Return device, number of processes, and hours on the clock, None where a part is not known."""
        hours = None
        if self._began is not None and self._hours_before is not None:
            hours = round(self._hours_before + (time.monotonic() - self._began) / 3600, 4)
        return {
            "device": _device_name(arguments.device),
            "num_processes": arguments.world_size,
            "hours": hours,
        }


def _device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{device.type}, {platform.machine()}"


def _hours_of(checkpoint: Path) -> float | None:
    """Of a run until its checkpoint; None where an older version wrote no hours."""
    path = checkpoint / RECORD_FILE
    record = yaml.safe_load(path.read_text(encoding="utf-8")) if path.is_file() else {}
    hours = (record.get("compute") or {}).get("hours")
    return None if hours is None else float(hours)
