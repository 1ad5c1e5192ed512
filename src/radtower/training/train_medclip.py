"""Align an image tower with a text tower, and save the dual tower."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import nn
from torch.nn.utils import convert_conv3d_weight_memory_format
from transformers import PreTrainedModel, TrainerCallback, TrainingArguments, set_seed
from transformers.trainer_utils import IntervalStrategy

from radtower.configuration.configuration_medclip import MedCLIPConfig
from radtower.data.augmentation import VolumeAugmentation
from radtower.data.datasets import StudyDataset, study_targets
from radtower.data.images_2d import usable_images
from radtower.data.manifest import read_manifest
from radtower.data.pair_keys import pair_keys
from radtower.data.reports.report_cells import with_reports
from radtower.data.streams.hub_rows import HubRows
from radtower.data.streams.stream_labels import StreamLabels
from radtower.data.targets import TargetPolicy
from radtower.data.volume_cache import VolumeCache, open_volume_cache
from radtower.modeling.modeling_ct3d import CT3DVisionModel
from radtower.modeling.modeling_medclip import MedCLIPModel
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.processing.processing_medclip import MedCLIPProcessor
from radtower.processing.report_text import normalize_report
from radtower.training.arguments import data_seed
from radtower.training.clip.clip_run import ClipRun
from radtower.training.clip.clip_trainer import ContrastiveTrainer
from radtower.training.clip.feature_store import TextFeatureStore
from radtower.training.clip.freezing import set_tower_modes
from radtower.training.clip.pair_batches import PairSampler, balanced_weights
from radtower.training.clip.report_tokens import ReportPadding, StudiesWithReports, tokenize_reports
from radtower.training.clip.stream_batches import StreamBatches
from radtower.training.clip.stream_data import open_rows, stream_batches, volume_processor
from radtower.training.towers.load_image_tower import load_image_tower
from radtower.training.towers.load_projection import keep_projection
from radtower.training.towers.load_text_tower import load_text_tower
from radtower.training.towers.load_weights import load_whole

Data = StudyDataset | StreamBatches
MakeData = Callable[[MedCLIPModel], dict[str, Data]]  # by split

logger = logging.getLogger(__name__)


def train_medclip(
    run: ClipRun,
    arguments: TrainingArguments,
    callbacks: Sequence[TrainerCallback] = (),
    on_note: Callable[[str], None] = logger.warning,
) -> Path:
    """Train on the ``train`` split and save model, processor and tokenizer as one folder.

    With an ``eval_strategy``, the contrastive loss of the ``validation`` split of a manifest is measured. It
    depends on the batch: evaluation takes ``per_device_eval_batch_size`` studies in the order of the
    manifest, the last batch as small as it is. With ``load_best_model_at_end`` the best model is saved.

    Args:
        run: Data and towers.
        arguments: Optimization; ``output_dir`` is the model folder.
        callbacks: Further hooks.
        on_note: Takes each sentence about what is left out of the data.

    Returns:
        The model folder.

    Raises:
        ValueError: If a tower lacks some of its weights or does not fit the run, no image can be used or no
            study has a report, a data set that is streamed does not have the columns of the run, or there is
            no validation split to evaluate.
    """
    _require_validation(run, arguments)
    set_seed(arguments.seed)
    rows = None if run.dataset is None else open_rows(run, arguments)
    cache = None if run.cache is None else open_volume_cache(run.cache)
    text, tokenizer = load_text_tower(run)
    vision, image_processor = _load_vision(run, cache, rows)
    processor = MedCLIPProcessor(
        image_processor, tokenizer, max_length=run.max_length, instruction=run.instruction
    )
    policy = TargetPolicy(uncertain=run.uncertain, not_mentioned=run.not_mentioned)
    findings, make_data = (
        _of_manifest(run, arguments, processor, cache, policy, on_note)
        if rows is None
        else _of_stream(run, arguments, processor, rows, policy, on_note)
    )
    model = MedCLIPModel.from_towers(vision, text, findings=findings, **_joint_space(run))
    if run.should_keep_projection:
        keep_projection(model, str(run.vision))
    convert_conv3d_weight_memory_format(model.vision_model, torch.channels_last_3d)
    set_tower_modes(model, run)
    model.processor = processor
    data = make_data(model)
    trainer = ContrastiveTrainer(
        model,
        arguments,
        train_dataset=data["train"],
        eval_dataset=data.get("validation"),
        data_collator=ReportPadding(model.processor.tokenizer),
        processing_class=model.processor,
        callbacks=list(callbacks),
        run=run,
        ema_decay=run.ema_decay,
        chunk_size=run.chunk_size,
        make_sampler=partial(_sampler, run, arguments),
    )
    trainer.train(arguments.resume_from_checkpoint)
    if isinstance(data["train"], StreamBatches):
        data["train"].tally.tell(is_main=trainer.is_world_process_zero())
    return trainer.save_model_folder(run)


def _of_manifest(
    run: ClipRun,
    arguments: TrainingArguments,
    processor: MedCLIPProcessor,
    cache: VolumeCache | None,
    policy: TargetPolicy,
    on_note: Callable[[str], None],
) -> tuple[list[str], MakeData]:
    """Findings that are trained, and what makes the data once there is a model to encode reports."""
    assert run.manifest is not None  # the run is checked
    manifest = read_manifest(run.manifest)
    findings: list[str] = []
    splits: dict[str, tuple[list[str], dict[str, Any]]] = {}
    for split in ("train", "validation") if arguments.eval_strategy != "no" else ("train",):
        studies, scans = _usable(manifest.split(split).frame, cache, processor, on_note)
        targets = None if run.labels is None else study_targets(studies, run.labels, policy)
        findings = list(targets.keys) if targets else []
        is_varied = run.should_augment and split == "train"
        splits[split] = (
            list(studies["report"]),
            {
                "volume_ids": list(studies["volume_id"]),
                "scans": scans,
                "targets": targets.values if targets else None,
                "pair_keys": pair_keys(studies),
                "augmentation": _crops(processor.image_processor, arguments) if is_varied else None,
            },
        )

    def make(model: MedCLIPModel) -> dict[str, Data]:
        return {
            split: _with_reports(run, arguments, model, reports, **columns)
            for split, (reports, columns) in splits.items()
        }

    return findings, make


def _usable(
    studies: pd.DataFrame,
    cache: VolumeCache | None,
    processor: MedCLIPProcessor,
    on_note: Callable[[str], None],
) -> tuple[pd.DataFrame, Any]:
    """Studies with a scan that can be read and a report, and their scans."""
    scans: Any = cache
    if cache is None:
        scans, studies = usable_images(studies, processor, on_note)
    else:
        studies = studies[cache.is_readable(studies["volume_id"])]
    return with_reports(studies, on_note), scans


def _require_validation(run: ClipRun, arguments: TrainingArguments) -> None:
    """Refuse to measure what is not there, before towers are loaded."""
    strategy = IntervalStrategy(arguments.eval_strategy).value
    if strategy == "no":
        return
    if run.manifest is None:
        raise ValueError(
            f"eval_strategy must be no where a dataset is streamed, got {strategy}: "
            "only a manifest has a split validation. Leave it out."
        )
    splits = sorted(read_manifest(run.manifest).frame["split"].unique())
    if "validation" not in splits:
        raise ValueError(
            f"eval_strategy must be no where the manifest has no split validation, got "
            f"{strategy} with {', '.join(splits)}. Leave it out, or hold studies out."
        )


def _of_stream(
    run: ClipRun,
    arguments: TrainingArguments,
    processor: MedCLIPProcessor,
    rows: HubRows,
    policy: TargetPolicy,
    on_note: Callable[[str], None],
) -> tuple[list[str], MakeData]:
    labels = None if run.labels is None else StreamLabels(run.labels, policy)
    batches = stream_batches(rows, processor, labels, arguments, on_note)
    return list(labels.keys) if labels else [], lambda _model: {"train": batches}


def _joint_space(run: ClipRun) -> dict[str, Any]:
    """The fields of a run that are those of the model."""
    names = {field.name for field in fields(MedCLIPConfig)} & {field.name for field in fields(run)}
    return {name: getattr(run, name) for name in sorted(names)}


def _crops(image_processor: CT3DImageProcessor, arguments: TrainingArguments) -> VolumeAugmentation:
    """A crop at random, and no more."""
    return VolumeAugmentation(image_processor=image_processor, seed=arguments.seed)


def _sampler(
    run: ClipRun, arguments: TrainingArguments, dataset: StudyDataset, batch_size: int
) -> PairSampler:
    assert dataset.pair_keys is not None
    weights = None
    if run.has_balanced_labels:
        assert dataset.targets is not None  # the run is checked
        weights = balanced_weights(dataset.targets.numpy())
    lengths = None
    if run.has_length_batches:
        assert isinstance(dataset, StudiesWithReports)  # the run is checked
        lengths = [len(ids) for ids in dataset.token_ids]
    return PairSampler(dataset, dataset.pair_keys, batch_size, data_seed(arguments), weights, lengths)


def _with_reports(
    run: ClipRun, arguments: TrainingArguments, model: MedCLIPModel, reports: Sequence[str], **studies: Any
) -> StudyDataset:
    """Studies with the vectors of their reports, or with their tokens where these vectors change."""
    normalized = [normalize_report(report) for report in reports]
    if run.text_mode != "frozen" or getattr(model.text_model.config, "depends_on_batch", False):
        return StudiesWithReports(**studies, token_ids=tokenize_reports(model.processor, normalized))
    nn.Module.to(model, arguments.device)  # as the Trainer does later; a large text tower is slow elsewhere
    store = TextFeatureStore(model, model.processor, run.feature_cache, is_divided=run.feature_cache is None)
    features = store.features(normalized, show_progress=not arguments.disable_tqdm)
    return StudyDataset(**studies, text_features=features)


def _load_vision(
    run: ClipRun, cache: VolumeCache | None, rows: HubRows | None
) -> tuple[PreTrainedModel, Any]:
    """The image tower, and the image processor that its images go through."""
    if cache is not None:
        return _load_3d(run), cache.image_processor
    if rows is not None and rows.kind == "volume":
        tower = _load_3d(run)
        return tower, volume_processor(run, tower)
    if run.processor is not None:
        raise ValueError(
            f"processor must be left out for 2D images, got {run.processor!r}: the tower brings its own. "
            "Leave it out."
        )
    return load_image_tower(run.vision, run.vision_pooling, should_reset=run.should_reset_vision)


def _load_3d(run: ClipRun) -> CT3DVisionModel:
    if not isinstance(run.vision, str):
        raise TypeError(
            "vision must be the folder of a 3D tower where the images of a dataset are volumes, got the "
            "configuration of a 2D one. Name a folder."
        )
    vision: Any = load_whole(CT3DVisionModel, run.vision)
    return CT3DVisionModel(vision.config) if run.should_reset_vision else vision
