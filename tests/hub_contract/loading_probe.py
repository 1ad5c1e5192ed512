"""Loads models of the three families in the ways that users do, with RadTower installed.

Also a script, ``loading_probe.py KIND ...``: it loads what the Hub has, says so, waits for a line, and loads
the same once more without a network. Prints one line of JSON per load.
"""

import json
import sys
from typing import Any

import huggingface_hub.constants
import torch
from peft import PeftModel
from transformers import PreTrainedModel

from hub_contract.stock_models import AUTO_CLASSES, build_processor, build_samples

WAYS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "auto": {"dtype": "auto"},
    "bfloat16": {"dtype": "bfloat16"},
    "device_map": {"device_map": "cpu"},
    "revision": {"revision": "v1"},
    "subfolder": {"subfolder": "inside"},
    "eager": {"attn_implementation": "eager"},
    "sdpa": {"attn_implementation": "sdpa"},
}
# What a Hub is asked for; the other ways are the same wherever the files came from.
HUB_WAYS = ("as it is", "revision", "subfolder")
PLACES = ("online", "offline")


@torch.no_grad()
def numbers(kind: str, model: PreTrainedModel) -> list[float]:
    """What the model makes of the samples: its logits, or both embeddings."""
    samples = build_samples(kind)
    inputs = {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}
    if "pixel_values" in inputs:
        inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    output = model.eval()(**inputs)
    names = ("logits",) if "logits" in output else ("image_embeds", "text_embeds")
    return torch.cat([output[name].float().flatten() for name in names]).tolist()


def load(kind: str, source: str, way: str) -> dict[str, Any]:
    """Load a model and what goes along with it; return what came."""
    auto_model, auto_processor = AUTO_CLASSES[kind]
    options = WAYS[way]
    place = {name: options[name] for name in ("revision", "subfolder") if name in options}
    model: PreTrainedModel = auto_model.from_pretrained(source, **options)
    processor = auto_processor.from_pretrained(source, **place)
    parts = [part.config for part in model.modules() if hasattr(part, "config")]
    return {
        "numbers": numbers(kind, model),
        "classes": [type(model).__name__, type(processor).__name__],
        "attention": sorted({config._attn_implementation for config in parts}),
        "dtype": str(model.dtype),
        "is_same_processor": _settings(processor) == _settings(build_processor(kind)),
    }


def _settings(processor: Any) -> Any:
    """Of an image processor, alone or of a pair; or the words of a tokenizer."""
    if hasattr(processor, "get_vocab"):
        return processor.get_vocab()
    kept = getattr(processor, "image_processor", processor).to_dict()
    return {name: value for name, value in kept.items() if name != "auto_map"}


def adapted(kind: str, source: str, adapter: str, *, has_peft_model: bool) -> list[float]:
    """Numbers of a model with an adapter, loaded by peft or by transformers."""
    model = AUTO_CLASSES[kind][0].from_pretrained(source)
    if has_peft_model:
        return numbers(kind, PeftModel.from_pretrained(model, adapter).merge_and_unload())
    model.load_adapter(adapter)
    return numbers(kind, model)


def load_from_hub(kinds: list[str], where: str) -> None:
    """Load each of ``tester/KIND``, and its adapter if it is ``text`` and has one; print the rows."""
    for kind in kinds:
        source = f"tester/{kind}"
        rows = {way: load(kind, source, way) for way in HUB_WAYS}
        if kind == "text":
            for way, has_peft_model in (("PeftModel", True), ("load_adapter", False)):
                found = adapted(kind, source, f"{source}-adapter", has_peft_model=has_peft_model)
                rows[way] = {"numbers": found}
        for way, row in rows.items():
            sys.stdout.write(f"found {json.dumps({'key': [kind, way, where], **row})}\n")


def main(kinds: list[str]) -> None:
    """The Hub, and its cache when the Hub is gone."""
    load_from_hub(kinds, "online")
    sys.stdout.write("online done\n")
    sys.stdout.flush()
    sys.stdin.readline()
    huggingface_hub.constants.HF_HUB_OFFLINE = True
    load_from_hub(kinds, "offline")


if __name__ == "__main__":
    main(sys.argv[1:])
