import copy
import gc
import os

# Before transformers is imported: unit tests never reach the Hub.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers, processors
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTConfig,
)
from transformers.models.vit.image_processing_pil_vit import ViTImageProcessorPil

from local_hub import LocalHub, run_local_hub
from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.configuration.configuration_medclip import MedCLIPConfig
from radtower.labeling.findings import load_findings
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor

SPECIAL_TOKENS = ["<pad>", "<bos>", "<eos>"]
WHOLE_WORDS = ["There", "is", "no", "nodule", "effusion", "small", "present", "Describe"]
# The pre-tokenizer of Llama 3: one mark may stick to the word behind it, so that ".There" is one token.
LLAMA_3_WORDS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+"

# Two reconstructions of the first study; train_2 has a report of nothing; train_10 sorts after train_2.
CT_RATE_VOLUMES = {
    "train": ["train_1_a_1", "train_1_a_2", "train_1_b_1", "train_2_a_1", "train_10_a_1"],
    "valid": ["valid_1_a_1", "valid_1_a_2"],
}
CT_RATE_TABLES = {"train": "train", "valid": "validation"}


@pytest.fixture
def local_hub() -> Iterator[LocalHub]:
    """An empty Hub on 127.0.0.1."""
    with run_local_hub() as hub:
        yield hub


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> None:
    """Every training ends with a full garbage collection, 1.5 s over the modules and tests of this suite.

    What is alive when a file of tests begins stays alive, so the collections need not look at it.
    """
    gc.collect()
    gc.freeze()


def pytest_unconfigure() -> None:
    gc.unfreeze()  # else extension modules complain of leaks at the exit


def _byte_level_bpe() -> Tokenizer:
    merges = []
    for word in WHOLE_WORDS:
        merges += [(word[:end], word[end]) for end in range(1, len(word))]
    # "\u0120" is how byte-level tokenizers write a space.
    merges += [(mark, word) for word in WHOLE_WORDS for mark in ("\u0120", ".")]
    merges = list(dict.fromkeys(merges))
    pieces = SPECIAL_TOKENS + sorted(pre_tokenizers.ByteLevel.alphabet()) + ["".join(pair) for pair in merges]
    vocab = {piece: index for index, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(LLAMA_3_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(
                single="<bos> $A", pair="<bos> $A <bos> $B", special_tokens=[("<bos>", vocab["<bos>"])]
            ),
        ]
    )
    tokenizer.decoder = ByteLevelDecoder()
    return tokenizer


@pytest.fixture
def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, Llama-3 style: any text, a <bos> in front, some words whole; padded on the left."""
    return PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )


@pytest.fixture(scope="session")
def tiny_llm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal language model of two layers and its tokenizer, as a Hub folder. Read-only."""
    folder = tmp_path_factory.mktemp("tiny_llm")
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=_byte_level_bpe(),
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        padding_side="left",
    )
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    LlamaForCausalLM(_tiny_llama_config(len(tokenizer))).save_pretrained(folder)
    return folder


def _tiny_llama_config(vocab_size: int) -> LlamaConfig:
    return LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=256,
        initializer_range=0.2,  # larger than usual: differences between texts must show
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )


@pytest.fixture
def tiny_text_config(tiny_tokenizer: PreTrainedTokenizerFast) -> LLMBiEncoderConfig:
    """Latent attention over a two-layer Llama that reads ``tiny_tokenizer``."""
    return LLMBiEncoderConfig(
        text_config=_tiny_llama_config(len(tiny_tokenizer)), num_latents=6, num_latent_heads=4, max_length=64
    )


@pytest.fixture
def tiny_vision_config() -> CT3DVisionConfig:
    """Two stages of one block; 8 x 8 x 8 voxels become 2 x 2 x 2."""
    return CT3DVisionConfig(
        hidden_sizes=[8, 16], layers=[1, 1], image_size=[8, 8, 8], id2label={0: "effusion", 1: "nodule"}
    )


