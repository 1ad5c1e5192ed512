"""Low-rank adapters in the decoder of a report encoder, and back to plain weights (LoRA, arXiv 2106.09685).

The adapters are put into the decoder in place: the encoder keeps its class, its heads and its state dict, so
that a checkpoint of the Trainer holds everything that is trained. A ``PeftModel`` around the encoder would
save the adapters only, and lose the pooling head and the soft prompt without a word.
"""

from collections.abc import Iterator, Sequence

from peft import LoraConfig, TaskType, inject_adapter_in_model
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder


def add_lora(
    encoder: LLMBiEncoder,
    rank: int,
    alpha: float,
    dropout: float = 0.0,
    target_modules: Sequence[str] | None = None,
    num_frozen_layers: int = 0,
) -> None:
    """Freeze the decoder and train low-rank updates of its projections instead.

    What lies outside the decoder (pooling head, soft prompt, classifier) stays trainable. The updates start
    at zero: the outputs do not change. Gradient checkpointing must be non-reentrant, as is the default of
    transformers 5: the reentrant one gives no gradients where the input of a layer has none.

    Args:
        encoder: Changed in place.
        rank: Of each update.
        alpha: The update is scaled by ``alpha / rank``.
        dropout: On the input of each update, in [0, 1).
        target_modules: Last parts of the names of the linear layers to adapt, such as ``q_proj``. None takes
            all of the decoder.
        num_frozen_layers: Lowest decoder layers that get no update.

    Raises:
        ValueError: If the encoder has adapters already, a number is out of its range, or a name of
            ``target_modules`` is no linear layer of the decoder.
    """
    decoder = encoder.model
    if has_lora(encoder):
        raise ValueError("encoder must have no adapters, got one with LoRA. Call merge_lora first.")
    require_lora_numbers(rank, alpha, dropout)
    num_layers = len(decoder.layers)
    if not 0 <= num_frozen_layers < num_layers:
        raise ValueError(
            f"num_frozen_layers must be between 0 and {num_layers - 1}, got {num_frozen_layers}. "
            "Leave a layer to adapt."
        )
    names = {
        name.rpartition(".")[2] for name, m in decoder.layers.named_modules() if isinstance(m, nn.Linear)
    }
    unknown = sorted(set(target_modules or ()) - names)
    if unknown:
        raise ValueError(
            f"target_modules must be linear layers of the decoder, got {unknown}. "
            f"Choose from {sorted(names)}."
        )
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type]  # peft divides by the rank, whole or not
        lora_dropout=dropout,
        target_modules=sorted(target_modules or names),
        layers_to_transform=list(range(num_frozen_layers, num_layers)),
        layers_pattern="layers",
        task_type=TaskType.FEATURE_EXTRACTION,
    )
    inject_adapter_in_model(config, decoder)


def merge_lora(encoder: LLMBiEncoder) -> None:
    """Add the updates to the weights and remove the adapters; every weight of the decoder is trainable again.

    Args:
        encoder: Changed in place; it is then as one that never had adapters.

    Raises:
        ValueError: If there are no adapters, or merging gives a weight that is not finite.
    """
    if not has_lora(encoder):
        raise ValueError("encoder must have adapters to merge, got none. Call add_lora first.")
    merge_adapters(encoder.model)


def has_lora(encoder: LLMBiEncoder) -> bool:
    """Whether there are adapters in the decoder."""
    return has_adapters(encoder.model)


def require_lora_numbers(rank: int, alpha: float, dropout: float) -> None:
    """Refuse settings that no update can have.

    Raises:
        ValueError: If a number is out of its range.
    """
    if rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}. Leave LoRA out to train all weights.")
    if alpha <= 0:
        raise ValueError(f"alpha must be positive, got {alpha}. The usual choice is twice the rank.")
    if not 0 <= dropout < 1:
        raise ValueError(f"dropout must be in [0, 1), got {dropout}. Use 0 for none.")


def merge_adapters(model: nn.Module) -> None:
    """Add the updates of any model to its weights and remove them; every weight is trainable again.

    Raises:
        ValueError: If merging gives a weight that is not finite.
    """
    for parent, name, layer in list(_adapted_layers(model)):
        layer.merge(safe_merge=True)
        setattr(parent, name, layer.get_base_layer())
    del model.peft_config
    model.requires_grad_(True)


def has_adapters(model: nn.Module) -> bool:
    """Whether there are adapters anywhere in a model."""
    return any(True for _ in _adapted_layers(model))


def _adapted_layers(model: nn.Module) -> Iterator[tuple[nn.Module, str, BaseTunerLayer]]:
    """Parent, name and adapter of each linear layer that has one."""
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, BaseTunerLayer):
                yield parent, name, child
