"""An exponential moving average of the weights: what is evaluated and saved where it is on."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from radtower.training.shards import cut_like, local_part, whole_tensors

AVERAGE_FILE = "weight_average.safetensors"


class WeightAverage(TrainerCallback):
    """Average the weights over the optimizer steps, running statistics of the normalization included.

    After step t the average moves by ``1 - min(decay, (1 + t) / (10 + t))`` toward the weights, so that the
    random start is forgotten in a short run, too: the warm-up of TensorFlow's ExponentialMovingAverage.

    Args:
        decay: What is kept of the average per step, late in training; in (0, 1).

    Raises:
        ValueError: If ``decay`` is outside (0, 1).
    """

    def __init__(self, decay: float) -> None:
        if not 0.0 < decay < 1.0:
            raise ValueError(
                f"ema_decay must be in (0, 1), got {decay!r}. Use 0.999, or None for no average."
            )
        self.decay = decay
        self.values: dict[str, torch.Tensor] = {}
        self.resume_from: Path | None = None  # the checkpoint, set by whoever resumes

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Start from the weights, or from where the checkpoint stopped.

        Raises:
            FileNotFoundError: If the run that is resumed kept no average.
        """
        model: nn.Module = kwargs["model"]
        if self.resume_from is None:
            self.values = _copy_of(model)
        else:
            self.load(self.resume_from, model)

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        decay = min(self.decay, (1 + state.global_step) / (10 + state.global_step))
        with torch.no_grad():
            for name, value in kwargs["model"].state_dict().items():
                average, own = local_part(self.values[name]), local_part(value)
                if value.is_floating_point():
                    average.lerp_(own, 1 - decay)
                else:  # a count
                    average.copy_(own)

    @contextmanager
    def applied_to(self, model: nn.Module) -> Iterator[None]:
        """Give ``model`` the average for a while."""
        own = _copy_of(model)
        model.load_state_dict(self.values)
        try:
            yield
        finally:
            model.load_state_dict(own)

    def save(self, checkpoint: str | Path, *, is_written: bool = True) -> None:
        """Write the average beside the weights of a checkpoint.

        Where weights lie in shards, all processes must call it.

        Args:
            checkpoint: Folder.
            is_written: Whether this process is the one that writes.
        """
        values = whole_tensors(self.values, is_kept=is_written)
        if is_written:
            # A channels-last view is not contiguous; values and names are what counts.
            save_file(
                {name: value.contiguous() for name, value in values.items()}, Path(checkpoint) / AVERAGE_FILE
            )

    def load(self, checkpoint: str | Path, model: nn.Module) -> None:
        """Read the average of a checkpoint, onto the device and in the shards of ``model``.

        Raises:
            FileNotFoundError: If there is none.
        """
        path = Path(checkpoint) / AVERAGE_FILE
        if not path.is_file():
            raise FileNotFoundError(
                f"a checkpoint must hold {AVERAGE_FILE} where ema_decay is set, got none in {checkpoint}. "
                "Resume with the settings of the run that made it."
            )
        self.values = cut_like(load_file(path), model)


def require_averageable(state: Any, decay: float | None) -> None:
    """Refuse an average where the weights that the callback sees are not those that are trained.

    Args:
        state: Of accelerate: what it does with the weights.
        decay: None averages nothing, which is always possible.

    Raises:
        ValueError: If DeepSpeed keeps the trained weights in its optimizer, or FSDP is that of version 1.
    """
    if decay is None:
        return
    fsdp = getattr(state, "fsdp_plugin", None)
    if getattr(state, "deepspeed_plugin", None) is not None or (fsdp is not None and fsdp.fsdp_version == 1):
        kind = "DeepSpeed" if fsdp is None else "FSDP of version 1"
        raise ValueError(
            f"ema_decay must be None with {kind}, which hides the weights that are trained, got {decay}. "
            "Train with DDP or fsdp_version 2, or without an average."
        )


def _copy_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