@pytest.fixture
def tiny_medclip(
    tiny_vision_config: CT3DVisionConfig,
    tiny_text_config: LLMBiEncoderConfig,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> MedCLIPModel:
    """Both tiny towers with a finding head for two findings and a processor; in eval mode."""
    config = MedCLIPConfig(
        vision_config=tiny_vision_config.to_dict(),
        text_config=tiny_text_config.to_dict(),
        projection_dim=12,
        findings=["effusion", "nodule"],
    )
    model = MedCLIPModel(config).eval()
    model.processor = MedCLIPProcessor(
        CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8)), tiny_tokenizer, max_length=64
    )
    return model


@pytest.fixture
def tiny_vit_config() -> ViTConfig:
    """Two layers on 16 x 16 pixels; differences between images must show."""
    return ViTConfig(
        image_size=16,
        patch_size=4,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.3,
    )


@pytest.fixture
def tiny_image_clip(
    tiny_vit_config: ViTConfig,
    tiny_text_config: LLMBiEncoderConfig,
    tiny_tokenizer: PreTrainedTokenizerFast,
) -> MedCLIPModel:
    """A dual tower for 2D images with a processor; in eval mode."""
    config = MedCLIPConfig(
        vision_config=tiny_vit_config.to_dict(), text_config=tiny_text_config.to_dict(), projection_dim=12
    )
    model = MedCLIPModel(config).eval()
    model.processor = MedCLIPProcessor(
        ViTImageProcessorPil(size={"height": 16, "width": 16}), tiny_tokenizer, max_length=64
    )
    return model


@pytest.fixture
def fit_with_stock_trainer(tmp_path: Path) -> Callable[..., tuple[list[float], float]]:
    """Train on a handful of samples; gives the loss of every step and the ``eval_loss`` at the end."""

    def fit(
        model: PreTrainedModel,
        samples: Sequence[dict[str, Any]],
        steps: int,
        learning_rate: float,
        **settings: Any,
    ) -> tuple[list[float], float]:
        arguments = TrainingArguments(
            output_dir=str(tmp_path / "trainer"),
            max_steps=steps,
            learning_rate=learning_rate,
            per_device_train_batch_size=len(samples),
            use_cpu=True,
            dataloader_pin_memory=False,
            disable_tqdm=True,
            logging_steps=1,
            report_to="none",
            save_strategy="no",
            seed=0,
            **settings,
        )
        trainer = Trainer(model, arguments, train_dataset=samples, eval_dataset=samples)
        trainer.train()
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        return losses, trainer.evaluate()["eval_loss"]

    return fit


@pytest.fixture
def checkpointed_copy() -> Callable[[PreTrainedModel], PreTrainedModel]:
    """Give a copy of a model that recomputes its activations."""

    def build(model: PreTrainedModel) -> PreTrainedModel:
        thrifty = copy.deepcopy(model).train()
        # The second name is deprecated in favor of the first, which old releases lack.
        names = ("activation_checkpointing_enable", "gradient_checkpointing_enable")
        getattr(thrifty, next(name for name in names if hasattr(thrifty, name)))()
        return thrifty

    return build


def _write_ct_rate(
    root: Path,
    suffix: str = "_fixed",
    write: Callable[[Path], None] = Path.touch,
    volumes_of: Mapping[str, Sequence[str]] = MappingProxyType(CT_RATE_VOLUMES),
) -> Path:
    """Write a CT-RATE tree; ``write`` makes each volume."""
    for split, volumes in volumes_of.items():
        for volume in volumes:
            study = volume.rpartition("_")[0]
            folder = root / "dataset" / f"{split}{suffix}" / study.rpartition("_")[0] / study
            folder.mkdir(parents=True, exist_ok=True)
            write(folder / f"{volume}.nii.gz")
        names = [f"{volume}.nii.gz" for volume in volumes]
        _write_ct_rate_tables(root / "dataset", split, names)
    (root / "dataset" / "metadata" / "no_chest_train.txt").write_text(
        "train/train_1/train_1_b/train_1_b_1.nii.gz\n\n"
    )
    (root / "dataset" / "metadata" / "no_chest_valid.txt").write_text("")
    return root


