"""One of two processes under DeepSpeed's ZeRO: ``zero_worker.py RANK WORLD_SIZE FOLDER``.

On a CPU it needs ``DS_ACCELERATOR=cpu`` and a compiler for its exchange of tensors in shared memory.
"""

import os
import sys
from pathlib import Path

import torch
import yaml
from transformers import TrainingArguments

sys.path.insert(0, str(Path(__file__).parent))
import pair_worker

from radtower.training.arguments import DEFAULTS
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.clip_trainer import ContrastiveTrainer

RECIPE = Path(__file__).parents[3] / "recipes" / "accelerate" / "deepspeed_zero2.yaml"
CASES = {"whole_batch": None, "chunks": 1}


def train(
    folder: Path, case: str, num_per_process: int, precision: str = "no", resume_from: Path | None = None
) -> Path:
    """Train for three steps on batches of four studies over all processes, and save the model folder."""
    arguments = TrainingArguments(
        output_dir=str(folder / f"{case}_{'resumed' if resume_from else precision}_{num_per_process}"),
        max_steps=3,
        per_device_train_batch_size=num_per_process,
        learning_rate=0.1,
        optim="sgd",  # Adam would hide a factor
        ddp_backend="gloo" if num_per_process < 4 else None,
        use_cpu=num_per_process == 4,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **{**DEFAULTS, "logging_steps": 1, "save_strategy": "steps", "save_steps": 2},
    )
    arguments.bf16 = precision == "bf16"  # refused above where there is no GPU
    trainer = ContrastiveTrainer(
        pair_worker.make_model("infonce"),
        arguments,
        train_dataset=pair_worker.StudiesOfWorker(),
        chunk_size=CASES[case],
    )
    assert trainer.is_deepspeed_enabled == (num_per_process < 4)
    trainer.train(str(resume_from) if resume_from else None)
    return trainer.save_model_folder(ClipRun(manifest="m", cache="c", vision="v", text="t"))


def launched() -> dict[str, str]:
    """What ``accelerate launch --config_file recipes/accelerate/deepspeed_zero2.yaml`` sets, but for bf16."""
    settings = yaml.safe_load(RECIPE.read_text())["deepspeed_config"]
    starts = {"gradient_accumulation_steps": "ACCELERATE_", "gradient_clipping": "ACCELERATE_"}
    return {
        f"{starts.get(name, 'ACCELERATE_DEEPSPEED_')}{name.upper()}": str(value)
        for name, value in settings.items()
    } | {"ACCELERATE_USE_DEEPSPEED": "true", "DS_ACCELERATOR": "cpu"}


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    os.environ |= launched()
    for case in CASES:
        for precision in ("no", "bf16"):
            os.environ["ACCELERATE_MIXED_PRECISION"] = precision
            trained = train(folder, case, 4 // world_size, precision)
            if precision == "no":
                train(folder, case, 4 // world_size, precision, trained / "checkpoint-2")


if __name__ == "__main__":
    main()
