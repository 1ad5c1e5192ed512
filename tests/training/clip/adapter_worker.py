"""One of several processes that train parts of towers: ``adapter_worker.py RANK WORLD_SIZE FOLDER [CHUNK]``.

With a chunk size it trains and saves a model folder, else it takes gradients (test_adapters_distributed.py).
"""

import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel
from transformers import BertConfig, BertModel, LlamaConfig, TrainingArguments, ViTConfig, ViTModel

sys.path.insert(0, str(Path(__file__).parent))
from pair_worker import NUM_STUDIES, SMALL, StudiesOfWorker, make_batch, own_rows_of

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.arguments import DEFAULTS
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.clip.freezing import set_tower_mode
from radtower.training.clip.grad_cache import VECTORS_ONLY, cached_backward
from radtower.training.clip.pair_loss import PairLoss
from radtower.training.clip.tower_lora import LoraSettings

LAYERS = {**SMALL, "num_hidden_layers": 2}
# Text tower, what trains in the image tower, what trains in the text tower.
CASES = {
    "bert_lora": ("bert", "lora", "lora"),
    "llm_lora": ("llm", "frozen", "lora"),
    "soft_prompt": ("llm", "lora", "soft_prompt"),
    "last_n": ("bert", "last_n", "last_n"),
    "llm_last_n": ("llm", "last_n", "last_n"),
}


def make_model(case: str, dropout: float = 0.0) -> MedCLIPModel:
    """A tiny dual tower with the modes of a case; all adapters have gradients from the start."""
    kind, *modes = CASES[case]
    torch.manual_seed(6)
    calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    vision = ViTModel(ViTConfig(**LAYERS, **calm, image_size=8, patch_size=4), add_pooling_layer=False)
    if kind == "bert":
        text = BertModel(BertConfig(vocab_size=32, **LAYERS, **calm), add_pooling_layer=False)
    else:
        decoder = LlamaConfig(vocab_size=32, **LAYERS, num_key_value_heads=2)
        text = LLMBiEncoder(
            LLMBiEncoderConfig(
                text_config=decoder, num_latents=4, num_latent_heads=2, max_length=32, num_soft_tokens=2
            )
        )
    model = MedCLIPModel.from_towers(
        vision,
        text,
        projection_dim=6,
        vision_pooling="cls",
        text_pooling="mean" if kind == "bert" else "pooler",
        findings=["nodule", "effusion"],
    )
    for tower, mode in zip((model.vision_model, model.text_model), modes, strict=True):
        lora = LoraSettings(rank=3, alpha=6.0, dropout=dropout) if mode == "lora" else None
        set_tower_mode(tower, mode, lora=lora, num_last_layers=1 if mode == "last_n" else None)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    return model


def gradients(rank: int, world_size: int, case: str, chunk_size: int | None) -> dict[str, torch.Tensor]:
    """The loss of the rows of this process, and the gradient of every weight that trains."""
    model = make_model(case).train()
    wrapped = DistributedDataParallel(model) if world_size > 1 else model
    inputs = own_rows_of(make_batch(), rank, world_size)
    relations = {name: inputs.pop(name) for name in ("labels", "pair_keys")}
    pair_loss = PairLoss(objective=model.objective)
    if chunk_size is None:
        value = pair_loss(wrapped(**inputs, **VECTORS_ONLY), **relations)
        value.backward()
    else:
        no_sync = wrapped.no_sync if world_size > 1 else nullcontext
        value = cached_backward(
            wrapped,
            inputs,
            chunk_size,
            lambda output: pair_loss(output, **relations),
            torch.Tensor.backward,
            no_sync,
        )
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.requires_grad}
    return found | {"loss": value.detach().clone()}


def train(folder: Path, case: str, num_per_process: int, chunk_size: int | None) -> Path:
    """Train for three steps on batches of four studies over all processes, and save the merged model."""
    arguments = TrainingArguments(
        output_dir=str(folder / f"{case}_{num_per_process}"),
        max_steps=3,
        per_device_train_batch_size=num_per_process,
        learning_rate=0.2,
        optim="sgd",  # Adam would hide a factor
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **DEFAULTS,
    )
    trainer = ContrastiveTrainer(
        make_model(case), arguments, train_dataset=StudiesOfWorker(), chunk_size=chunk_size, ema_decay=0.5
    )
    trainer.train()
    settings = {}
    for side, mode in zip(("vision", "text"), CASES[case][1:], strict=True):
        settings |= {f"{side}_mode": mode} | ({f"num_last_{side}_layers": 1} if mode == "last_n" else {})
    return trainer.save_model_folder(ClipRun(manifest="m", cache="c", vision="v", text="t", **settings))


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    assert NUM_STUDIES % world_size  # the processes have different numbers of chunks
    if len(sys.argv) > 4:
        os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
        for case in CASES:
            train(folder, case, 4 // world_size, int(sys.argv[4]))
        return
    dist.init_process_group("gloo", f"file://{folder}/meet", rank=rank, world_size=world_size)
    found = {}
    for case in CASES:
        for chunk_size in (None, 2):
            values = gradients(rank, world_size, case, chunk_size)
            dist.all_reduce(values["loss"])  # gradients were averaged already
            values["loss"] /= world_size
            found |= {f"{case} {chunk_size} {name}": value for name, value in values.items()}
    save_file(found, folder / f"rank_{rank}.safetensors")
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
