"""Run configuration: what a recipe may say, and the record of what a run did.

A recipe is a flat YAML file: the fields of one run class below and of ``transformers.TrainingArguments``.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from transformers import HfArgumentParser, SchedulerType, TrainingArguments

RECORD_FILE = "run.yaml"
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 reads 1e-4 as text
AUGMENTATION_STRENGTHS = (
    "max_rotation_degrees",
    "max_scaling",
    "max_window_shift_hu",
    "max_noise_hu",
    "flip_probability",
)
RECORDED_PACKAGES = ("radtower", "torch", "transformers")

# What differs from transformers' defaults: nothing is sent anywhere, samples keep their columns, and a
# diverged loss is logged as it is.
DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
    "save_strategy": "no",
    "logging_steps": 10,
}


@dataclass(frozen=True, kw_only=True)
class LabelerRun:
    """Fine-tune an LLM into a labeler of reports.

    Args:
        manifest: Table of studies with their reports.
        gold: CSV with ``study_id`` and one status column per finding.
        llm: Model folder, Hub id, or ``.gguf`` file to start from.
        num_hidden_layers: Keep only the lowest layers of the LLM. None keeps all.
        num_frozen_layers: Lowest layers that are not trained; the token embedding goes with them.
        bidirectional: Whether tokens see the whole report. False keeps the direction of pre-training.
        head_learning_rate: Of the finding attention, which starts from nothing. None takes the one of the
            LLM.
        uncertain: Target of uncertain findings. None masks them.
        not_mentioned: Target of findings the report is silent about. None masks them.
        max_length: Tokens read of a report.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    manifest: str
    gold: str
    llm: str
    num_hidden_layers: int | None = None
    num_frozen_layers: int = 0
    bidirectional: bool = True
    head_learning_rate: float | None = None
    uncertain: float | None = None
    not_mentioned: float | None = 0.0
    max_length: int = 512
    should_overwrite: bool = False


