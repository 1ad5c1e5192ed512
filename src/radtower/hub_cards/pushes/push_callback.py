"""A callback of the Trainer that pushes every checkpoint, and the model in the end, beside the training."""

import logging
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from radtower.data.publish import PushTarget, check_repo_id
from radtower.hub_cards.model_release import OWNED_FILES, ModelReleaseOptions, prepare_model
from radtower.hub_cards.pushes.push_queue import MAX_GB, PushOrder, PushQueue, queue_folder, without_token
from radtower.hub_cards.pushes.push_worker import WAIT_S, PushWorker

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class PushSettings:
    """How a training is pushed.

    Args:
        is_public: Make a new repository public; one that is public needs it, too.
        tag: Name for the commit of the model in the end. None names nothing.
        release: License and the like; see :class:`ModelReleaseOptions`.
        wait_s: At most waited at the end for what is not sent yet, in seconds.
        max_gb: See :class:`PushQueue`.
        should_keep_all: Send every checkpoint. False sends the newest of those that wait.
        should_push_end: Push the model when training ends. False leaves it to :meth:`push_final`, for
            trainers that change the weights afterwards.
    """

    is_public: bool = False
    tag: str | None = None
    release: ModelReleaseOptions = field(default_factory=ModelReleaseOptions)
    wait_s: float = WAIT_S
    max_gb: float = MAX_GB
    should_keep_all: bool = False
    should_push_end: bool = True

    def __post_init__(self) -> None:
        PushTarget(tag=self.tag)  # refused now, not after days
        if self.wait_s < 0:
            raise ValueError(
                f"wait_s must be at least 0, got {self.wait_s}. 0 leaves what is not sent to the next run."
            )


class RadTowerPushCallback(TrainerCallback):
    """Exports what the Trainer saves and pushes it from a thread: ``Trainer(callbacks=[...])``.

    Each checkpoint becomes an export in ``OUTPUT_DIR/pushes/``, checked as ``radtower push`` does, and then a
    commit on the main branch. Training waits for the export, never for the network. Nothing that goes wrong
    here ends the training; it is said, and what could not be sent waits on disk for the next run or for
    ``radtower push --pending OUTPUT_DIR``. Only the first process of several does all that.

    Args:
        repo_id: ``owner/name`` of the model on the Hub.
        settings: The rest.
        on_note: Takes each sentence about what was sent, and what was not.

    Raises:
        ValueError: If the id has no owner.
    """

    def __init__(
        self,
        repo_id: str,
        settings: PushSettings = PushSettings(),
        on_note: Callable[[str], None] = logger.warning,
    ) -> None:
        check_repo_id(repo_id)
        self.repo_id, self.settings, self.on_note = repo_id, settings, on_note
        self._worker: PushWorker | None = None
        self._num_steps = 0

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Begin to send, with what an earlier run has left."""
        if not state.is_world_process_zero or self._worker is not None:
            return
        queue = PushQueue(queue_folder(str(args.output_dir)), max_gb=self.settings.max_gb)
        self._worker = PushWorker(queue, self.on_note)
        self._worker.start()

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Export the checkpoint and put it into the queue."""
        folder = Path(str(args.output_dir)) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        self._add(folder, f"Training: step {state.global_step:,}", PushTarget())

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Push the model as it is now, and wait for what is on its way."""
        self._num_steps = state.global_step
        if not self.settings.should_push_end or self._worker is None:
            return
        with tempfile.TemporaryDirectory(dir=str(args.output_dir), prefix=".radtower-end-") as scratch:
            folder = Path(scratch) / "model"
            try:
                kwargs["model"].save_pretrained(folder)
                if kwargs.get("processing_class") is not None:
                    kwargs["processing_class"].save_pretrained(folder)
            except Exception as error:  # such as weights that lie in shards
                self._say_kept("The model", error)
            else:
                self._add(folder, self._final_message, PushTarget(tag=self.settings.tag))
        self._finish()

    def push_final(self, folder: str | Path) -> int:
        """Push the folder of the model in the end, and wait at most ``wait_s`` of the settings.

        Returns:
            How many pushes still wait; 0 in all processes but the first.
        """
        self._add(Path(folder), self._final_message, PushTarget(tag=self.settings.tag))
        return self._finish()

    @property
    def _final_message(self) -> str:
        return f"Training: the model after {self._num_steps:,} steps"

    def _add(self, folder: Path, message: str, target: PushTarget) -> None:
        if self._worker is None:
            return
        try:
            with prepare_model(folder, self.repo_id, self.settings.release) as release:
                order = PushOrder(
                    repo_id=self.repo_id,
                    repo_type="model",
                    message=message,
                    is_public=self.settings.is_public,
                    owned_files=OWNED_FILES,
                    target=target,
                    is_kept=self.settings.should_keep_all,
                )
                self._worker.queue.add(release.folder, order)
        except Exception as error:  # a checkpoint that cannot be exported must not end the training
            self._say_kept(folder.name, error)
        else:
            self._worker.wake()

    def _say_kept(self, what: str, error: Exception) -> None:
        said = error.args[0] if isinstance(error, KeyError) and error.args else error
        self.on_note(f"{what} is not pushed: {without_token(str(said)) or type(error).__name__}")

    def _finish(self) -> int:
        if self._worker is None:
            return 0
        worker, self._worker = self._worker, None
        return worker.finish(self.settings.wait_s)
