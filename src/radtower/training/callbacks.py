"""Hooks for ``transformers.Trainer``. A callback reads state; it never runs the model."""

import json
import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

LOG_FILE = "training_log.jsonl"


logger = logging.getLogger(__name__)


class NoteLongWarmup(TrainerCallback):
    """Says before the first step that the learning rate will never be what the settings say."""

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Compare the warm-up with all steps, which are known by now."""
        if args.lr_scheduler_type == "constant" or not state.is_world_process_zero:
            return
        warmup = args.get_warmup_steps(state.max_steps)
        if warmup and warmup >= state.max_steps:
            logger.warning(
                "warmup_steps should be below the %d steps of the training, got %d: the learning rate "
                "ends at %.2g of %.2g. Lower it.",
                state.max_steps,
                warmup,
                args.learning_rate * state.max_steps / warmup,
                args.learning_rate,
            )


class StopOnNonFiniteLoss(TrainerCallback):
    """Fail at the first log of a diverged loss or gradient; ``logging_steps`` sets how soon that is.

    Every checkpoint is preceded by a log, so that none holds diverged weights: the last one can be resumed.
    """

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Refuse a run in which the divergence could not be seen.

        Raises:
            ValueError: If the Trainer replaces nan and inf by an average before it logs.
        """
        if args.logging_nan_inf_filter:
            raise ValueError(
                f"logging_nan_inf_filter must be False, got {args.logging_nan_inf_filter}. "
                "Set it in the training arguments: the default hides a diverged loss."
            )

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = control.should_log or control.should_save

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        control.should_log = control.should_log or control.should_save

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Check the last mean training loss, and the last norm of the gradient.

        Raises:
            FloatingPointError: If one is nan or infinite.
        """
        for name in ("loss", "grad_norm"):
            value = kwargs["logs"].get(name, 0.0)  # absent from evaluation logs
            # In float16 an infinite gradient is part of the plan: the step is skipped and the scale halved.
            if not math.isfinite(value) and not (name == "grad_norm" and args.fp16):
                raise FloatingPointError(
                    f"{name} must be finite, got {value} at step {state.global_step}. "
                    "Resume from the last checkpoint with a lower max_grad_norm, or start again with a lower "
                    "learning_rate."
                )


class JsonLinesLog(TrainerCallback):
    """Write every log as one line of ``training_log.jsonl`` in the output folder.

    A resumed run goes on behind the lines of its checkpoint: what a killed run logged beyond is done again.

    Attributes:
        beside: What the next line has besides, such as lists, which other logs of the Trainer do not take.
    """

    def __init__(self) -> None:
        self.beside: dict[str, Any] = {}

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            path = _log_file(args)
            path.parent.mkdir(parents=True, exist_ok=True)
            kept = _lines_up_to(state.global_step, path) if state.global_step else []
            path.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")

    def on_log(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if state.is_world_process_zero:
            line = json.dumps({"step": state.global_step, **kwargs["logs"], **self.beside})
            self.beside = {}
            with _log_file(args).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


class SetDatasetEpoch(TrainerCallback):
    """Tell the training data which epoch begins.

    accelerate does it in a single process; in several it tells the sampler only.
    """

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        dataset = kwargs["train_dataloader"].dataset
        if hasattr(dataset, "set_epoch"):
            dataset.set_epoch(int(state.epoch or 0))  # resumed within an epoch, it is a fraction


class OnStep(TrainerCallback):
    """Report progress to someone else's bar.

    Args:
        on_progress: Called after each optimizer step with the step and the number of steps.
    """

    def __init__(self, on_progress: Callable[[int, int], None]) -> None:
        self.on_progress = on_progress

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self.on_progress(state.global_step, state.max_steps)


def _lines_up_to(step: int, path: Path) -> list[str]:
    """Lines of a log until a step; a last one that a kill has cut is none."""
    whole = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    return [line for line in whole if json.loads(line)["step"] <= step]


def _log_file(args: TrainingArguments) -> Path:
    return Path(str(args.output_dir)) / LOG_FILE
