"""One of two processes with weights in shards: ``shard_worker.py RANK WORLD_SIZE FOLDER CASE...``.

accelerate shards on GPUs only; told that these processes are such, it does all that it does there.
"""

import os
import sys
from pathlib import Path

import torch
import yaml
from accelerate import PartialState
from accelerate.utils import DistributedType
from torch.nn.utils import convert_conv3d_weight_memory_format
from transformers import BertConfig, BertModel, TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))
import adapter_worker
import pair_worker

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.training.arguments import DEFAULTS
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.clip.freezing import set_tower_mode
from radtower.training.shards import is_sharded

RECIPE = Path(__file__).parents[3] / "recipes" / "accelerate" / "fsdp2.yaml"
NUM_STEPS = 3
PLAIN = {"optim": "sgd", "learning_rate": 0.1}
RUN = ClipRun(manifest="m", cache="c", vision="v", text="t", vision_mode="lora", text_mode="lora")
# Which model, and settings of its trainer.
CASES = {
    "whole_batch": ("full", {}),
    "chunks": ("full", {"chunk_size": 1}),
    "frozen_text": ("frozen", {"chunk_size": 1}),
    "adapters": ("bert_lora", {"chunk_size": 1, "ema_decay": 0.5}),
    "soft_prompt": ("soft_prompt", {}),
    "average": ("full", {"ema_decay": 0.6}),
    "ct3d": ("ct3d", {"chunk_size": 1}),
    "bf16": ("frozen", {"chunk_size": 1}),
}


def make_model(kind: str) -> MedCLIPModel:
    """A tiny dual tower; ``ct3d`` has the 3D tower, with weights as the training lays them out."""
    if kind in adapter_worker.CASES:
        return adapter_worker.make_model(kind)
    if kind == "ct3d":
        torch.manual_seed(6)
        shape = {"hidden_sizes": [4, 8], "layers": [1, 1], "image_size": [8, 8, 8], "pooling": "gated"}
        calm = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        text = BertModel(BertConfig(vocab_size=32, **pair_worker.SMALL, **calm), add_pooling_layer=False)
        vision = CT3DVisionModel(CT3DVisionConfig(**shape))
        model = MedCLIPModel.from_towers(vision, text, projection_dim=6, text_pooling="mean")
        convert_conv3d_weight_memory_format(model.vision_model, torch.channels_last_3d)
        set_tower_mode(model.vision_model, "full")
        for norm in model.vision_model.modules():
            if hasattr(norm, "running_mean"):
                norm.requires_grad_(False)  # they rest: statistics of a batch are not those of its parts
        return model
    model = pair_worker.make_model("infonce")
    if kind == "frozen":
        model.text_model.requires_grad_(False)
    return model


class Studies(pair_worker.StudiesOfWorker):
    """The nine studies, with volumes in place of images where the tower reads those."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        if kind == "ct3d":
            self.batch["pixel_values"] = torch.randn(len(self), 1, 8, 8, 8)
            del self.batch["labels"]


def train(
    folder: Path, case: str, num_per_process: int, resume_from: Path | None = None
) -> ContrastiveTrainer:
    """Train for three steps on batches of four studies over all processes, and save the model folder."""
    kind, settings = CASES[case]
    num_processes = 4 // num_per_process
    has_state = "ema_decay" in settings
    arguments = TrainingArguments(
        output_dir=str(folder / f"{case}_{num_processes}{'_resumed' if resume_from else ''}"),
        max_steps=NUM_STEPS,
        per_device_train_batch_size=num_per_process,
        # Adam would hide a factor, and SGD has no state to resume.
        **({"optim": "adamw_torch", "learning_rate": 0.02, "adam_epsilon": 0.01} if has_state else PLAIN),
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **{**DEFAULTS, "save_strategy": "steps", "save_steps": 2, "logging_steps": 1},
    )
    if num_processes > 1:
        PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU
    torch.manual_seed(8)
    model = make_model(kind)
    trainer = ContrastiveTrainer(
        model, arguments, train_dataset=Studies(kind), run=RUN if kind == "bert_lora" else None, **settings
    )
    trainer.train(str(resume_from) if resume_from else None)
    assert is_sharded(trainer.model) == (num_processes > 1)
    trainer.save_model_folder(RUN)


def shard() -> None:
    """Set what ``accelerate launch --config_file recipes/accelerate/fsdp2.yaml`` sets, but for bf16."""
    settings = yaml.safe_load(RECIPE.read_text())["fsdp_config"]
    os.environ["ACCELERATE_USE_FSDP"] = "true"
    os.environ |= {name.upper(): str(value) for name, value in settings.items()}


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    shard()
    for case in sys.argv[4:]:
        os.environ["ACCELERATE_MIXED_PRECISION"] = "bf16" if case == "bf16" else "no"
        train(folder, case, 4 // world_size)
        if "ema_decay" in CASES[case][1]:
            train(folder, case, 4 // world_size, folder / f"{case}_{world_size}" / "checkpoint-2")


if __name__ == "__main__":
    main()
