"""Train the 3D tower on labels of findings: the supervised stage that comes before alignment."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch.nn.utils import convert_conv3d_weight_memory_format
from transformers import TrainerCallback, TrainingArguments, set_seed

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.augmentation import VolumeAugmentation
from radtower.data.datasets import StudyDataset, StudyTargets, manifest_targets, study_targets
from radtower.data.manifest import Manifest, Split, read_manifest
from radtower.data.targets import MASKED_TARGET, TargetPolicy
from radtower.data.volume_cache import VolumeCache, open_volume_cache
from radtower.modeling.losses import asymmetric_loss, masked_binary_cross_entropy
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.processing.image_processing_ct3d import CT3DImageProcessor
from radtower.training.runs import AUGMENTATION_STRENGTHS, VisionRun
from radtower.training.trainer import LossFunction, SupervisedTrainer

# Fields of the configuration that a run, or pre-trained weights, may set.
SHAPE = ("block_type", "hidden_sizes", "layers", "stem_kernel_size", "stem_stride")


def train_vision(
    run: VisionRun, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Train on the ``train`` split and save the model folder with its processor.

    With an ``eval_strategy``, the validation split is measured as well. Scans that the cache could not read
    are left out; the cache lists them.

    Args:
        run: Data and model.
        arguments: Optimization; ``output_dir`` is the model folder, ``resume_from_checkpoint`` a checkpoint
            of an earlier run, or True for its last one.
        callbacks: Further hooks.

    Returns:
        The model folder.

    Raises:
        ValueError: If there are no labels to train or to evaluate with.
    """
    set_seed(arguments.seed)
    cache = open_volume_cache(run.cache)
    manifest = read_manifest(run.manifest, needs_reports=run.labels is not None)
    train, targets = _labeled_split(run, manifest, cache, "train", _augmentation_of(run, arguments, cache))
    evaluation = None
    if arguments.eval_strategy != "no":
        evaluation, truth = _labeled_split(run, manifest, cache, "validation")
        _check_both_classes(truth)
    model = _new_model(run, cache.image_processor, targets.keys)
    # About a fifth faster for 3D convolutions on a CPU, and what tensor cores want on a GPU.
    convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    trainer = SupervisedTrainer(
        model,
        arguments,
        train_dataset=train,
        eval_dataset=evaluation,
        processing_class=cache.image_processor,
        callbacks=list(callbacks),
        run=run,
        loss_function=loss_of(run.loss, targets),
        ema_decay=run.ema_decay,
        layer_lr_decay=run.layer_lr_decay,
    )
    trainer.train(arguments.resume_from_checkpoint)
    return trainer.save_model_folder(run)


def loss_of(name: str, targets: StudyTargets) -> LossFunction | None:
    """Return the loss of a name; None is the model's own, binary cross-entropy over the known labels.

    Args:
        name: See :class:`VisionRun`.
        targets: Of the training split; the balanced loss counts them.

    Raises:
        ValueError: If the loss is balanced and a finding is never present, or never absent.
    """
    if name == "asymmetric":
        return asymmetric_loss
    if name == "balanced_bce":
        known = targets.values != MASKED_TARGET
        present = np.where(known, targets.values, 0).sum(axis=0)
        absent = np.where(known, 1 - targets.values, 0).sum(axis=0)
        lacking = [
            key for key, *counts in zip(targets.keys, present, absent, strict=True) if min(counts) == 0
        ]
        if lacking:
            raise ValueError(
                "every finding must be present and absent in the train split for balanced_bce, got "
                f"{lacking} with one class. Leave them out of the findings, or use another loss."
            )
        return partial(masked_binary_cross_entropy, positive_weight=torch.from_numpy(absent / present))
    return None


def _labeled_split(
    run: VisionRun,
    manifest: Manifest,
    cache: VolumeCache,
    name: Split,
    augmentation: VolumeAugmentation | None = None,
) -> tuple[StudyDataset, StudyTargets]:
    split = manifest.split(name)
    is_cached = cache.is_readable(split.frame["volume_id"])
    split = Manifest(split.frame[is_cached].reset_index(drop=True))
    policy = TargetPolicy(uncertain=run.uncertain, not_mentioned=run.not_mentioned)
    if run.labels is not None:
        targets = study_targets(split.frame, run.labels, policy)
    else:
        assert run.findings is not None  # the run is checked
        targets = manifest_targets(split, run.findings, policy)
    if not (targets.values != MASKED_TARGET).any():
        raise ValueError(
            f"the {name} split must have a known label, got none for {len(split)} volumes in the cache. "
            "Preprocess its scans, and label its reports."
        )
    dataset = StudyDataset(
        list(split.frame["volume_id"]), cache, targets=targets.values, augmentation=augmentation
    )
    return dataset, targets


def _augmentation_of(
    run: VisionRun, arguments: TrainingArguments, cache: VolumeCache
) -> VolumeAugmentation | None:
    if not run.should_augment:
        return None
    strengths = {name: getattr(run, name) for name in AUGMENTATION_STRENGTHS}
    return VolumeAugmentation(image_processor=cache.image_processor, seed=arguments.seed, **strengths)


def _check_both_classes(truth: StudyTargets) -> None:
    """Refuse an AUROC of nothing: NaN is never better than NaN, and no checkpoint would be the best."""
    has_both = (truth.values == 0).any(axis=0) & (truth.values == 1).any(axis=0)
    if not has_both.any():
        raise ValueError(
            "the validation split must have both classes of some finding, got one class of each in "
            f"{len(truth.values)} volumes. Hold out more patients, or set eval_strategy to no."
        )


def _new_model(
    run: VisionRun, processor: CT3DImageProcessor, keys: Sequence[str]
) -> CT3DVisionForImageClassification:
    shape = {name: getattr(run, name) for name in SHAPE}
    config: dict[str, Any] = {
        name: list(v) if isinstance(v, tuple) else v for name, v in shape.items() if v is not None
    }
    config |= {
        "num_channels": len(processor.windows_hu),
        "pooling": run.pooling,
        "image_size": list(processor.size),
        "id2label": dict(enumerate(keys)),
        "label2id": {key: column for column, key in enumerate(keys)},
        "problem_type": "multi_label_classification",
    }
    if run.pretrained is None:
        return CT3DVisionForImageClassification(CT3DVisionConfig(**config))
    if not run.pretrained.endswith(".safetensors"):
        raise ValueError(
            f"pretrained must be a .safetensors file, got {run.pretrained}. Convert a .pth once, with "
            "safetensors.torch.save_file(torch.load(path, weights_only=True), path + '.safetensors')."
        )
    return CT3DVisionForImageClassification.from_video_resnet(
        load_file(run.pretrained), stem=run.pretrained_stem, **config
    )
