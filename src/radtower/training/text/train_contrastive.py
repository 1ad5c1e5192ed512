"""Train a report encoder on pairs of texts, and save it as a model folder."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoConfig, AutoTokenizer, TrainerCallback, TrainingArguments, set_seed

from radtower.configuration.configuration_llm_biencoder import LLMBiEncoderConfig
from radtower.data.manifest import Split
from radtower.data.reports.pairs import read_several_pairs
from radtower.modeling.llm_biencoder.modeling_llm_biencoder_mntp import LLMBiEncoderForMaskedNTP
from radtower.modeling.modeling_llm_biencoder import LLMBiEncoder
from radtower.modeling.safe_loading import load_model
from radtower.training.runs import TextContrastiveRun
from radtower.training.text.contrastive_batches import PairDataset
from radtower.training.text.contrastive_collation import PairCollator
from radtower.training.text.contrastive_trainer import ContrastiveLoss, ContrastiveTextTrainer
from radtower.training.text.encoder_folder import is_encoder_folder
from radtower.training.text.frozen_trunk import FrozenTrunk, freeze_lower_layers
from radtower.training.text.lora import add_lora, merge_lora


def train_contrastive(
    run: TextContrastiveRun, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Train on the ``train`` split of the pairs, and save the model folder.

    Args:
        run: Data, model and loss.
        arguments: Optimization; ``output_dir`` is the model folder.
        callbacks: Further hooks.

    Returns:
        The model folder.

    Raises:
        ValueError: If a source does not fill a batch, more layers are frozen than there are, in a source
            every text is its own positive and nothing tells the two apart, the pairs have no row of a split
            that is needed, or ``llm`` is an encoder of ours that lacks weights, would have to be cut, or was
            trained with another direction, pooling or length.
    """
    set_seed(arguments.seed)
    # Processes encode different numbers of chunks; a broadcast per chunk would wait forever for the others.
    arguments.ddp_broadcast_buffers = False
    encoder = _encoder(run)
    assert isinstance(encoder.config, LLMBiEncoderConfig)
    train = _pairs(run, "train", arguments.seed)
    if train.is_of_one_text() and not (run.attention_dropout or (run.lora_rank and run.lora_dropout)):
        raise ValueError(
            f"attention_dropout must be > 0 where a text is its own positive, got {run.attention_dropout}. "
            "SimCSE tells the two apart by dropout: set it to 0.1, or leave such sources out."
        )
    collator = PairCollator(encoder.tokenizer, encoder.config, run.chunk_size, run.training_length)
    trainer = ContrastiveTextTrainer(
        encoder,
        arguments,
        train_dataset=train,
        eval_dataset=_pairs(run, "validation", arguments.seed) if arguments.do_eval else None,
        data_collator=collator,
        processing_class=encoder.tokenizer,
        callbacks=list(callbacks),
        run=run,
        contrastive_loss=ContrastiveLoss(
            scale=run.scale,
            is_symmetric=run.is_symmetric,
            dims=run.matryoshka_dims,
            dim_weights=run.matryoshka_weights,
        ),
    )
    stored = FrozenTrunk(encoder, run.num_frozen_layers) if run.should_cache_frozen else nullcontext()
    with stored:
        if isinstance(stored, FrozenTrunk):
            # In the order of the table: the rounding of a resumed run is that of one never stopped.
            stored.add(collator.token_ids(train.texts()))
        trainer.train(arguments.resume_from_checkpoint)
    if run.lora_rank:
        merge_lora(encoder)
    return trainer.save_model_folder(run)


def _encoder(run: TextContrastiveRun) -> LLMBiEncoder:
    fields: dict[str, Any] = {
        "pooling": run.pooling,
        "latent_variant": "prenorm",
        "bidirectional": run.bidirectional,
        "max_length": run.max_length,
    }
    if is_encoder_folder(run.llm):
        encoder = _trained_encoder(run, fields)
    else:
        encoder = LLMBiEncoder.from_llm(run.llm, num_hidden_layers=run.num_hidden_layers, **fields)
    set_attention_dropout(encoder, run.attention_dropout)
    freeze_lower_layers(encoder, run.num_frozen_layers)
    if run.lora_rank:
        add_lora(
            encoder,
            run.lora_rank,
            run.lora_alpha,
            run.lora_dropout,
            num_frozen_layers=run.num_frozen_layers,
        )
    return encoder


def _trained_encoder(run: TextContrastiveRun, fields: dict[str, Any]) -> LLMBiEncoder:
    """Go on with an encoder, such as the one of masked training; only a pooling head may be new.

    A head of latent attention starts as the mean: it may follow the mean. Anything else that the run sets
    otherwise would silently give another encoder than the one that was trained.
    """
    if run.num_hidden_layers is not None:
        raise ValueError(
            f"num_hidden_layers must be left out where llm is an encoder, got {run.num_hidden_layers}. "
            "Choose the layers in the first stage."
        )
    stored = AutoConfig.from_pretrained(run.llm, trust_remote_code=False)
    is_masked = (stored.architectures or [""])[0] == LLMBiEncoderForMaskedNTP.__name__
    kept = {"bidirectional": stored.bidirectional}
    if not is_masked:  # it has no pooling of its own yet
        kept |= {"max_length": stored.max_length, "pooling": stored.pooling}
        if (stored.pooling, run.pooling) == ("mean", "latent_attention"):
            del kept["pooling"]
    changed = {
        name: (value, getattr(run, name)) for name, value in kept.items() if value != getattr(run, name)
    }
    if changed:
        raise ValueError(
            "an encoder must go on as it was trained, got "
            + "; ".join(f"{name} {then!r} there and {now!r} now" for name, (then, now) in changed.items())
            + ". Give its own settings."
        )
    if stored.pooling == "latent_attention":
        fields = fields | {"latent_variant": stored.latent_variant}
    loaded: Any = load_model(LLMBiEncoder, run.llm, output_loading_info=True, **fields)
    encoder, report = loaded
    missing = sorted(report["missing_keys"])
    if missing and (stored.pooling == "latent_attention" or not missing[0].startswith("latent_attn.")):
        raise ValueError(
            f"llm must hold every weight of the encoder, got {len(missing)} missing, such as {missing[0]}. "
            "Use its own pooling, or start from one without a head."
        )
    encoder.tokenizer = AutoTokenizer.from_pretrained(run.llm, trust_remote_code=False)
    return cast(LLMBiEncoder, encoder)


def _pairs(run: TextContrastiveRun, split: Split, seed: int) -> PairDataset:
    table = read_several_pairs(run.pairs, split)
    return PairDataset(
        table if run.should_mask_labels else table.assign(label_key=None), run.num_negatives, seed
    )


def set_attention_dropout(encoder: LLMBiEncoder, probability: float) -> None:
    """Drop attention weights while the encoder is in training mode; its configuration stays as it is.

    Raises:
        ValueError: If the probability is not in [0, 1), or no layer of this decoder has attention dropout.
    """
    layers: list[torch.nn.Module] = [m for m in encoder.model.modules() if hasattr(m, "attention_dropout")]
    if not 0 <= probability < 1 or (probability and not layers):
        raise ValueError(
            f"attention_dropout must be in [0, 1), and 0 for a decoder without it, got {probability} for "
            f"{len(layers)} layers that have it. Use lora_dropout, or another decoder."
        )
    for layer in layers:
        layer.attention_dropout = probability  # type: ignore[assignment]
