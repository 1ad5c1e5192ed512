"""Trainers: what ``transformers.Trainer`` lacks for these models, and nothing that it has."""

from pathlib import Path
from typing import Any

import numpy as np
from torch import nn
from transformers import EvalPrediction, PrinterCallback, Trainer

from radtower.evaluation.metrics import macro_auroc
from radtower.modeling.losses import UNKNOWN_LABEL
from radtower.training.arguments import ClipRun, LabelerRun, VisionRun, write_run_record
from radtower.training.callbacks import JsonLinesLog, StopOnNonFiniteLoss


class RadTowerTrainer(Trainer):
    """Logs to a file, stops on a diverged loss, and leaves the temperature out of weight decay."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.add_callback(StopOnNonFiniteLoss)
        self.add_callback(JsonLinesLog)
        self.remove_callback(PrinterCallback)  # prints dictionaries over somebody else's progress bar

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return what weight decay applies to; it would pull the logarithm of the temperature toward 1."""
        return [name for name in super().get_decay_parameter_names(model) if "logit_scale" not in name]

    def save_model_folder(self, run: LabelerRun | VisionRun | ClipRun) -> Path:
        """Save model, processor and ``run.yaml`` to ``output_dir``.

        ``Trainer.save_model`` would add ``training_args.bin``, a pickle.
        """
        folder = Path(str(self.args.output_dir))
        if self.is_world_process_zero():
            self.accelerator.unwrap_model(self.model).save_pretrained(folder)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            write_run_record(folder, run, self.args)
        self.accelerator.wait_for_everyone()
        return folder


class SupervisedTrainer(RadTowerTrainer):
    """Trains classifiers of findings; evaluation reports the macro AUROC over the labels that are known."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        kwargs.setdefault("compute_metrics", macro_auroc_of_predictions)
        super().__init__(*args, **kwargs)


class ContrastiveTrainer(RadTowerTrainer):
    """Trains a dual tower with the negatives of its own batch.

    Raises:
        ValueError: In a distributed run: each process would see its own negatives only, and the loss would
            look plausible.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.world_size > 1:
            raise ValueError(
                f"contrastive training must run in one process, got {self.args.world_size}. "
                "Start it without a launcher; gathering negatives across processes is not built yet (RT-5)."
            )


def macro_auroc_of_predictions(prediction: EvalPrediction) -> dict[str, float]:
    """Score a classifier: logits and labels ``(N, F)``; labels that are neither 0 nor 1 are left out."""
    outputs = prediction.predictions
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    labels = np.asarray(prediction.label_ids)
    mean = macro_auroc(logits, np.where(np.isin(labels, (0, 1)), labels, UNKNOWN_LABEL))
    return {"macro_auroc": mean.value, "num_findings": float(mean.num_defined)}