def _write_ct_rate_tables(folder: Path, split: str, names: Sequence[str]) -> None:
    """Reports, labels and metadata of one split, with more columns than anybody reads."""
    is_empty = [name.startswith("train_2_") for name in names]
    reports = pd.DataFrame(
        {
            "VolumeName": names,
            "ClinicalInformation_EN": "Cough.",
            "Technique_EN": "Thin sections.",
            "Findings_EN": ["Not given." if empty else "Clear lungs." for empty in is_empty],
            "Impressions_EN": [
                "Not given." if empty else f"Normal {name[:9]}."
                for empty, name in zip(is_empty, names, strict=True)
            ],
        }
    )
    labels = pd.DataFrame({"VolumeName": names, **dict.fromkeys(load_findings("ct_rate_18").names, 0)})
    labels["Lung nodule"] = [int(name.split("_")[1] in ("1", "10")) for name in names]
    metadata = pd.DataFrame(
        {
            "VolumeName": names,
            "Manufacturer": "SIEMENS",
            "PatientAge": "036Y",
            "XYSpacing": [f"[0.75, 0.{number + 5}]" for number in range(len(names))],
            "RescaleIntercept": -8192,
            "RescaleSlope": 1.5,
            "ZSpacing": [number + 1.5 for number in range(len(names))],
        }
    )
    for name, table in {
        f"radiology_text_reports/{CT_RATE_TABLES[split]}_reports.csv": reports,
        f"multi_abnormality_labels/{split}_predicted_labels.csv": labels,
        f"metadata/{CT_RATE_TABLES[split]}_metadata.csv": metadata,
    }.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(folder / name, index=False)


@pytest.fixture
def write_ct_rate() -> Callable[..., Path]:
    """Write a CT-RATE tree: folder, suffix of the volume folders ("" is version 1), what makes a volume."""
    return _write_ct_rate


@pytest.fixture
def ct_rate(tmp_path: Path) -> Path:
    """A CT-RATE tree of version 2 with empty files."""
    return _write_ct_rate(tmp_path / "ct_rate")


@pytest.fixture
def slurm(tmp_path, monkeypatch) -> Path:
    """Commands of the names of Slurm's: sbatch keeps what it is given, scontrol names one host."""
    commands = tmp_path / "bin"
    commands.mkdir()
    sbatch = f'#!/bin/sh\nn=$(ls {commands} | wc -l)\nfor last; do :; done\ncp "$last" {commands}/job$n\n'
    (commands / "sbatch").write_text(sbatch + f'echo "$@" > {commands}/job$n.args\necho Submitted job $n\n')
    (commands / "scontrol").write_text("#!/bin/sh\necho host\n")
    for name in ("sbatch", "scontrol"):
        (commands / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{commands}:{os.environ['PATH']}")
    return commands


@pytest.fixture(scope="session")
def _evaluate_offline(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The library, offline. One folder of modules for the whole run: their package is imported once."""
    import evaluate  # noqa: PLC0415 -- takes its time, and few tests need it

    root = tmp_path_factory.mktemp("evaluate")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(evaluate.config, "HF_EVALUATE_OFFLINE", True)
        patch.setattr(evaluate.config, "HF_MODULES_CACHE", root / "modules")
        patch.setattr(evaluate.config, "HF_METRICS_CACHE", root / "metrics")
        patch.syspath_prepend(str(root / "modules"))
        yield evaluate


@pytest.fixture
def load_metric(_evaluate_offline: Any) -> Callable[[Path], Any]:
    """Load a metric of ``evaluate`` from a folder."""

    def load(folder: Path) -> Any:
        # In memory: after an error, evaluate keeps the lock of its file, and the next module waits for it.
        return _evaluate_offline.load(str(folder), keep_in_memory=True)

    return load
