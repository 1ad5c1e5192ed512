"""Trainers: what ``transformers.Trainer`` lacks for these models, and nothing that it has."""

from collections.abc import Callable, Sized
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader
from transformers import EvalPrediction, PreTrainedConfig, PrinterCallback, Trainer, TrainingArguments
from transformers.trainer_utils import PredictionOutput, TrainOutput

from radtower.evaluation.metrics import macro_auroc
from radtower.modeling.losses import UNKNOWN_LABEL
from radtower.training.arguments import write_run_record
from radtower.training.callbacks import JsonLinesLog, NoteLongWarmup, SetDatasetEpoch, StopOnNonFiniteLoss
from radtower.training.checkpoint_weights import load_renamed_weights
from radtower.training.compute_record import ComputeClock
from radtower.training.layer_rates import layer_groups
from radtower.training.output_folder import (
    delete_checkpoints,
    last_complete_checkpoint,
    require_no_checkpoints,
    require_same_model,
    require_same_run,
)
from radtower.training.runs import AnyRun
from radtower.training.shards import State, is_sharded, prepare_for_shards, whole_state
from radtower.training.weight_average import WeightAverage, require_averageable

LossFunction = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
NOT_DECAYED = frozenset({"logit_scale", "logit_bias", "soft_prompt", "latents"})  # parts of names


