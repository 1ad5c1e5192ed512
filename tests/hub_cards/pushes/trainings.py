"""Trainings of two findings on phantoms, which a test runs as a process: ``trainings.py CASE OUTPUT``."""

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from radtower.data import hub_requests, publish
from radtower.hub_cards.pushes import push_queue
from radtower.hub_cards.pushes.push_callback import PushSettings, RadTowerPushCallback

sys.path.insert(0, str(Path(__file__).parents[2]))
from hub_contract.stock_models import build_trainer


def train(output: Path, *callbacks: TrainerCallback) -> None:
    """Three steps of the stock Trainer; checkpoints after the second and the third."""
    trainer = build_trainer("image", output)
    for callback in callbacks:
        trainer.add_callback(callback)
    trainer.train()


class _Pause(TrainerCallback):
    """Waits, after the second step has been saved, until the test has taken the network away."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        while state.global_step == 2 and not self.flag.exists():
            time.sleep(0.02)


def resume(output: Path, callback: RadTowerPushCallback) -> None:
    """Two steps more than the three of before, from the last checkpoint."""
    trainer = build_trainer("image", output, max_steps=5)
    trainer.add_callback(callback)
    trainer.train(resume_from_checkpoint=True)


def main(case: str, output: Path) -> None:
    publish.WAITS_S = hub_requests.WAITS_S = (0.0, 0.0, 0.0)
    if case == "killed":  # between the queue and the Hub

        def kill(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        push_queue.push_folder = kill
    wait_s = 0.5 if case in ("lost", "cut") else 60.0
    tag = "v2" if case == "resumed" else "v1"
    callback = RadTowerPushCallback("tester/tower", PushSettings(tag=tag, wait_s=wait_s), print)
    if case == "resumed":
        resume(output, callback)
    else:
        train(output, callback, *([_Pause(output / "network-is-gone")] if case == "cut" else []))
    sys.stdout.write("trained\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
