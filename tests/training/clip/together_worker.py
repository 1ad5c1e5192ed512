"""One of two processes: ``together_worker.py RANK WORLD_SIZE FOLDER TOKENIZER_FOLDER``, see test_together.py.

As ``together_worker.py fails`` it is started by torchrun, and the second process fails where the first waits.
"""

import json
import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file
from transformers import AutoTokenizer, BertConfig, BertModel, TrainingArguments, ViTConfig, ViTModel

sys.path.insert(0, str(Path(__file__).parent))
from pair_worker import SMALL, StudiesOfWorker
from pair_worker import make_model as make_pair_model

from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.training.arguments import DEFAULTS
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.clip.feature_store import TextFeatureStore
from radtower.training.gather import divided

TEXTS = [
    "no nodule",
    "There is a small effusion. no nodule",
    "present",
    "no nodule",
    "Describe it",
    "small",
    "no",
]
# Loss and chunk size; a scan without numbers reaches the loss of the other process in some.
STOPS = {"infonce": None, "siglip": 1, "collapse": None}
DAMAGED = 5


class DamagedStudies(StudiesOfWorker):
    """The nine studies, one of which has no numbers."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        sample = super().__getitem__(index)
        factor = float("nan") if index == DAMAGED else 1.0
        return sample | {"pixel_values": sample["pixel_values"] * factor}


def message_of_stop(folder: Path, case: str, rank: int) -> str:
    """What a training says that cannot go on."""
    arguments = TrainingArguments(
        output_dir=str(folder / case),
        max_steps=9,
        per_device_train_batch_size=2,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        **DEFAULTS,
    )
    model = make_pair_model("infonce" if case == "collapse" else case)
    data = StudiesOfWorker() if case == "collapse" else DamagedStudies()
    if case == "collapse":
        torch.nn.init.zeros_(model.text_projection.weight)
    trainer = ContrastiveTrainer(model, arguments, train_dataset=data, chunk_size=STOPS[case])
    try:
        trainer.train()
    except FloatingPointError as error:
        return str(error)
    return ""


def make_store(tokenizer_folder: str, *, is_divided: bool) -> tuple[TextFeatureStore, list[int]]:
    """A store over a tiny frozen BERT, and how many texts it has read, call by call."""
    torch.manual_seed(4)
    tokenizer = AutoTokenizer.from_pretrained(tokenizer_folder, padding_side="right")
    vision = ViTModel(ViTConfig(**SMALL, image_size=8, patch_size=4), add_pooling_layer=False)
    text = BertModel(BertConfig(vocab_size=len(tokenizer), **SMALL), add_pooling_layer=False)
    poolings = {"vision_pooling": "cls", "text_pooling": "mean"}
    model = MedCLIPModel.from_towers(vision, text, projection_dim=6, **poolings)
    model.text_model.requires_grad_(False)
    read: list[int] = []
    model.text_model.register_forward_pre_hook(
        lambda _module, _args, kwargs: read.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    processor = MedCLIPProcessor(CT3DImageProcessor(), tokenizer, max_length=40)
    return TextFeatureStore(model, processor, is_divided=is_divided), read


def main() -> None:
    rank, world_size, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    torch.set_num_threads(1)
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world_size)}
    messages = {case: message_of_stop(folder, case, rank) for case in STOPS}
    (folder / f"messages_{rank}.json").write_text(json.dumps(messages))
    store, read = make_store(sys.argv[4], is_divided=True)
    found = {"features": store.features(TEXTS), "read": torch.tensor([sum(read)])}
    one = divided([3.0], lambda items: torch.tensor(items)[:, None] * (rank + 1), torch.device("cpu"))
    save_file(found | {"one": one}, folder / f"rank_{rank}.safetensors")


def fail() -> None:
    """Wait for a process that fails."""
    dist.init_process_group("gloo")
    if dist.get_rank() == 1:
        raise ValueError("the second process fails")
    dist.all_reduce(torch.zeros(1))


if __name__ == "__main__":
    if sys.argv[1] == "fails":
        fail()
    else:
        main()
