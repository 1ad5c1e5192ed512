"""Time the fused inference form of the latent-attention head against the plain one and the published one.

Prints one JSON document. ``published`` is nn.MultiheadAttention, the MLP per token, then the mean; ``plain``
is what runs in training; ``fused`` is what runs in eval mode without gradients, its check of the weights
included. They are timed in alternation, so that other load meets all; CPU seconds of the process, medians.
"""

import argparse
import json
import statistics
import time
from typing import Any

import torch

from radtower.modeling.modeling_latent_attention import LatentAttentionPooling, masked_mean


def published(head: LatentAttentionPooling, hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Pool as the public code of LLM2Vec4CXR does."""
    latents = head.latents.expand(len(hidden), -1, -1)
    return masked_mean(head.mlp(head.multihead_attn(hidden, latents, latents)[0]), mask)


@torch.no_grad()
def measure(width: int, num_texts: int, num_tokens: int, rounds: int) -> dict[str, Any]:
    """Time the three forms on texts without padding."""
    torch.manual_seed(0)
    head = LatentAttentionPooling(width, 512, 8, "v0")
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=width**-0.5)
    hidden, mask = torch.randn(num_texts, num_tokens, width), torch.ones(num_texts, num_tokens)
    forms = {
        "published": lambda: published(head, hidden, mask),
        "plain": lambda: head.train()(hidden, mask),
        "fused": lambda: head.eval()(hidden, mask),
    }
    seconds: dict[str, list[float]] = {name: [] for name in forms}
    outputs = {}
    for turn in range(rounds + 1):  # the first round warms up and does not count
        for name, form in forms.items():
            start = time.process_time()
            outputs[name] = form()
            if turn:
                seconds[name].append(time.process_time() - start)
    median = {name: statistics.median(values) for name, values in seconds.items()}
    return {
        "width": width,
        "texts": num_texts,
        "tokens": num_tokens,
        "cpu_ms": {name: round(1000 * value, 2) for name, value in median.items()},
        "published_over_fused": round(median["published"] / median["fused"], 2),
        "plain_over_fused": round(median["plain"] / median["fused"], 2),
        "max_difference": (outputs["fused"] - outputs["published"]).abs().max().item(),
    }


def main() -> None:
    """Run every case and print it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--widths", type=int, nargs="+", default=(576, 1024, 2048))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    cases = [(width, *shape) for width in given.widths for shape in ((1, 32), (8, 64), (16, 128))]
    result = {
        "rounds": given.rounds,
        "threads": given.threads,
        "torch": torch.__version__,
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cases": [measure(*case, given.rounds) for case in cases],
    }
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
