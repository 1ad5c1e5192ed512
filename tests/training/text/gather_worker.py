"""One of several processes: ``gather_worker.py RANK WORLD_SIZE FOLDER loss|train``; see test_gather.py."""

import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import TrainingArguments

from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.training.arguments import DEFAULTS
from radtower.training.gather import gather_with_gradient
from radtower.training.runs import TextContrastiveRun
from radtower.training.text.contrastive_batches import Pair
from radtower.training.text.contrastive_collation import PairCollator
from radtower.training.text.contrastive_trainer import ContrastiveLoss
from radtower.training.text.train_contrastive import train_contrastive

# One text twice, one label set twice, and pairs with 2, 1 and 0 hard negatives.
PAIRS = [
    Pair("There is no effusion.", "no effusion", ("effusion present", "small effusion")),
    Pair("small effusion", "effusion present", label_key="effusion"),
    Pair("There is a nodule", "no effusion", ("nodule",)),
    Pair("effusion", "Describe the effusion", ("no nodule",), label_key="effusion"),
    Pair("no nodule", "There is no nodule"),
    Pair("nodule and effusion", "small nodule", ("no effusion", "no nodule")),
    Pair("There", "small"),
]
LOSSES = [
    ContrastiveLoss(scale=15.0),
    ContrastiveLoss(scale=15.0, is_symmetric=False),
    ContrastiveLoss(scale=5.0, dims=(32, 8), dim_weights=(1.0, 0.5)),
]


def own_pairs(rank: int, world_size: int) -> list[Pair]:
    """Consecutive shares, of different sizes where they must be."""
    bounds = [len(PAIRS) * edge // world_size for edge in (rank, rank + 1)]
    return PAIRS[bounds[0] : bounds[1]]


def loss_and_gradients(llm: Path, pairs: list[Pair]) -> dict[str, torch.Tensor]:
    """Of each loss, the value and the gradient of every weight."""
    encoder = LLMBiEncoder.from_llm(llm, pooling="mean", max_length=64)
    batch = PairCollator(encoder.tokenizer, encoder.config, 2)(pairs)
    found = {}
    for number, loss in enumerate(LOSSES):
        encoder.zero_grad()
        queries, documents = (
            torch.cat([encoder(**chunk).pooler_output for chunk in batch[f"{side}_chunks"]])[
                batch[f"{side}_rows"]
            ]
            for side in ("query", "document")
        )
        value, statistics = loss(queries, documents, batch["document_keys"])
        value.backward()
        found |= {f"{number} {name}": p.grad.clone() for name, p in encoder.named_parameters()}
        found[f"{number} loss"] = value.detach()
        found[f"{number} statistics"] = statistics.sum(dim=0)
    return found


def gathered_by_hand(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Rank r has r + 1 rows of value r, and weighs row j of all by (r + 1) * j."""
    rows = torch.full((rank + 1, 2), float(rank), requires_grad=True)
    everyone = gather_with_gradient(rows)
    weight = torch.arange(len(everyone))[:, None] * (rank + 1.0)
    (everyone * weight).sum().backward()
    return {"rows": everyone.detach(), "gradient": rows.grad}


def train(settings: dict[str, Any], folder: Path, num_per_process: int) -> Path:
    """Train for three steps on batches of six pairs over all processes."""
    run = TextContrastiveRun(
        pairs=(str(folder / "pairs.parquet"),),
        llm=str(folder / "llm"),
        max_length=48,
        chunk_size=2,
        **settings,
    )
    arguments = TrainingArguments(
        output_dir=str(folder / f"batch_{num_per_process}"),
        max_steps=3,
        per_device_train_batch_size=num_per_process,
        learning_rate=0.01,
        optim="sgd",  # Adam would hide a factor
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **DEFAULTS,
    )
    return train_contrastive(run, arguments)


def main() -> None:
    rank, world_size, folder, task = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4]
    torch.set_num_threads(1)
    if task == "train":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        train({}, folder, 6 // world_size)
        return
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    found = loss_and_gradients(folder / "llm", own_pairs(rank, world_size))
    for name, value in found.items():
        dist.all_reduce(value)
        if not name.endswith("statistics"):  # as distributed training averages gradients
            value /= world_size
    save_file(found | gathered_by_hand(rank, world_size), folder / f"rank_{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
