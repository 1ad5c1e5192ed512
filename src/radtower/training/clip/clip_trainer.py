"""Trainer of dual towers: negatives of all processes, and batches larger than memory.

Axes: B studies of this process.
"""

from typing import Any

import torch
from torch import nn

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.clip.grad_cache import cached_backward
from radtower.training.clip.pair_loss import PairLoss
from radtower.training.trainer import RadTowerTrainer


class ContrastiveTrainer(RadTowerTrainer):
    """Trains a dual tower on batches of studies; each is a negative of the others, in all processes.

    Args:
        chunk_size: Studies of a process whose activations are in memory at a time (GradCache); the gradients
            are those of the whole batch. None takes the batch at once.

    Raises:
        ValueError: If gradients are to be accumulated over batches, whose studies would not see each other.
    """

    loss_is_scaled_for_ga = False  # the loss is a mean over the batch

    def __init__(self, *args: Any, chunk_size: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if self.args.gradient_accumulation_steps > 1:
            raise ValueError(
                "gradient_accumulation_steps must be 1 in contrastive training, got "
                f"{self.args.gradient_accumulation_steps}: negatives would stay within the small batches. "
                "Make the batch larger and set chunk_size."
            )
        self.chunk_size = chunk_size

    def compute_loss(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Return the loss of a batch over all processes."""
        towers, relations = _split(inputs)
        output = model(**self._with_frozen_features(towers), return_loss=False)
        loss = self._pair_loss(output, **relations)
        return (loss, output) if return_outputs else loss

    def training_step(
        self,
        model: nn.Module,
        inputs: dict[str, Any],
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """One batch, in chunks if there are several."""
        size = next(iter(inputs.values())).shape[0]
        if self.chunk_size is None or self.chunk_size >= size:
            return super().training_step(model, inputs, num_items_in_batch)
        model.train()
        towers, relations = _split(self._prepare_inputs(inputs))
        return cached_backward(
            model,
            self._with_frozen_features(towers),
            self.chunk_size,
            lambda output: self._pair_loss(output, **relations),
            self.accelerator.backward,
            lambda: self.accelerator.no_sync(model),
        )

    def _pair_loss(self, output: Any, **relations: torch.Tensor) -> torch.Tensor:
        # bf16 has three digits, and similarities differ in the third.
        with torch.autocast(output["image_projection"].device.type, enabled=False):
            return PairLoss(objective=self._dual_tower().objective)(output, **relations)

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
            found["image_features"] = torch.cat([self._frozen(model.image_features, p) for p in chunks])
        if "input_ids" in found and _is_frozen(model.text_model):
            model.text_model.eval()
            parts = {name: found.pop(name) for name in TEXT_INPUTS if name in found}
            starts = range(0, len(parts["input_ids"]), size)
            chunks = [{n: part[at : at + size] for n, part in parts.items()} for at in starts]
            found["text_features"] = torch.cat([self._frozen(model.text_features, **c) for c in chunks])
        return found

    def _frozen(self, encode: Any, *args: torch.Tensor, **kwargs: torch.Tensor) -> torch.Tensor:
        with self.accelerator.autocast():
            features: torch.Tensor = encode(*args, **kwargs)
        return features.float()


TEXT_INPUTS = ("input_ids", "attention_mask", "embed_mask")


def _split(inputs: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the towers read, and what says which studies belong together."""
    relations = {name: inputs[name] for name in ("labels", "pair_keys") if inputs.get(name) is not None}
    return {name: value for name, value in inputs.items() if name not in relations}, relations


def _is_frozen(tower: nn.Module) -> bool:
    return not any(parameter.requires_grad for parameter in tower.parameters())
