"""Run configuration: what a recipe may say, and the record of what a run did.

A recipe is a flat YAML file: the fields of one run class below and of ``transformers.TrainingArguments``. One
field may itself be a mapping: ``vision``, the configuration of a tower that starts from nothing.
"""

import re
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from importlib.metadata import version
from pathlib import Path
from types import NoneType
from typing import Any, TypeVar, get_args, get_type_hints

import torch
import yaml
from pydantic import TypeAdapter, ValidationError
from transformers import HfArgumentParser, SchedulerType, TrainingArguments
from transformers.training_args import OptimizerNames

from radtower.training.runs import AnyRun

RECORD_FILE = "run.yaml"
MAPPINGS = frozenset({"vision"})
EXPONENT = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+")  # YAML 1.1 reads 1e-4 as text
SCALARS = {int, float, bool, NoneType}
BATCH_SIZES = {"per_device_train_batch_size", "per_device_eval_batch_size"}
RECORDED_PACKAGES = ("radtower", "torch", "transformers")
RECORDED_SETTINGS = (
    "learning_rate",
    "weight_decay",
    "optim_args",
    "adam_beta1",
    "adam_beta2",
    "adam_epsilon",
    "num_train_epochs",
    "max_steps",
    "per_device_train_batch_size",
    "world_size",
    "gradient_accumulation_steps",
    "dataloader_drop_last",
    "warmup_steps",
    "lr_scheduler_kwargs",
    "max_grad_norm",
    "bf16",
    "fp16",
    "load_best_model_at_end",
    "metric_for_best_model",
    "seed",
    "data_seed",
)

# What differs from transformers' defaults: nothing is sent anywhere, samples keep their columns, and a
# diverged loss is logged as it is.
DEFAULTS: dict[str, Any] = {
    "report_to": "none",
    "remove_unused_columns": False,
    "logging_nan_inf_filter": False,
    "save_strategy": "no",
    "logging_steps": 10,
}


Run = TypeVar("Run", bound=AnyRun)


def parse_recipe(settings: Mapping[str, Any], run_class: type[Run]) -> tuple[Run, TrainingArguments]:
    """Split the settings of a recipe into a run and training arguments.

    Args:
        settings: Flat mapping of fields.
        run_class: Which kind of run it is.

    Raises:
        ValueError: If a key belongs to neither, a required one is missing, a field has a value of another
            type, or batches are to be empty.
    """
    merged = {**DEFAULTS, "dataloader_pin_memory": torch.cuda.is_available(), **_checked_scalars(settings)}
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
    return _checked(run), arguments


def switches_of(run_class: type[AnyRun]) -> frozenset[str]:
    """Return the fields of a recipe that are true or false: as a flag, one of them needs no value."""
    hints = get_type_hints(TrainingArguments) | get_type_hints(run_class)
    return frozenset(name for name, hint in hints.items() if hint in (bool, bool | None))


def data_seed(arguments: TrainingArguments) -> int:
    """Return the seed of the order of the data: that of all, unless it has its own."""
    return arguments.seed if arguments.data_seed is None else arguments.data_seed


def _checked(run: Run) -> Run:
    """The run with every field of its declared type: a dataclass itself takes anything."""
    hints = get_type_hints(type(run))
    values = {
        field.name: _of_type(field.name, hints[field.name], getattr(run, field.name)) for field in fields(run)
    }
    return replace(run, **values)


def _checked_scalars(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings with numbers and switches of training as they are declared, before anything is loaded."""
    hints = get_type_hints(TrainingArguments)
    checked = dict(settings)
    for name in settings.keys() & hints.keys():
        if set(get_args(hints[name]) or (hints[name],)) <= SCALARS:
            checked[name] = _of_type(name, hints[name], settings[name])
    for name in BATCH_SIZES & checked.keys():
        if checked[name] < 1:
            raise ValueError(f"{name} must be at least 1, got {checked[name]}. Make it larger.")
    return checked


def _of_type(name: str, hint: Any, value: Any) -> Any:
    try:
        return TypeAdapter(hint).validate_python(value)
    except ValidationError as error:
        raise ValueError(
            f"{name} must be of the type of its field, got {value!r}. {error.errors()[0]['msg']}."
        ) from error


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
    is_flat = isinstance(settings, dict) and not any(
        isinstance(value, dict) and name not in MAPPINGS for name, value in settings.items()
    )
    if not is_flat:
        raise ValueError(
            f"a recipe must be a flat mapping of fields, got {path}. Write `field: value` lines."
        )
    return {
        name: float(value) if isinstance(value, str) and EXPONENT.fullmatch(value) else value
        for name, value in settings.items()
    }


def write_run_record(
    folder: str | Path,
    run: AnyRun,
    arguments: TrainingArguments,
    data: str | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write ``run.yaml`` beside a model: every setting, the seed, the versions and the commit.

    ``facts`` are what came of the run, such as its hours: they are recorded, and not compared at a resume.
    """
    record = (
        run_record(run, arguments, data)
        | dict(facts or {})
        | {
            "versions": {package: version(package) for package in RECORDED_PACKAGES},
            "git_commit": _git_commit(),
        }
    )
    (Path(folder) / RECORD_FILE).write_text(yaml.safe_dump(record, sort_keys=False), encoding="utf-8")


def run_record(run: AnyRun, arguments: TrainingArguments, data: str | None = None) -> dict[str, Any]:
    """Return the settings of a run, in the types that YAML has; ``data`` is the hash of what it trains on."""
    return {
        "kind": type(run).__name__,
        "data": data,
        "run": {key: list(v) if isinstance(v, tuple) else v for key, v in asdict(run).items()},
        "training": {name: getattr(arguments, name) for name in RECORDED_SETTINGS}
        | {
            "lr_scheduler_type": SchedulerType(arguments.lr_scheduler_type).value,
            "optim": OptimizerNames(arguments.optim).value,
            # Workers read a manifest in one order, however many they are, and a stream in another.
            "dataloader_num_workers": (
                None if getattr(run, "dataset", None) is None else arguments.dataloader_num_workers
            ),
        },
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
