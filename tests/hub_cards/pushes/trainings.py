"""Trainings of two findings on phantoms, which a test runs as a process: ``trainings.py CASE OUTPUT``."""

import os
import signal
import sys
from pathlib import Path

from radtower.data import hub_requests, publish
from radtower.hub_cards.pushes import push_queue
from radtower.hub_cards.pushes.push_callback import PushSettings, RadTowerPushCallback

sys.path.insert(0, str(Path(__file__).parents[2]))
from hub_contract.stock_models import build_trainer


def train(output: Path, callback: RadTowerPushCallback) -> None:
    """Three steps of the stock Trainer; checkpoints after the second and the third."""
    trainer = build_trainer("image", output)
    trainer.add_callback(callback)
    trainer.train()


def main(case: str, output: Path) -> None:
    publish.WAITS_S = hub_requests.WAITS_S = (0.0, 0.0, 0.0)
    if case == "killed":  # between the queue and the Hub

        def kill(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        push_queue.push_folder = kill
    wait_s = {"whole": 60.0, "lost": 0.5, "killed": 60.0, "again": 60.0}[case]
    callback = RadTowerPushCallback("tester/tower", PushSettings(tag="v1", wait_s=wait_s), print)
    train(output, callback)
    sys.stdout.write("trained\n")


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
