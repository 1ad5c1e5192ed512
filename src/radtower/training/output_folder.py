"""What an earlier run left in an output folder: nothing is mixed with it, and only the same run goes on."""

import json
import reprlib
import shutil
from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import yaml
from transformers import PreTrainedModel, TrainingArguments
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from radtower.training.arguments import RECORD_FILE, run_record
from radtower.training.runs import AnyRun

CHECKPOINTS = f"{PREFIX_CHECKPOINT_DIR}-[0-9]*"
MAX_SHOWN = 4  # differences in a message
DESCRIPTIONS = ("config.json", "preprocessor_config.json", "processor_config.json")
# Written by whoever saves, and no part of what the model or the processor does.
INCIDENTAL = {"_name_or_path", "architectures", "auto_map", "dtype", "torch_dtype", "transformers_version"}
# The Trainer copies these from the tokenizer when it begins to train.
INCIDENTAL |= {"bos_token_id", "eos_token_id", "pad_token_id"}
# Where things lie may differ: a cluster copies a cache to the disk of the node. So may what is said of them.
PLACES = {
    "data_name",
    "data_license",
    "manifest",
    "dataset",
    "processor",
    "reports",
    "cache",
    "labels",
    "gold",
    "llm",
    "pairs",
    "vision",
    "text",
    "pretrained",
    "feature_cache",
    "should_overwrite",
}
# What the Trainer takes from the settings when it resumes, so that a run can be prolonged or calmed.
ADJUSTABLE = {
    "num_train_epochs",
    "max_steps",
    "max_grad_norm",
    "bf16",
    "load_best_model_at_end",
    "metric_for_best_model",
}


def last_complete_checkpoint(folder: str | Path) -> Path:
    """Return the latest checkpoint in a training folder whose writing was not cut short.

    Raises:
        ValueError: If there is none.
    """
    found = {
        int(path.parent.name.rpartition("-")[2]): path.parent
        for path in Path(folder).glob(f"{CHECKPOINTS}/{TRAINER_STATE_NAME}")
    }
    if not found:
        raise ValueError(
            f"output_dir must hold a complete checkpoint to resume from, got none in {folder}. "
            "Start without resume_from_checkpoint, and with a save_strategy."
        )
    return found[max(found)]


def require_no_checkpoints(folder: str | Path) -> None:
    """Refuse to start a run where another left checkpoints: to resume would mean the later step of the two.

    Raises:
        ValueError: If there are some.
    """
    found = list(Path(folder).glob(CHECKPOINTS))
    if found:
        raise ValueError(
            f"output_dir must hold no checkpoint of an earlier run, got {len(found)} in {folder}. Resume "
            "that run with resume_from_checkpoint, delete it with should_overwrite, or choose another folder."
        )


def delete_checkpoints(folder: str | Path) -> None:
    """Delete the checkpoints of an earlier run."""
    for path in Path(folder).glob(CHECKPOINTS):
        shutil.rmtree(path)


def require_same_model(checkpoint: str | Path, model: PreTrainedModel, processor: Any = None) -> None:
    """Refuse to go on with weights of another model: the shapes may agree where the meaning does not.

    The findings of a classifier, for example, are only names: in another order they fit the same weights.

    Args:
        checkpoint: Folder of the weights.
        model: What is trained now.
        processor: What is saved with it: an image processor, a tokenizer, or both.

    Raises:
        ValueError: If the checkpoint has no configuration, or another one.
    """
    if not (Path(checkpoint) / DESCRIPTIONS[0]).is_file():
        raise ValueError(
            f"resume_from_checkpoint must be the folder of a checkpoint, got no {DESCRIPTIONS[0]} in "
            f"{checkpoint}. Name a folder such as {PREFIX_CHECKPOINT_DIR}-100."
        )
    with TemporaryDirectory() as folder:
        model.config.save_pretrained(folder)
        if processor is not None:
            processor.save_pretrained(folder)
        for name in DESCRIPTIONS:
            then, now = _read_description(Path(checkpoint) / name), _read_description(Path(folder) / name)
            _require_equal(checkpoint, then, now)


def require_same_run(
    checkpoint: str | Path, run: AnyRun, arguments: TrainingArguments, data: str | None = None
) -> None:
    """Refuse to go on with a run of other settings, except where data lie, how long, and how it is measured.

    The data may lie elsewhere, but their hash, where the data set has one, must be the same.

    Raises:
        ValueError: If the checkpoint has no record, or one of another run.
    """
    path = Path(checkpoint) / RECORD_FILE
    if not path.is_file():
        raise ValueError(
            f"a checkpoint must hold {RECORD_FILE} to be resumed, got none in {checkpoint}. "
            "Start again: it cannot be known which run it is of."
        )
    then = yaml.safe_load(path.read_text(encoding="utf-8"))
    now = run_record(run, arguments, data)
    for name in ("kind", "data"):
        _require_equal(checkpoint, {name: then.get(name)}, {name: now[name]})
    for section, ignored in (("run", PLACES), ("training", ADJUSTABLE)):
        _require_equal(
            checkpoint,
            {name: value for name, value in then[section].items() if name not in ignored},
            {name: value for name, value in now[section].items() if name not in ignored},
        )


def _require_equal(checkpoint: str | Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    before, after = _leaves(then), _leaves(now)
    differing = [name for name in sorted({*before, *after}) if before.get(name) != after.get(name)]
    if differing:
        changes = "; ".join(
            f"{name} {reprlib.repr(before.get(name))} there and {reprlib.repr(after.get(name))} now"
            for name in differing[:MAX_SHOWN]
        )
        others = f" and {len(differing) - MAX_SHOWN} more" if len(differing) > MAX_SHOWN else ""
        raise ValueError(
            f"a resumed run must be the run of its checkpoint, got {changes}{others} ({checkpoint}). "
            "Resume with the settings of that run, or start again in another folder."
        )


def _leaves(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by their path, such as ``id2label.0``."""
    found: dict[str, Any] = {}
    for name, value in settings.items():
        is_inner = isinstance(value, Mapping) and bool(value)
        found |= _leaves(value, f"{prefix}{name}.") if is_inner else {f"{prefix}{name}": value}
    return found


def _read_description(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    return dict(without_incidentals(json.loads(path.read_text(encoding="utf-8"))))


def without_incidentals(value: Any) -> Any:
    """Return a configuration without what says nothing about the vectors of its model."""
    if isinstance(value, dict):
        return {name: without_incidentals(v) for name, v in value.items() if name not in INCIDENTAL}
    return value
