"""What ``radtower train`` has for pushing beside the training: options, and what they start."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from radtower.hub_cards.pushes.push_callback import RadTowerPushCallback

PushTo = Annotated[
    str | None,
    typer.Option(metavar="OWNER/NAME", help="Push checkpoints and the model to the Hub; private if new."),
]
PushPublic = Annotated[bool, typer.Option("--push-public", help="Visible to everyone.")]
PushTag = Annotated[str | None, typer.Option(help="Of the commit of the model in the end.")]
PushLicense = Annotated[str | None, typer.Option(help="Of the weights, e.g. apache-2.0.")]
PushWait = Annotated[float, typer.Option(min=0, help="Seconds to wait in the end for what is not sent.")]

DEFAULT_WAIT_S = 600.0  # that of push_worker.py, which imports torch


class PushBeside:
    """Pushes of one training, or nothing where no repository is given.

    Raises:
        ValueError: If the id has no owner, a name cannot be one of git, or an option comes without it.
    """

    _callback: "RadTowerPushCallback | None"

    def __init__(
        self, repo_id: str | None, is_public: bool, tag: str | None, license_id: str | None, wait_s: float
    ) -> None:
        self._callback = None
        if repo_id is None:
            self._refuse_alone(push_public=is_public or None, push_tag=tag, push_license=license_id)
            return
        from radtower.hub_cards.model_release import ModelReleaseOptions
        from radtower.hub_cards.pushes.push_callback import PushSettings, RadTowerPushCallback

        settings = PushSettings(
            is_public=is_public,
            tag=tag,
            release=ModelReleaseOptions(license_id=license_id),
            wait_s=wait_s,
            should_push_end=False,  # weights are averaged or merged behind the last step
        )
        self._callback = RadTowerPushCallback(repo_id, settings, print)

    def run(self, train: Callable[[list["RadTowerPushCallback"]], Path]) -> Path:
        """Train with the callback, push the folder that comes back, and return it."""
        folder = train([] if self._callback is None else [self._callback])
        if self._callback is not None:
            self._callback.push_final(folder)
        return folder

    @staticmethod
    def _refuse_alone(**given: object) -> None:
        names = [f"--{name.replace('_', '-')}" for name, value in given.items() if value is not None]
        if names:
            raise ValueError(f"--push-to must be given for {', '.join(names)}, got none. Say where to push.")
