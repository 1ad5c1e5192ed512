"""Merge a LoRA adapter folder into a decoder, without the library that wrote it (arXiv 2106.09685)."""

import re
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from .modeling_llm_files import read_json, read_tensors, weight_files

ADAPTER_CONFIG = "adapter_config.json"
# What peft puts in front of the names of the model it wraps.
WRAPPED_PREFIX = "base_model.model."
FACTORS = (".lora_A.weight", ".lora_B.weight")
# Settings that are honored here, or that say nothing about the weights once training is over.
KNOWN_SETTINGS = frozenset(
    {
        "alpha_pattern",
        "auto_mapping",
        "base_model_name_or_path",
        "exclude_modules",
        "inference_mode",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "r",
        "rank_pattern",
        "revision",
        "target_modules",
        "task_type",
        "use_rslora",
    }
)
# Every other setting changes what is computed, unless it is off.
OFF: tuple[Any, ...] = (None, False, "none", {}, [])
# Initializations that leave the base as it was; the others subtract from it what they put into the factors.
PLAIN_INITIALIZATIONS = (None, True, False, "gaussian", "orthogonal")


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter and no model of its own.

    Raises:
        ValueError: If it holds both.
    """
    if not (folder / ADAPTER_CONFIG).is_file():
        return False
    if weight_files(folder):
        raise ValueError(
            f"path must hold a model or an adapter, got both in {folder}. Move {ADAPTER_CONFIG} away if the "
            "adapter is merged already, else the weights of the model."
        )
    return True


def base_of(folder: Path) -> str | Path:
    """Give the base model that an adapter names: a local folder, or what must be a Hub id.

    Raises:
        FileNotFoundError: If it names a local folder that is not there.
        ValueError: If it names none, or a relative folder that exists both beside the adapter and where the
            program runs.
    """
    name = read_json(folder / ADAPTER_CONFIG).get("base_model_name_or_path")
    advice = "Pass the base as path and this folder as adapters."
    if not name:
        raise ValueError(f"adapter must name its base model, got {name!r} in {folder}. {advice}")
    found = {path.resolve(): None for path in (folder / name, Path(name).expanduser()) if path.is_dir()}
    if len(found) > 1:
        raise ValueError(
            f"base of the adapter must be one folder, got {name!r}, which is both "
            f"{' and '.join(str(path) for path in found)}. {advice}"
        )
    if found:
        return next(iter(found))
    if name.startswith((".", "~")) or Path(name).is_absolute() or name.count("/") > 1:
        raise FileNotFoundError(f"base of the adapter must exist, got {name!r} in {folder}. {advice}")
    return str(name)


def check_adapter_has_base(model: PreTrainedModel) -> None:
    """Refuse to save an adapter of which nobody could tell the base: transformers saves nothing else then.

    Raises:
        ValueError: If there is an adapter, and the model was not loaded from a folder of its own.
    """
    if getattr(model, "_hf_peft_config_loaded", False) and not model.name_or_path:
        raise ValueError(
            "model must come from a saved folder to save its adapter alone, got one in memory only "
            f"({type(model).__name__}): configuration and head would be lost. Save it before add_adapter and "
            "load it again, or merge the adapter."
        )


@torch.no_grad()
def merge_adapter(decoder: nn.Module, folder: Path) -> None:
    """Add the low-rank update to every weight it belongs to, in place: W + scale * B A.

    Args:
        decoder: Without a language-model head.
        folder: ``adapter_config.json`` and ``adapter_model.safetensors``. The names in them may come from the
            decoder, or from a model with a head around it.

    Raises:
        FileNotFoundError: If there are no weights.
        ValueError: If the adapter does what plain LoRA does not, or its tensors are not exactly those of the
            layers it names.
    """
    config = read_json(folder / ADAPTER_CONFIG)
    _check_settings(config, folder)
    files = weight_files(folder, "adapter_model")
    if not files:
        raise FileNotFoundError(f"adapter must hold adapter_model.safetensors, got {folder}. Download it.")
    tensors = {name.removeprefix(WRAPPED_PREFIX): tensor for name, tensor in read_tensors(files).items()}
    # A decoder that was trained inside of a causal language model is called "model" there.
    prefix = "model." if any(name.startswith("model.") for name in tensors) else ""
    layers = {
        prefix + name: module for name, module in decoder.named_modules() if isinstance(module, nn.Linear)
    }
    targets = [name for name in layers if _is_target(name, config)]
    expected = {name + factor for name in targets for factor in FACTORS}
    wrong = {"missing": sorted(expected - tensors.keys()), "unused": sorted(tensors.keys() - expected)}
    found = [f"{len(names)} {kind}, such as {names[0]}" for kind, names in wrong.items() if names]
    if found or not targets:
        raise ValueError(
            f"adapter must hold two tensors for each of its {len(targets)} layers, got "
            f"{'; '.join(found) or 'none'} in {folder}. Use it with the base model it was trained on."
        )
    for name in targets:
        weight = layers[name].weight
        # A product rounded to half precision first would lose digits of the sum.
        precise = torch.promote_types(weight.dtype, torch.float32)
        down, up = (tensors[name + factor].to(precise) for factor in FACTORS)
        rank, scale = _rank_and_scale(name, config)
        shapes = (tuple(down.shape), tuple(up.shape))
        if shapes != ((rank, weight.shape[1]), (weight.shape[0], rank)):
            raise ValueError(
                f"adapter must fit its layers, got {shapes} for {name} of shape {tuple(weight.shape)} and "
                f"rank {rank}. Use it with the base model it was trained on."
            )
        weight.copy_(weight.to(precise) + scale * (up @ down))


def _check_settings(config: dict[str, Any], folder: Path) -> None:
    if config.get("peft_type") != "LORA":
        raise ValueError(
            f"adapter must be LoRA, got peft_type {config.get('peft_type')!r} in {folder}. "
            "Merge it with the library that made it."
        )
    strange = {
        name: value
        for name, value in config.items()
        if name not in KNOWN_SETTINGS and value not in OFF and name != "init_lora_weights"
    }
    if config.get("init_lora_weights", True) not in PLAIN_INITIALIZATIONS:
        strange["init_lora_weights"] = config["init_lora_weights"]
    for name, value in sorted(strange.items()):
        raise ValueError(
            f"adapter must be plain LoRA, got {name} {value!r} in {folder}. "
            "Merge it with the library that made it, and point to the result."
        )


def _is_target(name: str, config: dict[str, Any]) -> bool:
    """Whether an adapter changes a layer, by the rules of peft."""
    if config.get("exclude_modules") and _matches(config["exclude_modules"], name):
        return False
    wanted = config.get("layers_to_transform")
    if wanted is not None:
        pattern = config.get("layers_pattern") or r"[^.]*"
        patterns = [pattern] if isinstance(pattern, str) else pattern
        number = re.match(rf"(?:^|.*?\.)(?:{'|'.join(patterns)})\.(\d+)\.", name)
        if number is None or int(number[1]) not in ([wanted] if isinstance(wanted, int) else wanted):
            return False
    return _matches(config.get("target_modules") or [], name)


def _matches(rule: str | list[str], name: str) -> bool:
    if rule == "all-linear":
        return True
    if isinstance(rule, str):
        return re.fullmatch(rule, name) is not None
    return any(name == part or name.endswith(f".{part}") for part in rule)


def _rank_and_scale(name: str, config: dict[str, Any]) -> tuple[int, float]:
    def chosen(field: str, patterns: dict[str, Any]) -> Any:
        keys = [key for key in patterns if re.match(rf"(.*\.)?({key})$", name)]
        return patterns[keys[0]] if keys else config[field]

    rank = chosen("r", config.get("rank_pattern") or {})
    alpha = chosen("lora_alpha", config.get("alpha_pattern") or {})
    return rank, alpha / (rank**0.5 if config.get("use_rslora") else rank)
