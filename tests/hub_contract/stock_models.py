"""The three families as somebody meets them who knows transformers only: a tiny model, samples, a processor.

Also a script, ``stock_models.py HOME``: it trains each with ``Trainer(push_to_hub=True)`` and loads it back.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoProcessor,
    AutoTokenizer,
    EvalPrediction,
    LlamaConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
    ViTConfig,
)

from radtower import (
    CT3DImageProcessor,
    CT3DVisionConfig,
    CT3DVisionForImageClassification,
    LLMBiEncoderConfig,
    LLMBiEncoderForSequenceClassification,
    MedCLIPConfig,
    MedCLIPModel,
    MedCLIPProcessor,
)

NUM_SAMPLES = 6
NUM_TOKENS = 5
FINDINGS = {0: "effusion", 1: "nodule", 2: "mass"}
AUTO_CLASSES = {
    "image": (AutoModelForImageClassification, AutoImageProcessor),
    "text": (AutoModelForSequenceClassification, AutoTokenizer),
    "pair": (AutoModel, AutoProcessor),
}
WORDS = ["<pad>", "<unk>", "no", "small", "nodule", "effusion", "mass", "there", "is"]


def vision_config() -> CT3DVisionConfig:
    return CT3DVisionConfig(hidden_sizes=[4, 8], layers=[1, 1], image_size=[8, 8, 8], id2label=FINDINGS)


def text_config() -> LLMBiEncoderConfig:
    decoder = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
        initializer_range=0.5,  # differences must show
    )
    return LLMBiEncoderConfig(text_config=decoder, pooling="mean", max_length=16, id2label=FINDINGS)


def pair_config() -> MedCLIPConfig:
    return MedCLIPConfig(
        vision_config=vision_config(),
        text_config=text_config(),
        projection_dim=8,
        findings=list(FINDINGS.values()),
    )


def picture_config() -> MedCLIPConfig:
    """A dual tower for 2D images, whose image tower is one of transformers."""
    vision = ViTConfig(
        image_size=8,
        patch_size=4,
        num_channels=1,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    return MedCLIPConfig(vision_config=vision, text_config=text_config(), projection_dim=8)


def build(kind: str) -> PreTrainedModel:
    """A new model of ``image``, ``text`` or ``pair``; the same one every time."""
    torch.manual_seed(0)
    if kind == "image":
        return CT3DVisionForImageClassification(vision_config())
    if kind == "text":
        return LLMBiEncoderForSequenceClassification(text_config())
    return MedCLIPModel(pair_config())


def build_tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(tokenizer_object=words, pad_token="<pad>", unk_token="<unk>")


def build_processor(kind: str) -> Any:
    """What goes along with the model: an image processor, a tokenizer, or both in one."""
    images = CT3DImageProcessor(spacing_mm=(3.0, 3.0, 3.0), size=(8, 8, 8))
    if kind == "pair":
        return MedCLIPProcessor(images, build_tokenizer(), max_length=16)
    return images if kind == "image" else build_tokenizer()


def build_samples(kind: str) -> list[dict[str, torch.Tensor]]:
    """``NUM_SAMPLES`` samples with labels."""
    generator = torch.Generator().manual_seed(1)
    scans = torch.rand(NUM_SAMPLES, 1, 8, 8, 8, generator=generator) * 2 - 1
    tokens = torch.randint(2, len(WORDS), (NUM_SAMPLES, NUM_TOKENS), generator=generator)
    labels = torch.randint(0, 2, (NUM_SAMPLES, len(FINDINGS)), generator=generator).float()
    samples = []
    for scan, ids, targets in zip(scans, tokens, labels, strict=True):
        text = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        image = {"pixel_values": scan}
        inputs = {"image": image, "text": text, "pair": image | text}[kind]
        samples.append(inputs | {"labels": targets})
    return samples


def build_trainer(
    kind: str,
    folder: Path,
    compute_metrics: Callable[[EvalPrediction], dict[str, float]] | None = None,
    **settings: Any,
) -> Trainer:
    """The Trainer of transformers for three steps of two samples, with nothing of ours but the model."""
    samples = build_samples(kind)
    settings = {"max_steps": 3, "save_steps": 2} | settings
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=2,
        per_device_eval_batch_size=4,
        learning_rate=0.01,
        logging_steps=1,
        use_cpu=True,
        dataloader_pin_memory=False,
        disable_tqdm=True,
        report_to="none",
        **settings,
    )
    return Trainer(
        build(kind),
        arguments,
        train_dataset=samples,
        eval_dataset=samples,
        processing_class=build_processor(kind),
        compute_metrics=compute_metrics,
    )


def main(home: Path) -> None:
    """Push each and load it back; print what each load found."""
    for kind, (model_class, processor_class) in AUTO_CLASSES.items():
        repo_id = f"tester/{kind}"
        trainer = build_trainer(
            kind, home / kind, push_to_hub=True, hub_model_id=repo_id, hub_private_repo=True
        )
        trainer.train()
        trainer.push_to_hub(dataset=f"{kind} phantoms")
        loaded = model_class.from_pretrained(repo_id)
        weights = trainer.model.state_dict()
        found = {
            "kind": kind,
            "class": type(loaded).__name__,
            "processor": type(processor_class.from_pretrained(repo_id)).__name__,
            "is_same": all(torch.equal(weights[name], value) for name, value in loaded.state_dict().items()),
        }
        sys.stdout.write(f"found {json.dumps(found)}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