class RadTowerTrainer(Trainer):
    """Logs to a file, stops on a diverged loss, and decays no weight that only scales or is an input.

    Args:
        run: Settings that are recorded in every checkpoint, and compared when it is resumed. None records and
            compares the model and the processor only.
        ema_decay: Of an average of the weights, which is then what is evaluated and saved; None averages
            nothing. Checkpoints hold both, so that a resumed run goes on where it was.

    Raises:
        ValueError: If ``label_smoothing_factor`` is set for a training that cannot smooth its labels.
    """

    can_smooth_labels = False

    def __init__(
        self, *args: Any, run: AnyRun | None = None, ema_decay: float | None = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        _require_workers_that_hear_of_epochs(self.args, self.train_dataset)
        if self.args.label_smoothing_factor and not self.can_smooth_labels:
            raise ValueError(
                "label_smoothing_factor must be 0 where no finding is classified, got "
                f"{self.args.label_smoothing_factor}. Leave it out."
            )
        self.run = run
        self.clock = ComputeClock()
        require_averageable(self.accelerator.state, ema_decay)
        self.average = None if ema_decay is None else WeightAverage(ema_decay)
        if self.average is not None:
            self.add_callback(self.average)
        self.add_callback(NoteLongWarmup)
        self.add_callback(StopOnNonFiniteLoss)
        self.add_callback(JsonLinesLog)
        self.add_callback(SetDatasetEpoch)
        self.remove_callback(PrinterCallback)  # prints dictionaries over somebody else's progress bar

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
    ) -> TrainOutput:
        """Train, or go on training; True takes the last complete checkpoint of the output folder.

        A checkpoint is complete when it holds the state of the Trainer, which is written last: a kill may
        come while one is written.

        Raises:
            ValueError: If there is no complete checkpoint to resume from, it is of another run, a new run
                would begin among checkpoints of another, or there is not one whole batch to train on.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = str(last_complete_checkpoint(str(self.args.output_dir)))
        self._require_own_folder(resume_from_checkpoint or None)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, WeightAverage):
                callback.resume_from = Path(resume_from_checkpoint) if resume_from_checkpoint else None
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            prepare_for_shards(cast(nn.Module, self.model))
        self.clock.start(str(resume_from_checkpoint) if resume_from_checkpoint else None)
        output = super().train(resume_from_checkpoint, trial, ignore_keys_for_eval)
        if self.state.global_step == 0:
            raise ValueError(
                "train_dataset must fill a batch where dataloader_drop_last is set, got "
                f"{len(cast(Sized, self.train_dataset))} samples for batches of "
                f"{self.args.train_batch_size}. Make the batches smaller."
            )
        return output

    def _require_own_folder(self, checkpoint: str | None) -> None:
        should_overwrite = self.run is not None and self.run.should_overwrite
        if checkpoint is None:
            if not should_overwrite:
                require_no_checkpoints(str(self.args.output_dir))
            elif self.is_world_process_zero():
                delete_checkpoints(str(self.args.output_dir))
            self.accelerator.wait_for_everyone()
            return
        if should_overwrite:
            raise ValueError(
                f"should_overwrite must be false where a run is resumed, got {should_overwrite}. "
                "Choose one of the two."
            )
        require_same_model(checkpoint, self.accelerator.unwrap_model(self.model), self.processing_class)
        if self.run is not None:
            require_same_run(checkpoint, self.run, self.args, self._data_hash())

    def _data_hash(self) -> str | None:
        """Of data sets that are small enough to know one; another table may lie at the same path."""
        hashed = getattr(self.train_dataset, "sha256", None)
        return None if hashed is None else str(hashed())

    def _facts(self) -> dict[str, Any]:
        data = self.train_dataset
        return {
            "num_train_samples": len(data) if isinstance(data, Sized) else None,
            "compute": self.clock.record(self.args),
        }

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        network = self.model if model is None else model
        if not load_renamed_weights(self.accelerator.unwrap_model(network), resume_from_checkpoint):
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_best_model(self) -> None:
        assert self.state.best_model_checkpoint is not None  # there is a best model
        network = self.accelerator.unwrap_model(self.model)
        if not load_renamed_weights(network, self.state.best_model_checkpoint):
            super()._load_best_model()

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Write the weights of a checkpoint, beside them the average, and which run they are of."""
        super().save_model(output_dir, _internal_call)
        folder = output_dir or str(self.args.output_dir)
        if self.run is not None and self.args.should_save:
            write_run_record(folder, self.run, self.args, self._data_hash(), self._facts())
        if self.average is not None:
            self.average.save(folder, is_written=self.args.should_save)

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measure the weights that would be saved: the average, if there is one."""
        with self._averaged():
            return super().evaluate(*args, **kwargs)

    def predict(self, *args: Any, **kwargs: Any) -> PredictionOutput:
        """Predict with the weights that would be saved."""
        with self._averaged():
            return super().predict(*args, **kwargs)

    def _averaged(self) -> AbstractContextManager[None]:
        """The weights are the average inside; themselves, where there is none yet."""
        if self.average is None or not self.average.values:
            return nullcontext()
        assert isinstance(self.model, nn.Module)
        return self.average.applied_to(self.model)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        """Write weights under the names that they have in memory, as the Trainer expects when it resumes.

        Others would be lost with no more than a warning: transformers 5 saves ViT, DINOv2 and more under the
        names of older releases, which ``from_pretrained`` translates back and the Trainer does not.
        """
        model: Any = self.accelerator.unwrap_model(self.model)
        model.save_pretrained = partial(model.save_pretrained, save_original_format=False)
        try:
            super()._save(output_dir, state_dict)
        finally:
            del model.save_pretrained

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader[Any]:
        """Return every batch: ``dataloader_drop_last`` is for training, and would leave out patients here."""
        drop_last = self.args.dataloader_drop_last
        self.args.dataloader_drop_last = False
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.args.dataloader_drop_last = drop_last

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        """Return what weight decay applies to: weights that multiply, and no norm by whatever name.

        It would pull the logarithm of the temperature toward 1, and prompts and latents, which are inputs,
        toward the origin.
        """
        spared = {
            f"{prefix}.{name}" if prefix else name
            for prefix, module in model.named_modules()
            if "norm" in type(module).__name__.lower()
            for name, _ in module.named_parameters(recurse=False)
        }
        return [
            name
            for name in super().get_decay_parameter_names(model)
            if name not in spared and NOT_DECAYED.isdisjoint(name.split("."))
        ]

    def save_model_folder(self, run: AnyRun) -> Path:
        """Save model, processor and ``run.yaml`` to ``output_dir``, the weights averaged if asked for.

        With ``load_best_model_at_end`` it is the average of the best checkpoint. ``Trainer.save_model`` would
        add ``training_args.bin``, a pickle.
        """
        self._load_best_average()
        with self._averaged():
            return self._save_folder(run)

    def _load_best_average(self) -> None:
        best = self.state.best_model_checkpoint if self.args.load_best_model_at_end else None
        if self.average is not None and best is not None:
            self.average.load(best, cast(nn.Module, self.model))

    def _save_folder(self, run: AnyRun) -> Path:
        folder = Path(str(self.args.output_dir))
        model = self.accelerator.unwrap_model(self.model)
        state = self._gathered_state(model) if is_sharded(model) else None
        if self.is_world_process_zero():
            _forget_where_towers_came_from(model.config)
            model.save_pretrained(folder, state_dict=state)
            if self.processing_class is not None:
                self.processing_class.save_pretrained(folder)
            write_run_record(folder, run, self.args, self._data_hash(), self._facts())
        self.accelerator.wait_for_everyone()
        return folder

    def _gathered_state(self, model: nn.Module) -> State:
        """Weights to save of a model that lies in shards; in processes that do not write, nothing."""
        return whole_state(model)


class SupervisedTrainer(RadTowerTrainer):
    """Trains classifiers of findings; evaluation reports the macro AUROC over the labels that are known.

    ``label_smoothing_factor`` moves the known targets of training that far toward 1/2; evaluation keeps them.

    Args:
        loss_function: ``(B, F)`` logits and labels -> scalar. None is the loss of the model itself.
        layer_lr_decay: See :func:`layer_groups`; None trains all layers at the same rate.
    """

    loss_is_scaled_for_ga = False  # the losses are means over the batch
    can_smooth_labels = True

    def __init__(
        self,
        *args: Any,
        loss_function: LossFunction | None = None,
        layer_lr_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        kwargs.setdefault("compute_metrics", macro_auroc_of_predictions)
        super().__init__(*args, **kwargs)
        self.label_smoother = None  # that of transformers is for one class of many
        self.loss_function = loss_function
        self.layer_lr_decay = layer_lr_decay

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Return the optimizer of the training arguments, with a learning rate per depth if asked for."""
        if self.optimizer is None and self.layer_lr_decay is not None:
            network: Any = self.model if model is None else model
            make, settings = self.get_optimizer_cls_and_kwargs(self.args, network)
            groups = layer_groups(
                network,
                self.get_decay_parameter_names(network),
                self.args.learning_rate,
                self.args.weight_decay,
                self.layer_lr_decay,
            )
            self.optimizer = make(groups, **settings)
        return super().create_optimizer(model)

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch, by ``loss_function`` if there is one."""
        if model.training:
            inputs = inputs | {"labels": _smoothed(inputs["labels"], self.args.label_smoothing_factor)}
        if self.loss_function is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        outputs = model(**{name: value for name, value in inputs.items() if name != "labels"})
        loss = self.loss_function(outputs.logits, inputs["labels"])
        return (loss, outputs) if return_outputs else loss


def _require_workers_that_hear_of_epochs(arguments: TrainingArguments, dataset: Any) -> None:
    """A worker that outlives an epoch has a copy of the data that still draws what the first epoch drew."""
    is_kept = arguments.dataloader_persistent_workers and arguments.dataloader_num_workers > 0
    if is_kept and hasattr(dataset, "set_epoch"):
        raise ValueError(
            "dataloader_persistent_workers must be false for data that differ from epoch to epoch, got "
            f"{arguments.dataloader_persistent_workers}. Leave it out."
        )


def macro_auroc_of_predictions(prediction: EvalPrediction) -> dict[str, float]:
    """Score a classifier: logits and labels ``(N, F)``; labels that are neither 0 nor 1 are left out."""
    outputs = prediction.predictions
    logits = np.asarray(outputs[0] if isinstance(outputs, tuple) else outputs)
    labels = np.asarray(prediction.label_ids)
    mean = macro_auroc(logits, np.where(np.isin(labels, (0, 1)), labels, UNKNOWN_LABEL))
    return {"macro_auroc": mean.value, "num_findings": float(mean.num_defined)}


def _smoothed(labels: torch.Tensor, amount: float) -> torch.Tensor:
    """Known labels, moved toward 1/2; unknown ones stay unknown."""
    return torch.where(labels == UNKNOWN_LABEL, labels, labels * (1 - amount) + amount / 2)


def _forget_where_towers_came_from(config: PreTrainedConfig) -> None:
    """Empty the local paths that transformers keeps in configurations of sub-models; run.yaml has them."""
    for part in vars(config).values():
        if isinstance(part, PreTrainedConfig):
            part._name_or_path = ""
            _forget_where_towers_came_from(part)
