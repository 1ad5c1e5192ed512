"""Check by behavior that a decoder attends in the direction it was told to.

More than one release of transformers made "bidirectional" decoders causal again without a word, some only for
texts without padding.
"""

from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling_encode_batches import in_eval_mode

NUM_TOKENS = 6
# A causal layer gives the same bits twice, or differs in the last ones; others changed by 3e-3 or more in a
# language model of 30 layers that was trained causal.
CAUSAL_CHANGE = 1e-4


@torch.no_grad()
def check_attention_direction(decoder: PreTrainedModel, num_causal_layers: int) -> None:
    """Change the last token of a text and see, layer by layer, whether the tokens before it notice.

    Alone and without padding, and beside a longer text with padding on the left and on the right.

    Args:
        decoder: Model with its layers in ``layers``; computes in eval mode here and goes back to its own.
        num_causal_layers: How many of the lowest layers were told to look back only; the others look ahead,
            too.

    Raises:
        RuntimeError: If a layer attends in the other direction.
    """
    with in_eval_mode(decoder):
        for padding in ("no", "left", "right"):
            changes = _changes_before_the_last_token(decoder, padding)
            for is_causal in (True, False):
                told = range(num_causal_layers) if is_causal else range(num_causal_layers, len(changes))
                wrong = [layer for layer in told if (changes[layer] < CAUSAL_CHANGE) != is_causal]
                if wrong:
                    raise RuntimeError(
                        f"attention must be {_name(is_causal)}, got {_name(not is_causal)} in layers {wrong} "
                        f"of {type(decoder).__name__} with {padding} padding under "
                        f"{decoder.config._attn_implementation!r}. Load with another attn_implementation."
                    )


def _changes_before_the_last_token(decoder: PreTrainedModel, padding: str) -> list[float]:
    """Per layer: the largest relative change of an earlier output when the last input changes."""
    table: Any = decoder.get_input_embeddings()
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(table.num_embeddings, (2, NUM_TOKENS), generator=generator).to(decoder.device)
    mask = torch.ones_like(ids)
    if padding != "no":
        mask[1, -1 if padding == "right" else 0] = 0
    row = 0 if padding == "no" else 1
    rows = slice(0, 1) if padding == "no" else slice(None)
    first, last = int(padding == "left"), NUM_TOKENS - 1 - int(padding == "right")
    changes: list[float] = []

    def compare(layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        changed = args[0].clone()
        # Sign and order of the features: a norm in front of the layer does not see a change of scale.
        changed[row, last] = -changed[row, last].roll(1)
        before, after = (
            _states(states)[row, first:last].float()
            for states in (output, layer.forward(changed, *args[1:], **kwargs))
        )
        # The largest: in trained models some tokens, above all the first, are too long to be moved.
        changes.append(((after - before).norm(dim=-1) / before.norm(dim=-1)).max().item())

    layers: Any = decoder.layers
    handles = [layer.register_forward_hook(compare, with_kwargs=True) for layer in layers]
    try:
        positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
        decoder(input_ids=ids[rows], attention_mask=mask[rows], position_ids=positions[rows], use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return changes


def _states(output: Any) -> torch.Tensor:
    states: torch.Tensor = output[0] if isinstance(output, tuple) else output
    return states


def _name(is_causal: bool) -> str:
    return "causal" if is_causal else "bidirectional"
