"""Train the 3D tower on silver labels: the supervised stage that comes before alignment."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.nn.utils import convert_conv3d_weight_memory_format
from transformers import TrainerCallback, TrainingArguments, set_seed

from radtower.configuration.configuration_ct3d import CT3DVisionConfig
from radtower.data.datasets import StudyDataset, study_targets
from radtower.data.manifest import read_manifest
from radtower.data.targets import TargetPolicy
from radtower.data.volume_cache import open_volume_cache
from radtower.modeling.modeling_ct3d import CT3DVisionForImageClassification
from radtower.training.arguments import VisionRun
from radtower.training.trainer import SupervisedTrainer


def train_vision(
    run: VisionRun, arguments: TrainingArguments, callbacks: Sequence[TrainerCallback] = ()
) -> Path:
    """Train on the ``train`` split and save the model folder with its processor.

    Scans that the cache could not read are left out; the cache lists them.

    Args:
        run: Data and model.
        arguments: Optimization; ``output_dir`` is the model folder.
        callbacks: Further hooks.

    Returns:
        The model folder.
    """
    set_seed(arguments.seed)
    cache = open_volume_cache(run.cache)
    studies = read_manifest(run.manifest).split("train").frame
    studies = studies[studies["volume_id"].isin(cache.row_by_study)]
    policy = TargetPolicy(uncertain=run.uncertain, not_mentioned=run.not_mentioned)
    targets = study_targets(studies, run.labels, policy)
    dataset = StudyDataset(list(studies["volume_id"]), cache.__getitem__, targets=targets.values)
    processor = cache.image_processor
    config = CT3DVisionConfig(
        num_channels=len(processor.windows_hu),
        hidden_sizes=list(run.hidden_sizes),
        layers=list(run.layers),
        stem_kernel_size=list(run.stem_kernel_size),
        stem_stride=list(run.stem_stride),
        pooling=run.pooling,
        image_size=list(processor.size),
        id2label=dict(enumerate(targets.keys)),
        label2id={key: column for column, key in enumerate(targets.keys)},
        problem_type="multi_label_classification",
    )
    # About a fifth faster for 3D convolutions on a CPU, and what tensor cores want on a GPU.
    model = CT3DVisionForImageClassification(config)
    convert_conv3d_weight_memory_format(model, torch.channels_last_3d)
    trainer = SupervisedTrainer(
        model,
        arguments,
        train_dataset=dataset,
        processing_class=processor,
        callbacks=list(callbacks),
    )
    trainer.train()
    return trainer.save_model_folder(run)
