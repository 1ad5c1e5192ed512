"""One of several processes: ``pair_worker.py RANK WORLD_SIZE FOLDER [CHUNK_SIZE|sharded]``.

With a chunk size it trains (test_clip_trainer.py), else it takes gradients (test_pair_loss.py).
"""

import itertools
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset
from transformers import BertConfig, BertModel, TrainingArguments, ViTConfig, ViTModel

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.arguments import DEFAULTS
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.clip.grad_cache import cached_backward
from radtower.training.clip.pair_loss import PairLoss

SMALL = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
}
NUM_STUDIES = 9
LOSSES = {
    "infonce": {},
    "siglip": {"logit_bias_init": -2.0},
    "soft_infonce": {"label_share": 0.4},
    "infonce_cuts": {"matryoshka_dims": [3, 6]},
    "legacy": {"similarity": "legacy_dot"},
}
CASES = list(itertools.product(LOSSES, (False, True), (False, True)))


def make_model(loss: str, dropout: float = 0.0) -> MedCLIPModel:
    """A tiny dual tower with a finding head."""
    torch.manual_seed(4)
    tower = {**SMALL, "hidden_dropout_prob": dropout, "attention_probs_dropout_prob": 0.0}
    vision = ViTModel(ViTConfig(**tower, image_size=8, patch_size=4), add_pooling_layer=False)
    text = BertModel(BertConfig(vocab_size=32, **tower), add_pooling_layer=False)
    return MedCLIPModel.from_towers(
        vision,
        text,
        projection_dim=6,
        vision_pooling="cls",
        text_pooling="mean",
        findings=["nodule", "effusion"],
        loss={"infonce_cuts": "infonce", "legacy": "infonce"}.get(loss, loss),
        **LOSSES[loss],
    )


def make_batch() -> dict[str, torch.Tensor]:
    """Nine studies: one report twice, one study twice, labels that are partly unknown."""
    torch.manual_seed(5)
    labels = torch.randint(0, 2, (NUM_STUDIES, 2)).float()
    labels[2] = labels[5, 1] = -100
    keys = torch.stack([torch.arange(1, 1 + NUM_STUDIES), torch.arange(51, 51 + NUM_STUDIES)], dim=1)
    keys[7, 0], keys[3, 1] = keys[0, 0], keys[1, 1]
    ids = torch.randint(1, 32, (NUM_STUDIES, 6))
    mask = (torch.arange(6) < torch.randint(2, 7, (NUM_STUDIES, 1))).long()
    return {
        "pixel_values": torch.randn(NUM_STUDIES, 3, 8, 8),
        "input_ids": ids,
        "attention_mask": mask,
        "labels": labels,
        "pair_keys": keys,
    }


def own_rows_of(batch: dict[str, torch.Tensor], rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Consecutive shares, of different sizes where they must be."""
    start, end = (NUM_STUDIES * edge // world_size for edge in (rank, rank + 1))
    return {name: value[start:end] for name, value in batch.items()}


def loss_and_gradients(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """Of each case, the value and the gradient of every weight."""
    found = {}
    for loss, is_chunked, has_autocast in CASES:
        model = make_model(loss).train()
        wrapped = DistributedDataParallel(model) if world_size > 1 else model
        inputs = own_rows_of(make_batch(), rank, world_size)
        relations = {name: inputs.pop(name) for name in ("labels", "pair_keys")}
        pair_loss = PairLoss(objective=model.objective)

        def of_batch(output, pair_loss=pair_loss, relations=relations):
            with torch.autocast("cpu", enabled=False):
                return pair_loss(output, **relations)

        with torch.autocast("cpu", torch.bfloat16, enabled=has_autocast):
            if is_chunked:
                no_sync = wrapped.no_sync if world_size > 1 else nullcontext
                value = cached_backward(wrapped, inputs, 2, of_batch, torch.Tensor.backward, no_sync)
            else:
                value = of_batch(wrapped(**inputs, return_loss=False))
                value.backward()
        name = f"{loss} {is_chunked} {has_autocast}"
        found |= {f"{name} {n}": p.grad.clone() for n, p in model.named_parameters() if p.requires_grad}
        found[f"{name} loss"] = value.detach().clone()
    return found


def sharded_gradients(rank: int, world_size: int) -> dict[str, torch.Tensor]:
    """As above in chunks, with weights and gradients in shards (FSDP2), on the first eight studies."""
    model = make_model("infonce").train()
    batch = {name: value[:8] for name, value in make_batch().items()}
    if world_size > 1:
        mesh = init_device_mesh("cpu", (world_size,))
        for block in (*model.vision_model.layers, *model.text_model.encoder.layer):
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    size = 8 // world_size
    inputs = {name: value[rank * size : (rank + 1) * size] for name, value in batch.items()}
    relations = {name: inputs.pop(name) for name in ("labels", "pair_keys")}
    pair_loss = PairLoss(objective=model.objective)
    value = cached_backward(model, inputs, 2, lambda out: pair_loss(out, **relations), torch.Tensor.backward)
    found = {}
    for name, parameter in model.named_parameters():
        gradient = parameter.grad
        found[name] = (gradient.full_tensor() if isinstance(gradient, DTensor) else gradient).clone()
    return found | {"loss": value.clone()}


class StudiesOfWorker(Dataset):
    """The nine studies, one by one."""

    epoch = 0

    def __init__(self) -> None:
        self.batch = make_batch()
        self.pair_keys = self.batch["pair_keys"]
        self.volume_ids = [f"volume-{row}" for row in range(NUM_STUDIES)]

    def __len__(self) -> int:
        return NUM_STUDIES

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value[index] for name, value in self.batch.items()} | {"row": torch.tensor(index)}


def train(folder: Path, num_per_process: int, chunk_size: int) -> Path:
    """Train for three steps on batches of four studies over all processes."""
    arguments = TrainingArguments(
        output_dir=str(folder / f"batch_{num_per_process}"),
        max_steps=3,
        per_device_train_batch_size=num_per_process,
        learning_rate=0.5,
        optim="sgd",  # Adam would hide a factor
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **DEFAULTS,
    )
    trainer = ContrastiveTrainer(
        make_model("infonce"), arguments, train_dataset=StudiesOfWorker(), chunk_size=chunk_size or None
    )
    trainer.train()
    trainer.save_model(str(folder / f"batch_{num_per_process}"))
    return folder / f"batch_{num_per_process}"


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    if len(sys.argv) > 4 and sys.argv[4] != "sharded":
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        train(folder, 4 // world_size, int(sys.argv[4]) // world_size)
        return
    is_sharded = len(sys.argv) > 4
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    found = (sharded_gradients if is_sharded else loss_and_gradients)(rank, world_size)
    for name, value in found.items():
        if name.endswith("loss"):  # gradients were averaged already
            dist.all_reduce(value)
            value /= world_size
    save_file(found, folder / f"rank_{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
