"""Trainer of dual towers: negatives of all processes, and batches larger than memory.

Axes: B studies of this process.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Sampler

from radtower.data.datasets import StudyDataset
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.arguments import data_seed
from radtower.training.callbacks import JsonLinesLog
from radtower.training.clip.grad_cache import VECTORS_ONLY, cached_backward, require_equal_shares
from radtower.training.clip.pair_batches import PairSampler
from radtower.training.clip.pair_loss import PairLoss
from radtower.training.clip.pair_statistics import (
    pair_statistics,
    problem_of_spread,
    similarity_histograms,
)
from radtower.training.clip.stop_together import problem_of_loss, stop_together
from radtower.training.clip.stream_batches import StreamBatches
from radtower.training.clip.tower_lora import merge_tower_adapters
from radtower.training.gather import row_counts
from radtower.training.runs import AnyRun
from radtower.training.shards import State, called_as_forward, is_sharded, merged_state
from radtower.training.text.lora import has_adapters
from radtower.training.trainer import RadTowerTrainer

TEXT_INPUTS = ("input_ids", "attention_mask", "embed_mask")
RELATIONS = ("labels", "pair_keys")

MakeSampler = Callable[[StudyDataset, int], Sampler[int]]


class ContrastiveTrainer(RadTowerTrainer):
    """Trains a dual tower on batches of studies; each is a negative of the others, in all processes.

    Logs, beside what transformers logs: the logit scale, quantiles of the cosines of pairs and of others, how
    often the own report comes first, and studies per second. Stops when the loss is not finite, and says with
    which volumes, or when all cosines are equal.

    Evaluation gives ``eval_loss`` and keeps no vectors. A contrastive loss depends on the batch: those of
    evaluation are of ``per_device_eval_batch_size``, in order, and the last one is as small as it is.

    Args:
        chunk_size: Studies of a process whose activations are in memory at a time (GradCache); the gradients
            are those of the whole batch. None takes the batch at once.
        make_sampler: From the data and the batch size over all processes to their order. None is a
            :class:`PairSampler` where the data have keys, and plain shuffling where they have none.

    Raises:
        ValueError: If gradients are to be accumulated over batches, whose studies would not see each other.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over the batch

    def __init__(
        self,
        *args: Any,
        chunk_size: int | None = None,
        make_sampler: MakeSampler | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if self.args.gradient_accumulation_steps > 1:
            raise ValueError(
                "gradient_accumulation_steps must be 1 in contrastive training, got "
                f"{self.args.gradient_accumulation_steps}: negatives would stay within the small batches. "
                "Make the batch larger and set chunk_size."
            )
        self.chunk_size = chunk_size
        self.make_sampler = make_sampler
        self._last: dict[str, float] = {}
        self._histograms: dict[str, list[int]] = {}
        self._num_seen, self._since = 0, time.perf_counter()

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch over all processes."""
        towers, relations, rows = _split(inputs)
        output = model(**self._with_frozen_features(towers), **VECTORS_ONLY)
        loss = self._pair_loss(output, relations, rows, is_training=model.training)
        return (loss, output) if return_outputs else loss

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor, None, None]:
        """Return the loss of a batch, with labels and keys or without, and nothing to collect."""
        inputs = self._prepare_inputs(inputs)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        return loss.detach(), None, None

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One batch, in chunks if there are several.

        Raises:
            FloatingPointError: In all processes, if in one of them the loss is not finite, or the model says
                the same of everything.
            ValueError: If processes with shards of the weights have different numbers of studies.
        """
        self._dual_tower().logit_scale.cap()
        size = len(next(iter(inputs.values())))
        self._num_seen += size * self.args.world_size
        if self.chunk_size is None or self.chunk_size >= size:
            return super().training_step(model, inputs, num_items_in_batch)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            require_equal_shares(row_counts(size, self.args.device))
        model.train()
        towers, relations, rows = _split(self._prepare_inputs(inputs))
        return cached_backward(
            model,
            self._with_frozen_features(towers),
            self.chunk_size,
            lambda output: self._pair_loss(output, relations, rows, is_training=True),
            self.accelerator.backward,
            lambda: self._unfinished(model),
        )

    @contextmanager
    def _unfinished(self, model: nn.Module) -> Iterator[None]:
        """The gradients of the batch are not complete yet: they are not exchanged, and no step is taken."""
        if not self.is_deepspeed_enabled:
            with self.accelerator.no_sync(model):
                yield
            return
        # Its engine steps after each backward pass unless it is told that there are more. It refuses not to
        # exchange gradients that it keeps in shards: it adds up what it exchanged.
        state = self.accelerator.gradient_state
        state._set_sync_gradients(False)
        try:
            yield
        finally:
            state._set_sync_gradients(True)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Log, at every ``logging_steps`` with the statistics of the batch of this process."""
        if "loss" in logs and self._num_seen:
            now = time.perf_counter()
            logs = {**logs, **self._last, "studies_per_second": self._num_seen / (now - self._since)}
            for callback in self.callback_handler.callbacks:
                if isinstance(callback, JsonLinesLog):
                    callback.beside = dict(self._histograms)
            # A log before a checkpoint may come between: what is said of one batch is not said of another.
            self._last, self._histograms, self._num_seen, self._since = {}, {}, 0, now
        super().log(logs, start_time)

    def get_train_dataloader(self) -> DataLoader[Any]:
        """Return batches; those of a stream are whole, and accelerate would deal out their rows once more."""
        if not isinstance(self.train_dataset, StreamBatches):
            return super().get_train_dataloader()
        return DataLoader(self.train_dataset, batch_size=None, pin_memory=self.args.dataloader_pin_memory)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[Any] | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        batch_size = self.args.train_batch_size * self.args.world_size
        if self.make_sampler is not None:
            return self.make_sampler(dataset, batch_size)
        if getattr(dataset, "pair_keys", None) is None:
            return super()._get_train_sampler(train_dataset)
        return PairSampler(dataset, dataset.pair_keys, batch_size, data_seed(self.args))

    def _pair_loss(
        self, output: Any, relations: dict[str, torch.Tensor], rows: torch.Tensor | None, *, is_training: bool
    ) -> torch.Tensor:
        # bf16 has three digits, and similarities differ in the third.
        with torch.autocast(output["image_projection"].device.type, enabled=False):
            loss = PairLoss(objective=self._dual_tower().objective)(output, **relations)
        if is_training:
            self._observe(output, relations, rows, loss)
        return loss

    @torch.no_grad()
    def _observe(
        self,
        output: Any,
        relations: dict[str, torch.Tensor],
        rows: torch.Tensor | None,
        loss: torch.Tensor,
    ) -> None:
        images, texts = output["image_projection"], output["text_projection"]
        step = self.state.global_step
        problem = problem_of_loss(loss, [images, texts], _names(self.train_dataset, rows), step)
        stop_together(problem or problem_of_spread(images, texts, step), loss.device)
        if (self.state.global_step + 1) % max(1, int(self.args.logging_steps)) == 0:
            self._last = {"logit_scale": output["logit_scale"].item()}
            self._last |= pair_statistics(images, texts, relations.get("pair_keys"))
            self._histograms = similarity_histograms(images, texts, relations.get("pair_keys"))

    def save_model_folder(self, run: AnyRun) -> Path:
        """Save as every trainer does, with the adapters of both towers merged into their weights.

        The model is then one that never had adapters, and this trainer cannot go on; where it lies in shards,
        it stays as it is.
        """
        model = self._dual_tower()
        if has_adapters(model) and not is_sharded(model):
            self._load_best_average()
            if self.average is not None and self.average.values:
                model.load_state_dict(self.average.values)
                self.average = None  # its names are those of the adapters
            merge_tower_adapters(model)
        return super().save_model_folder(run)

    def _gathered_state(self, model: nn.Module) -> State:
        state = super()._gathered_state(model)
        return merged_state(model, state) if state else state

    def _dual_tower(self) -> MedCLIPModel:
        model = self.accelerator.unwrap_model(self.model)
        assert isinstance(model, MedCLIPModel)
        return model

    @torch.no_grad()
    def _with_frozen_features(self, inputs: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Replace what a frozen tower reads by its features: it is run once, and without dropout."""
        model = self._dual_tower()
        size = self.chunk_size or next(iter(inputs.values())).shape[0]
        found = dict(inputs)
        if "pixel_values" in found and _is_frozen(model.vision_model):
            model.vision_model.eval()
            chunks = found.pop("pixel_values").split(size)
            encode = called_as_forward(model, "image_features")
            found["image_features"] = torch.cat([self._frozen(encode, p) for p in chunks])
        if "input_ids" in found and _is_frozen(model.text_model):
            model.text_model.eval()
            parts = {name: found.pop(name) for name in TEXT_INPUTS if name in found}
            starts = range(0, len(parts["input_ids"]), size)
            chunks = [{n: part[at : at + size] for n, part in parts.items()} for at in starts]
            encode = called_as_forward(model, "text_features")
            found["text_features"] = torch.cat([self._frozen(encode, **c) for c in chunks])
        return found

    def _frozen(self, encode: Any, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():
            features: torch.Tensor = encode(*args, **kwargs)
        return features.float()


def _split(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any], torch.Tensor | None]:
    """What the towers read, what says which studies belong together, and which they are."""
    relations = {name: inputs[name] for name in RELATIONS if inputs.get(name) is not None}
    others = {*RELATIONS, "row"}
    return {n: value for n, value in inputs.items() if n not in others}, relations, inputs.get("row")


def _names(dataset: Any, rows: torch.Tensor | None) -> list[str] | None:
    names = getattr(dataset, "volume_ids", None)
    return None if rows is None or names is None else [str(names[row]) for row in rows.tolist()]


def _is_frozen(tower: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in tower.parameters())
