"""Fine-tune an LLM into a labeler of reports: a status per finding, from a small gold table."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

import pandas as pd
import torch
from transformers import TrainerCallback, TrainingArguments, set_seed

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.data.collation import ReportCollator
from radtower.data.manifest import read_manifest
from radtower.data.targets import TargetPolicy
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.processing.report_text import normalize_report
from radtower.training.runs import LabelerRun
from radtower.training.text.frozen_trunk import FrozenTrunk, freeze_lower_layers
from radtower.training.text.lora import add_lora, merge_lora
from radtower.training.trainer import SupervisedTrainer


def train_labeler(
    run: LabelerRun, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Train on the studies that have a gold row, and save the model folder.

    Args:
        run: Data and model.
        arguments: Optimization; ``output_dir`` is the model folder.
        callbacks: Further hooks.

    Returns:
        The model folder.

    Raises:
        ValueError: If a gold row belongs to no study, more layers are frozen than there are, or a setting
            does not fit the language model.
    """
    set_seed(arguments.seed)
    samples, keys = _gold_samples(run)
    encoder = LLMBiEncoder.from_llm(
        run.llm,
        num_hidden_layers=run.num_hidden_layers,
        pooling="mean",
        bidirectional=run.bidirectional,
        max_length=run.max_length,
        id2label=dict(enumerate(keys)),
        label2id={key: column for column, key in enumerate(keys)},
        problem_type="multi_label_classification",
    )
    assert isinstance(encoder.config, LLMBiEncoderConfig)
    model = LLMBiEncoderForSequenceClassification(encoder.config)
    model.encoder.load_state_dict(encoder.state_dict())
    freeze_lower_layers(model.encoder, run.num_frozen_layers)
    if run.lora_rank:
        add_lora(
            model.encoder,
            run.lora_rank,
            run.lora_alpha,
            run.lora_dropout,
            num_frozen_layers=run.num_frozen_layers,
        )
    trainer = SupervisedTrainer(
        model,
        arguments,
        train_dataset=samples,
        data_collator=ReportCollator(encoder.tokenizer, run.max_length),
        processing_class=encoder.tokenizer,
        callbacks=list(callbacks),
        run=run,
        optimizers=(labeler_optimizer(model, arguments, run.head_learning_rate), None),
    )
    stored = FrozenTrunk(model.encoder, run.num_frozen_layers) if run.should_cache_frozen else None
    with stored or nullcontext():
        if stored is not None:
            texts = [str(sample["text"]) for sample in samples]
            stored.add(encoder.tokenizer(texts, max_length=run.max_length, truncation=True)["input_ids"])
        trainer.train(arguments.resume_from_checkpoint)
    if run.lora_rank:
        merge_lora(model.encoder)
    return trainer.save_model_folder(run)


def labeler_optimizer(
    model: LLMBiEncoderForSequenceClassification,
    arguments: TrainingArguments,
    head_learning_rate: float | None,
) -> torch.optim.Optimizer:
    """Build AdamW with a learning rate of its own for the finding attention; frozen weights are left out."""
    head = list(model.finding_attention.parameters())
    body = [parameter for parameter in model.encoder.parameters() if parameter.requires_grad]
    groups = [
        {"params": head, "lr": head_learning_rate or arguments.learning_rate},
        {"params": body, "lr": arguments.learning_rate},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], weight_decay=arguments.weight_decay
    )


def _gold_samples(run: LabelerRun) -> tuple[list[dict[str, str | torch.Tensor]], list[str]]:
    """Reports with their targets, and the findings in column order."""
    # The volumes of a study share its report.
    manifest = read_manifest(run.manifest).frame.drop_duplicates("study_id").set_index("study_id")
    gold = pd.read_csv(run.gold, dtype=str).set_index("study_id")
    num_unknown = len(set(gold.index) - set(manifest.index))
    if num_unknown:
        raise ValueError(
            f"gold must hold studies of the manifest, got {num_unknown} of {len(gold)} that are not in it. "
            "Pair the two files of one data set."
        )
    policy = TargetPolicy(uncertain=run.uncertain, not_mentioned=run.not_mentioned)
    targets = torch.from_numpy(policy.targets_from_status(gold))
    texts = manifest.loc[gold.index, "report"]
    samples = [
        {"text": normalize_report(text), "labels": row} for text, row in zip(texts, targets, strict=True)
    ]
    return samples, list(gold.columns)
