"""Fine-tune an LLM into a labeler of reports: P(present) per finding, from gold or from another labeler."""

import logging
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from transformers import (
    AutoConfig,
    AutoTokenizer,
    IntervalStrategy,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.data.collation import ReportCollator
from radtower.data.reports.labeled_reports import (
    LabeledReports,
    LabeledSplits,
    read_gold_splits,
    read_silver_splits,
    read_table_splits,
)
from radtower.data.targets import TargetPolicy
from radtower.evaluation.calibration import fit_temperature
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_heads import LLMBiEncoderForSequenceClassification
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.safe_loading import load_model
from radtower.training.runs import LabelerRun
from radtower.training.text.encoder_folder import is_encoder_folder
from radtower.training.text.frozen_trunk import FrozenTrunk, freeze_lower_layers
from radtower.training.text.lora import add_lora, merge_lora
from radtower.training.trainer import SupervisedTrainer

logger = logging.getLogger(__name__)

NUM_SCALE_REPORTS = 128  # reports that the scale of the features is measured on
SCALE_BATCH = 4


def train_labeler(
    run: LabelerRun,
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    on_note: Callable[[str], None] = logger.info,
) -> Path:
    """Train on the labeled reports of ``train``, calibrate on those of ``validation``, and save the folder.

    With an ``eval_strategy``, the macro AUROC of ``validation`` is measured on the way. The temperature is
    fitted at the end, on reports cut at ``max_length``, and stored as ``label_temperature`` of the
    configuration; without validation it stays 1.

    Args:
        run: Data and model.
        arguments: Optimization; ``output_dir`` is the model folder.
        callbacks: Further hooks.
        on_note: Takes each sentence about the data and the calibration.

    Returns:
        The model folder.

    Raises:
        ValueError: If the labels do not fit the reports, ``eval_strategy`` is set and there is no validation,
            more layers are frozen than there are, a setting does not fit the language model, or ``llm`` is an
            encoder of ours that lacks weights, would have to be cut, or was trained in another direction.
    """
    set_seed(arguments.seed)
    data = _read(run)
    if arguments.eval_strategy != "no" and data.validation is None:
        raise ValueError(
            f"eval_strategy must be no where the split validation has no labeled report, got "
            f"{IntervalStrategy(arguments.eval_strategy).value!r}. Leave it out, or label some."
        )
    model, tokenizer = _new_model(run, data.keys)
    splits = {"train": data.train, "validation": data.validation}
    samples = {name: _samples(part, tokenizer, run.max_length) for name, part in splits.items() if part}
    for note in (*data.notes, *_length_notes(data.train, tokenizer, run.max_length)):
        on_note(note)
    trainer = SupervisedTrainer(
        model,
        arguments,
        train_dataset=samples["train"],
        eval_dataset=samples.get("validation"),
        data_collator=ReportCollator(tokenizer, run.max_length),
        processing_class=tokenizer,
        callbacks=list(callbacks),
        run=run,
        ema_decay=run.ema_decay,
        optimizers=(labeler_optimizer(model, arguments, run.head_learning_rate), None),
    )
    stored = FrozenTrunk(model.encoder, _stored_layers(run, model)) if run.should_cache_frozen else None
    with stored or nullcontext():
        if stored is not None:
            stored.add(sample["input_ids"] for part in samples.values() for sample in part)
        _standardize(model, trainer.data_collator, samples["train"])
        trainer.train(arguments.resume_from_checkpoint)
        on_note(_calibrate(model, trainer, samples.get("validation")))
    if run.lora_rank:
        merge_lora(model.encoder)
    return trainer.save_model_folder(run)


def _read(run: LabelerRun) -> LabeledSplits:
    policy = TargetPolicy(uncertain=run.uncertain, not_mentioned=run.not_mentioned)
    if run.reports is None:
        assert run.manifest is not None  # the run is checked
        assert run.gold is not None
        return read_gold_splits(run.manifest, run.gold, policy, run.findings)
    if run.labels is None:
        return read_table_splits(run.reports, policy, run.text_column, run.findings)
    return read_silver_splits(
        run.reports, run.labels, policy, run.text_column, run.findings, has_soft_targets=run.soft_targets
    )


def _new_model(run: LabelerRun, keys: Sequence[str]) -> tuple[LLMBiEncoderForSequenceClassification, Any]:
    """The model before training, and its tokenizer."""
    fields: dict[str, Any] = {
        "pooling": "mean",
        "bidirectional": run.bidirectional,
        "num_causal_layers": run.num_causal_layers,
        "finding_pooling": run.finding_pooling,
        "finding_layers": None if run.finding_layers is None else list(run.finding_layers),
        "max_length": run.max_length,
        "id2label": dict(enumerate(keys)),
        "label2id": {key: column for column, key in enumerate(keys)},
        "problem_type": "multi_label_classification",
    }
    if is_encoder_folder(run.llm):
        encoder = _trained_encoder(run, fields)
    else:
        encoder = LLMBiEncoder.from_llm(run.llm, num_hidden_layers=run.num_hidden_layers, **fields)
    assert isinstance(encoder.config, LLMBiEncoderConfig)
    model = LLMBiEncoderForSequenceClassification(encoder.config)
    model.encoder.load_state_dict(encoder.state_dict())
    model.set_tokenizer(encoder.tokenizer)
    freeze_lower_layers(model.encoder, run.num_frozen_layers)
    if run.lora_rank:
        add_lora(
            model.encoder,
            run.lora_rank,
            run.lora_alpha,
            run.lora_dropout,
            num_frozen_layers=run.num_frozen_layers,
        )
    return model, encoder.tokenizer


def _trained_encoder(run: LabelerRun, fields: dict[str, Any]) -> LLMBiEncoder:
    """Go on with an encoder, such as the one of masked training; what it had for pooling is not read."""
    if run.num_hidden_layers is not None:
        raise ValueError(
            f"num_hidden_layers must be left out where llm is an encoder, got {run.num_hidden_layers}. "
            "Choose the layers in the first stage."
        )
    stored = AutoConfig.from_pretrained(run.llm, trust_remote_code=False)
    changed = [
        f"{name} {getattr(stored, name)!r} there and {fields[name]!r} now"
        for name in ("bidirectional", "num_causal_layers")
        if getattr(stored, name) != fields[name]
    ]
    if changed:
        raise ValueError(
            f"an encoder must go on in the direction it was trained in, got {'; '.join(changed)}. "
            "Give its own settings."
        )
    loaded: Any = load_model(LLMBiEncoder, run.llm, output_loading_info=True, **fields)
    encoder, report = loaded
    if report["missing_keys"]:
        missing = sorted(report["missing_keys"])
        raise ValueError(
            f"llm must hold every weight of the encoder, got {len(missing)} missing, such as {missing[0]}. "
            "Point to the folder of a trained encoder."
        )
    encoder.tokenizer = AutoTokenizer.from_pretrained(run.llm, trust_remote_code=False)
    return cast(LLMBiEncoder, encoder)


def _samples(reports: LabeledReports, tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
    """One per report: the collator reads ``text``, and the Trainer may group by length of ``input_ids``."""
    ids = tokenizer(list(reports.texts), max_length=max_length, truncation=True)["input_ids"]
    targets = torch.from_numpy(reports.targets)
    return [
        {"text": text, "input_ids": row, "labels": labels}
        for text, row, labels in zip(reports.texts, ids, targets, strict=True)
    ]


def _length_notes(reports: LabeledReports, tokenizer: Any, max_length: int) -> list[str]:
    num_cut = sum(len(ids) > max_length for ids in tokenizer(list(reports.texts), verbose=False)["input_ids"])
    if not num_cut:
        return []
    return [f"{num_cut} training reports are cut at {max_length} tokens; the labeler reads all of a report."]


def _stored_layers(run: LabelerRun, model: LLMBiEncoderForSequenceClassification) -> int:
    """Frozen layers whose output is stored: none above a layer that the head reads."""
    return min(run.num_frozen_layers, *(model.config.finding_layers or [run.num_frozen_layers]))


@torch.no_grad()
def _standardize(
    model: LLMBiEncoderForSequenceClassification, collate: Any, samples: list[dict[str, Any]]
) -> None:
    """Fix the scale of the features on some training reports, spread over all lengths."""
    chosen = sorted(samples, key=lambda sample: len(sample["input_ids"]))
    chosen = chosen[:: max(1, len(chosen) // NUM_SCALE_REPORTS)]
    was_training, found = model.training, []
    model.eval()
    for start in range(0, len(chosen), SCALE_BATCH):
        batch = collate(chosen[start : start + SCALE_BATCH])
        ids, mask = (batch[name].to(model.device) for name in ("input_ids", "attention_mask"))
        found.append(model.token_states(ids, mask)[mask.bool()].float().cpu())
    model.train(was_training)
    model.finding_attention.standardize(torch.cat(found).to(model.device))


def _calibrate(
    model: LLMBiEncoderForSequenceClassification,
    trainer: SupervisedTrainer,
    validation: list[dict[str, Any]] | None,
) -> str:
    """Fit and store the temperature, log what it does, and return it as a sentence."""
    if validation is None:
        return "Label temperature 1: no labeled report of validation to fit it on."
    prediction = trainer.predict(validation, metric_key_prefix="validation")
    fit = fit_temperature(np.asarray(prediction.predictions), np.asarray(prediction.label_ids))
    model.config.label_temperature = fit.temperature
    metrics = prediction.metrics or {}
    trainer.log(
        {
            "validation_macro_auroc": metrics["validation_macro_auroc"],
            "validation_num_findings": metrics["validation_num_findings"],
            "label_temperature": fit.temperature,
            "validation_nll_raw": fit.nll[0],
            "validation_nll": fit.nll[1],
            "validation_calibration_error_raw": fit.error[0],
            "validation_calibration_error": fit.error[1],
        }
    )
    return (
        f"Validation macro AUROC {metrics['validation_macro_auroc']:.4f} over "
        f"{metrics['validation_num_findings']:.0f} findings. {fit.describe()}"
    )


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
