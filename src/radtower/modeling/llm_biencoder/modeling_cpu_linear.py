"""Linear layers on a CPU, faster: the same product by oneDNN, and weights of 8 bits.

Axes in this file: M tokens, K inputs, N outputs.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

# Internal to torch and used by its compiler; where it is missing, or oneDNN is, nothing is replaced.
ONEDNN_LINEAR: Any = getattr(torch.ops.mkldnn, "_linear_pointwise", None)
MIN_TOKENS = 16  # below, laying out the weight anew costs more than the product
MAX_INT8 = 127
# Share of the decoder's layers, from the bottom, that stays floating point. A decoder gives some words huge
# activations in a middle layer, and rounding below decides whether it does: short sentences suffer most.
KEPT_LAYERS, OF_LAYERS = 2, 5
FINE_STEPS = 2 * MAX_INT8  # the rounding error of a step, at most half of it, in 8 bits again


class OneDNNLinears(TorchFunctionMode):
    """While active, ``F.linear`` of float32 on a CPU runs in oneDNN.

    The weight is handed over as it is, in every call: nothing is stored, so that nothing goes stale and no
    memory is spent. Equal up to rounding.
    """

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: Sequence[Any] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Run ``func``, or the product of oneDNN in its place."""
        if func is F.linear and not kwargs and _suits_onednn(*args[:2]):
            return ONEDNN_LINEAR(args[0], args[1], args[2] if len(args) > 2 else None, "none", [], "")
        return func(*args, **(kwargs or {}))


def _suits_onednn(x: torch.Tensor, weight: torch.Tensor) -> bool:
    if ONEDNN_LINEAR is None or not (torch.backends.mkldnn.is_available() and torch.backends.mkldnn.enabled):
        return False
    if torch.is_grad_enabled() or torch.is_autocast_enabled("cpu") or torch.compiler.is_compiling():
        return False
    is_plain = all(
        type(tensor) in (torch.Tensor, nn.Parameter)
        and tensor.device.type == "cpu"
        and tensor.dtype == torch.float32
        and tensor.layout == torch.strided
        for tensor in (x, weight)
    )
    return is_plain and weight.ndim == 2 and x.ndim > 1 and x.shape[:-1].numel() >= MIN_TOKENS


class Int8Linear(nn.Module):
    """Linear layer whose weight has 8 bits, for inference on a CPU.

    Weights are symmetric per output, inputs per token: the result of a token does not depend on its batch.
    An input is the sum of two 8-bit numbers: the few huge activations of an LLM (arXiv 2402.17762) would
    leave too few steps of a single one for all others. Products are whole numbers, summed in 32 bits.

    Args:
        linear: The layer to replace.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = _scale(weight)
        self.weight_int8: torch.Tensor
        self.scale: torch.Tensor
        self.bias: torch.Tensor | None
        self.register_buffer("weight_int8", (weight / scale).round().to(torch.int8))
        self.register_buffer("scale", scale[:, 0])
        self.register_buffer("bias", None if linear.bias is None else linear.bias.detach().float())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``(..., K)`` -> ``(..., N)``.

        Raises:
            RuntimeError: If a gradient would have to pass.
        """
        if torch.is_grad_enabled() and x.requires_grad:
            raise RuntimeError(
                "weights must be floating point to be trained, got int8. Load the model again, and do not "
                "call quantize_weights."
            )
        rows = x.flatten(0, -2).float()
        scale = _scale(rows)
        steps = rows / scale
        rounded = steps.round()
        codes = torch.empty(2, *rows.shape, dtype=torch.int8)
        codes[0] = rounded
        codes[1] = steps.sub_(rounded).mul_(FINE_STEPS).round_()
        coarse, fine = torch._int_mm(codes.flatten(0, 1), self.weight_int8.t()).unflatten(0, (2, -1))
        output = coarse.float().add_(fine, alpha=1 / FINE_STEPS).mul_(scale).mul_(self.scale)
        if self.bias is not None:
            output += self.bias
        return output.to(x.dtype).unflatten(0, x.shape[:-1])

    def _save_to_state_dict(self, *_: Any) -> None:
        refuse_int8(self)


def refuse_int8(model: nn.Module) -> None:
    """Refuse to save quantized weights.

    Raises:
        RuntimeError: If there are any.
    """
    if any(isinstance(module, Int8Linear) for module in model.modules()):
        raise RuntimeError(
            "weights must be floating point to be saved, got int8. Save the model before quantize_weights, "
            "and quantize after loading."
        )


def check_int8_product() -> None:
    """Multiply the largest numbers of 8 bits: some CPUs add pairs of products in 16 bits, and cut them there.

    Raises:
        RuntimeError: If the product is wrong.
    """
    codes = torch.full((64, 64), MAX_INT8, dtype=torch.int8)
    codes[1::2] *= -1
    products = torch._int_mm(codes, codes.t())
    expected = codes.int() @ codes.int().t()
    wrong = (products != expected).nonzero().tolist()
    if wrong:
        row, column = wrong[0]
        raise RuntimeError(
            f"products of 8 bits must be exact, got {products[row, column]} for {expected[row, column]}: "
            "this CPU lacks VNNI. Encode in float32, or on another machine."
        )


def quantize_linears(model: nn.Module) -> int:
    """Replace linear layers of ``model`` in place and return how many; the lowest blocks keep theirs.

    Raises:
        RuntimeError: If this CPU multiplies numbers of 8 bits wrongly.
        ValueError: If an adapter is attached, there is no linear layer, or one is not on a CPU.
    """
    adapters = [type(module) for module in model.modules() if type(module).__module__.startswith("peft.")]
    if adapters:
        raise ValueError(
            f"an adapter must be merged before quantizing, got {adapters[0].__name__} in the model. Call "
            "merge_and_unload of peft, or give its folder to from_llm."
        )
    blocks: Any = next((child for child in model.modules() if isinstance(child, nn.ModuleList)), [])
    low = [*blocks][: len(blocks) * KEPT_LAYERS // OF_LAYERS]
    kept = {module for block in low for module in block.modules()}
    places = [
        (module, name, child)
        for module in model.modules()
        for name, child in module.named_children()
        if type(child) is nn.Linear and child not in kept
    ]
    devices = {child.weight.device.type for _, _, child in places}
    if devices != {"cpu"}:
        raise ValueError(
            f"the model must have linear layers on the CPU, got {len(places)} on {sorted(devices)}. "
            "Move it there, and quantize it once."
        )
    check_int8_product()
    for module, name, child in places:
        setattr(module, name, Int8Linear(child))
    model.requires_grad_(False)
    return len(places)


def _scale(rows: torch.Tensor) -> torch.Tensor:
    """Size of a step ``(M, 1)``, with which the largest value of each row is the largest of 8 bits."""
    return rows.abs().amax(dim=1, keepdim=True).clamp_(min=torch.finfo(torch.float32).tiny) / MAX_INT8