@dataclass(frozen=True, kw_only=True)
class VisionRun:
    """Train the 3D tower on labels of findings: silver ones of the reports, or those of a data set.

    Args:
        manifest: Table of volumes.
        cache: Folder of ``radtower preprocess``, whose processor settings are used.
        labels: ``labels.parquet``; its findings are the classifier's. None takes the labels that the manifest
            has per finding.
        findings: Findings set, or a YAML file, that names those columns. None with ``labels``.
        uncertain: Target of uncertain findings. None masks them.
        not_mentioned: Target of findings the report is silent about. None masks them.
        loss: ``bce``; ``balanced_bce``, where the present labels of a finding weigh as much as the absent
            ones; or ``asymmetric``, which lets easy negatives go.
        ema_decay: Of the average of the weights that is evaluated and saved. None averages nothing.
        layer_lr_decay: Learning rate of each stage, relative to the one above it. None is the same for all.
        pretrained: ``.safetensors`` with the weights of a video ResNet or of MedicalNet to start from; see
            :meth:`CT3DVisionModel.from_video_resnet`. None starts from nothing.
        pretrained_stem: Whether its first convolution is kept (``fold``) or a new one is made (``replace``,
            the published recipe).
        block_type: See :class:`CT3DVisionConfig`, as are the next five. None takes its default, or what the
            ``pretrained`` weights say.
        hidden_sizes: Output channels per stage, or None as before.
        layers: Residual blocks per stage, or None as before.
        stem_kernel_size: Kernel of the first convolution, (Z, Y, X), or None as before.
        stem_stride: Its stride, (Z, Y, X), or None as before.
        pooling: ``avg``, ``max`` or ``gated``.
        should_augment: Whether training volumes differ from epoch to epoch: a crop at random from what the
            cache keeps around it, and what the next five add; see :class:`VolumeAugmentation`.
        max_rotation_degrees: About each axis.
        max_scaling: Zoom by up to this fraction.
        max_window_shift_hu: Of each end of each window.
        max_noise_hu: Largest standard deviation of the noise.
        flip_probability: Of exchanging left and right.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    manifest: str
    cache: str
    labels: str | None = None
    findings: str | None = None
    uncertain: float | None = None
    not_mentioned: float | None = 0.0
    loss: Literal["bce", "balanced_bce", "asymmetric"] = "bce"
    ema_decay: float | None = None
    layer_lr_decay: float | None = None
    pretrained: str | None = None
    pretrained_stem: Literal["fold", "replace"] = "replace"
    block_type: Literal["basic", "r2plus1d", "mc3", "bottleneck"] | None = None
    hidden_sizes: tuple[int, ...] | None = None
    layers: tuple[int, ...] | None = None
    stem_kernel_size: tuple[int, ...] | None = None
    stem_stride: tuple[int, ...] | None = None
    pooling: Literal["avg", "max", "gated"] = "avg"
    should_augment: bool = False
    max_rotation_degrees: float = 0.0
    max_scaling: float = 0.0
    max_window_shift_hu: float = 0.0
    max_noise_hu: float = 0.0
    flip_probability: float = 0.0
    should_overwrite: bool = False

    def __post_init__(self) -> None:
        if (self.labels is None) == (self.findings is None):
            raise ValueError(
                f"either labels or findings must be given, got labels={self.labels!r} and "
                f"findings={self.findings!r}. Name the findings where the labels are in the manifest."
            )
        strengths = {name: getattr(self, name) for name in AUGMENTATION_STRENGTHS}
        if not self.should_augment and any(strengths.values()):
            raise ValueError(
                f"should_augment must be true where something is varied, got {strengths}. "
                "Set it, or all of them to 0."
            )


@dataclass(frozen=True, kw_only=True)
class ClipRun:
    """Align an image tower with a text tower.

    The text tower is frozen, so each report is encoded once before training.

    Args:
        manifest: Table of studies with their reports.
        cache: Folder of ``radtower preprocess``, whose processor settings are used.
        vision: Model folder of the image tower.
        text: Model folder of the text tower.
        labels: ``labels.parquet`` for the shared finding head. None trains without one.
        should_reset_vision: Whether to keep only the shape of ``vision`` and draw new weights: the
            comparison without supervised pre-training.
        projection_dim: Size of the shared space.
        uncertain: Target of uncertain findings. None masks them.
        not_mentioned: Target of findings the report is silent about. None masks them.
        max_length: Tokens read of a report.
        should_overwrite: Whether checkpoints that an earlier run left in the output folder are deleted.
    """

    manifest: str
    cache: str
    vision: str
    text: str
    labels: str | None = None
    should_reset_vision: bool = False
    projection_dim: int = 512
    uncertain: float | None = None
    not_mentioned: float | None = 0.0
    max_length: int = 512
    should_overwrite: bool = False


Run = TypeVar("Run", LabelerRun, VisionRun, ClipRun)


def parse_recipe(settings: Mapping[str, Any], run_class: type[Run]) -> tuple[Run, TrainingArguments]:
    """Split the settings of a recipe into a run and training arguments.

    Args:
        settings: Flat mapping of fields.
        run_class: Which kind of run it is.

    Raises:
        ValueError: If a key belongs to neither, or a required one is missing.
    """
    merged = {**DEFAULTS, "dataloader_pin_memory": torch.cuda.is_available(), **settings}
    for name in ("eval_strategy", "save_strategy", "logging_strategy"):
        if merged.get(name) is False:  # how YAML reads an unquoted no
            merged[name] = "no"
    classes: Any = (run_class, TrainingArguments)
    try:
        run, arguments = HfArgumentParser(classes).parse_dict(merged)
    except TypeError as error:  # a dataclass without one of its required fields
        raise ValueError(
            f"recipe must be complete, got {sorted(settings)}: {error}. Add the field."
        ) from error
    return run, arguments


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Read a YAML recipe; it is data and cannot run code.

    Raises:
        ValueError: If it is not YAML, or not a flat mapping.
    """
    try:
        settings = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(
            f"a recipe must be plain YAML, got {path}: {' '.join(str(error).split())}."
        ) from error
    if not isinstance(settings, dict) or any(isinstance(value, dict) for value in settings.values()):
        raise ValueError(
            f"a recipe must be a flat mapping of fields, got {path}. Write `field: value` lines."
        )
    return {
        name: float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
        for name, value in settings.items()
    }


def write_run_record(
    folder: str | Path, run: LabelerRun | VisionRun | ClipRun, arguments: TrainingArguments
) -> None:
    """Write ``run.yaml`` beside a model: every setting, the seed, the versions and the commit."""
    record = run_record(run, arguments) | {
        "versions": {package: version(package) for package in RECORDED_PACKAGES},
        "git_commit": _git_commit(),
    }
    (Path(folder) / RECORD_FILE).write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")


def run_record(run: LabelerRun | VisionRun | ClipRun, arguments: TrainingArguments) -> dict[str, Any]:
    """Return the settings of a run, in the types that YAML has."""
    return {
        "kind": type(run).__name__,
        "run": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(run).items()},
        "training": {
            name: getattr(arguments, name)
            for name in (
                "learning_rate",
                "weight_decay",
                "num_train_epochs",
                "max_steps",
                "per_device_train_batch_size",
                "gradient_accumulation_steps",
                "warmup_steps",
                "lr_scheduler_kwargs",
                "max_grad_norm",
                "bf16",
                "load_best_model_at_end",
                "metric_for_best_model",
                "seed",
            )
        }
        | {"lr_scheduler_type": SchedulerType(arguments.lr_scheduler_type).value},
    }


def _git_commit() -> str | None:
    """Commit of the source tree; None for an installed package, or where there is no git."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],  # noqa: S607 -- git from the PATH, with fixed arguments
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:
        return None
    return done.stdout.strip() or None
