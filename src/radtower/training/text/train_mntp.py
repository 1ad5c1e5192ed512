"""Teach a decoder to read reports in both directions (LLM2Vec, arXiv 2404.05961)."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from transformers import EvalPrediction, PreTrainedTokenizerBase, TrainerCallback, TrainingArguments, set_seed

from radtower.data.reports.report_corpus import ReportTable, read_report_table
from radtower.evaluation.bootstrap import count_bootstrap, percentile_interval
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.training.runs import TextMNTPRun
from radtower.training.text.frozen_trunk import freeze_lower_layers
from radtower.training.text.lora import add_lora, merge_lora
from radtower.training.text.mntp_collation import (
    MaskedReports,
    PaddedPieces,
    find_mask_token,
    split_into_pieces,
)
from radtower.training.trainer import RadTowerTrainer


def train_mntp(
    run: TextMNTPRun, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Train on the reports of the train split, measure on those of the validation split, save the folder.

    The folder loads as an encoder (:class:`LLMBiEncoder`, mean pooling) and, with its head, as
    :class:`LLMBiEncoderForMaskedNTP`. Adapters are merged.

    Args:
        run: Data and model.
        arguments: Optimization; ``output_dir`` is the model folder.
        callbacks: Further hooks.

    Returns:
        The model folder.

    Raises:
        ValueError: If no text of the train split is left, or a setting does not fit the language model.
    """
    set_seed(arguments.seed)
    model = LLMBiEncoderForMaskedNTP.from_llm(
        run.llm,
        num_hidden_layers=run.num_hidden_layers,
        bidirectional=run.bidirectional,
        num_causal_layers=run.num_causal_layers,
        max_length=run.max_length,
    )
    tokenizer = model.encoder.tokenizer
    model.config.mask_token_id = find_mask_token(tokenizer, run.mask_token)
    table = read_report_table(run.reports)
    train, _ = _masked_reports(run, table, "train", tokenizer, arguments.seed)
    validation, patient_ids = _masked_reports(run, table, "validation", tokenizer, arguments.seed + 1)
    freeze_lower_layers(model.encoder, run.num_frozen_layers)
    if run.lora_rank:
        model.requires_grad_(False)  # the head, too
        add_lora(
            model.encoder,
            run.lora_rank,
            run.lora_alpha,
            run.lora_dropout,
            num_frozen_layers=run.num_frozen_layers,
        )
    trainer = RadTowerTrainer(
        model,
        arguments,
        train_dataset=train,
        # A list: what is hidden in it must not change from epoch to epoch.
        eval_dataset=None if validation is None else [validation[n] for n in range(len(validation))],
        data_collator=PaddedPieces(int(tokenizer.pad_token_id)),
        processing_class=tokenizer,
        compute_metrics=partial(pseudo_perplexity, patient_ids=patient_ids),
        callbacks=list(callbacks),
        run=run,
    )
    trainer.train(arguments.resume_from_checkpoint)
    if run.lora_rank:
        merge_lora(model.encoder)
    if validation is not None:
        trainer.evaluate()  # of the weights that are saved; the log has it
    return trainer.save_model_folder(run)


def pseudo_perplexity(prediction: EvalPrediction, patient_ids: Sequence[str]) -> dict[str, float]:
    """Exponential of the mean loss over the hidden tokens, with its interval.

    All hidden tokens of a piece are predicted at once. Hiding them one by one (arXiv 1910.14659) gives a
    smaller number: compare only what was hidden in the same way.

    Args:
        prediction: Losses ``(N,)`` summed per piece and numbers ``(N,)`` of hidden tokens.
        patient_ids: ``(N,)``, the units of the bootstrap.
    """
    losses, counts = (np.asarray(values, dtype=np.float64) for values in prediction.predictions[:2])

    def value(drawn: np.ndarray) -> np.ndarray:
        return np.asarray(np.exp((drawn @ losses) / (drawn @ counts)))

    interval = percentile_interval(count_bootstrap(value, patient_ids), patient_ids)
    return {
        "pseudo_perplexity": float(value(np.ones(len(losses)))),
        "pseudo_perplexity_low": interval.low,
        "pseudo_perplexity_high": interval.high,
        "num_hidden_tokens": float(counts.sum()),
        "num_patients": float(len(set(patient_ids))),
    }


def _masked_reports(
    run: TextMNTPRun, table: ReportTable, split: str, tokenizer: PreTrainedTokenizerBase, seed: int
) -> tuple[MaskedReports | None, list[str]]:
    """Pieces of a split with the patient of each; None where the table has no such split but train."""
    studies = table.frame[table.frame["split"] == split]
    if not len(studies) and split != "train":
        return None, []
    pieces, positions = split_into_pieces(list(studies[run.text_column]), tokenizer, run.max_length)
    reports = MaskedReports(
        pieces,
        tokenizer,
        find_mask_token(tokenizer, run.mask_token),
        probability=run.mask_probability,
        corruption=run.mask_corruption,
        seed=seed,
    )
    return reports, [str(studies["patient_id"].iloc[position]) for position in positions]
