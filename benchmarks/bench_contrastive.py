"""Memory and time of the contrastive loss in blocks against the dense one, and of GradCache.

    python benchmarks/bench_contrastive.py            # both
    python benchmarks/bench_contrastive.py --only loss

Every measurement is a process of its own, in turns; memory is the peak of the resident set above what it was
before. The dense loss is the one of every CLIP: one matrix of logits, two cross-entropies. GradCache makes
one step of a tiny dual tower (ViT and BERT of transformers) whose activations outweigh its weights; the batch
itself, 110 kB per study, is in memory whole.
Axes: B studies, E embedding.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import torch
import torch.nn.functional as F

BATCH, WIDTH = 16384, 512
LARGE, SMALL = 512, 16


def dense_loss(images: torch.Tensor, texts: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The loss as it is usually written."""
    logits = scale * images @ texts.T
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def run_loss(kind: str, batch: int) -> dict[str, float]:
    """One forward and backward pass."""
    from radtower.modeling.modeling_pair_losses import symmetric_info_nce

    torch.manual_seed(0)
    sides = [F.normalize(torch.randn(batch, WIDTH), dim=-1).requires_grad_() for _ in range(2)]
    scale = torch.tensor(30.0, requires_grad=True)
    loss_of = dense_loss if kind == "dense" else symmetric_info_nce
    small = [side[:64].detach().requires_grad_() for side in sides]
    loss_of(*small, scale).backward()  # libraries are loaded outside of the measurement
    return _measured(lambda: loss_of(*sides, scale).backward(), lambda: sides[0].grad.norm().item())


def run_step(batch: int) -> dict[str, float]:
    """One step of a dual tower, in chunks of ``SMALL``."""
    from transformers import BertConfig, ViTConfig
    from transformers.models.bert.modeling_bert import BertModel
    from transformers.models.vit.modeling_vit import ViTModel

    from radtower.modeling.modeling_medclip import MedCLIPModel
    from radtower.training.clip.grad_cache import cached_backward
    from radtower.training.clip.pair_loss import PairLoss

    torch.manual_seed(0)
    size = {"hidden_size": 128, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 4}
    vision = ViTModel(ViTConfig(**size, image_size=96, patch_size=8), add_pooling_layer=False)
    text = BertModel(BertConfig(vocab_size=1000, **size), add_pooling_layer=False)
    model = MedCLIPModel.from_towers(
        vision, text, projection_dim=64, vision_pooling="cls", text_pooling="cls"
    )
    inputs = {
        "pixel_values": torch.randn(batch, 3, 96, 96),
        "input_ids": torch.randint(0, 1000, (batch, 128)),
    }
    pair_loss = PairLoss(objective=model.objective)
    return _measured(
        lambda: cached_backward(model.train(), inputs, SMALL, pair_loss, torch.Tensor.backward),
        lambda: model.visual_projection.weight.grad.norm().item(),
    )


def _measured(step, check) -> dict[str, float]:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    start = time.perf_counter()
    step()
    seconds = time.perf_counter() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "peak_mb": (peak - before) / 1024, "total_mb": peak / 1024, "check": check()}


def in_turns(kinds: list[str], rounds: int) -> dict[str, list[dict[str, float]]]:
    """Every kind once per round, each in a process of its own."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in kinds}
    for turn in range(rounds):
        for kind in kinds:
            command = [sys.executable, __file__, "--run", kind]
            output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
            found[kind].append(json.loads(output))
            print(f"round {turn + 1}, {kind}: {found[kind][-1]}", file=sys.stderr, flush=True)
    return found


def _ratio(found: dict[str, list[dict[str, float]]], over: str, under: str, name: str) -> dict[str, object]:
    ratios = [a[name] / b[name] for a, b in zip(found[over], found[under], strict=True)]
    return {"median": round(statistics.median(ratios), 3), "rounds": [round(ratio, 3) for ratio in ratios]}


def main() -> None:
    """Print one JSON document."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=["loss", "step"])
    parser.add_argument("--run", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run:
        kind, _, size = options.run.partition(":")
        print(json.dumps(run_step(int(size)) if kind == "step" else run_loss(kind, int(size or BATCH))))
        return
    document: dict[str, object] = {"threads": torch.get_num_threads(), "torch": torch.__version__}
    if options.only != "step":
        found = in_turns(["dense", "blocks"], options.rounds)
        document["loss"] = {
            "studies": BATCH,
            "peak_ratio": _ratio(found, "blocks", "dense", "peak_mb"),
            "time_ratio": _ratio(found, "blocks", "dense", "seconds"),
            "measured": found,
        }
    if options.only != "loss":
        large, small = f"step:{LARGE}", f"step:{SMALL}"
        found = in_turns([large, small], options.rounds)
        document["grad_cache"] = {
            "studies": [LARGE, SMALL],
            "peak_ratio": _ratio(found, large, small, "total_mb"),
            "peak_ratio_above_start": _ratio(found, large, small, "peak_mb"),
            "measured": found,
        }
    print(json.dumps(document, indent=1))


if __name__ == "__main__":
    main()
