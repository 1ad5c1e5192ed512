"""Read how a sentence-transformers folder makes vectors, as settings of a report encoder."""

import re
from pathlib import Path
from typing import Any

from .modeling_llm_files import read_json

MODULES = ["Transformer", "Pooling", "Normalize"]  # in this order; the last one may be missing
POOLINGS = {"mean": "mean", "lasttoken": "last_token", "cls": "first_token"}
# Before release 6 a folder had one switch per pooling.
SWITCHES = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_lasttoken": "lasttoken",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_weightedmean_tokens": "weightedmean",
}
QWEN_PROMPT = re.compile(r"Instruct: .*\nQuery: ?")
UNLIMITED = 10**6  # what a tokenizer writes for "no limit" is larger


def is_st_folder(folder: Path) -> bool:
    """Whether sentence-transformers wrote it."""
    return (folder / "modules.json").is_file()


def st_backbone(folder: Path) -> Path:
    """Give the folder of the language model."""
    path: str = read_json(folder / "modules.json")[0]["path"]
    return folder / path


def st_fields(folder: Path, num_positions: int | None) -> dict[str, Any]:
    """Give the fields of the encoder's configuration that the folder decides on.

    Args:
        folder: With ``modules.json``.
        num_positions: Positions of the decoder; None where it has no limit. Longer texts are cut there.

    Raises:
        ValueError: If it pools, reads or prompts in a way that an encoder does not, or has other modules.
    """
    modules = read_json(folder / "modules.json")
    _check_modules([module["type"].rpartition(".")[2] for module in modules])
    pooling = read_json(folder / modules[1]["path"] / "config.json") or {}
    fields: dict[str, Any] = {"pooling": _pooling(pooling), "normalize": len(modules) == len(MODULES)}
    backbone = st_backbone(folder)
    reading = read_json(backbone / "sentence_bert_config.json") or {}
    _check_reading(reading)
    tokenizer = read_json(backbone / "tokenizer_config.json") or {}
    limits = [reading.get("max_seq_length") or tokenizer.get("model_max_length"), num_positions]
    known = [int(limit) for limit in limits if limit is not None and limit < UNLIMITED]
    fields |= {"max_length": min(known)} if known else {}
    return fields | _prompts(read_json(folder / "config_sentence_transformers.json") or {}, pooling, fields)


def _check_modules(kinds: list[str]) -> None:
    for position, kind in enumerate(kinds):
        if position >= len(MODULES) or kind != MODULES[position]:
            raise ValueError(
                "modules of a sentence-transformers folder must be Transformer, Pooling and maybe Normalize, "
                f"got {kind} at position {position}. Load it with sentence-transformers."
            )
    if len(kinds) < 2:
        raise ValueError(
            f"modules of a sentence-transformers folder must end in a pooling, got {kinds}. "
            "Load it with sentence-transformers."
        )


def _pooling(config: dict[str, Any]) -> str:
    mode = config.get("pooling_mode") or [name for key, name in SWITCHES.items() if config.get(key)] or "mean"
    if isinstance(mode, list) and len(mode) == 1:
        mode = mode[0]
    if not isinstance(mode, str) or mode not in POOLINGS:
        raise ValueError(
            f"pooling of a sentence-transformers folder must be one of {sorted(POOLINGS)}, got {mode!r}. "
            "Load it with sentence-transformers."
        )
    return POOLINGS[mode]


def _check_reading(config: dict[str, Any]) -> None:
    """Refuse a Transformer module that does more than give the token states."""
    expected = {
        "do_lower_case": False,
        "transformer_task": "feature-extraction",
        "module_output_name": "token_embeddings",
        "query_expansion": None,
    }
    text = (config.get("modality_config") or {}).get("text", {})
    found = config | {"method_output_name": text.get("method_output_name", "last_hidden_state")}
    for name, value in (expected | {"method_output_name": "last_hidden_state"}).items():
        if found.get(name, value) not in (value, [value]):
            raise ValueError(
                f"{name} of a sentence-transformers folder must be {value!r}, got {found[name]!r}. "
                "Load it with sentence-transformers."
            )


def _prompts(config: dict[str, Any], pooling: dict[str, Any], fields: dict[str, Any]) -> dict[str, Any]:
    prompts = {name: prompt for name, prompt in (config.get("prompts") or {}).items() if prompt}
    found: dict[str, Any] = {}
    templates = {prompt for prompt in prompts.values() if QWEN_PROMPT.fullmatch(prompt)}
    if templates:
        end = next(iter(templates)).rpartition("\n")[2]
        found["instruction_template"] = "Instruct: {instruction}\n" + end
    default = prompts.get(config.get("default_prompt_name") or "")
    if default:
        if pooling.get("include_prompt", True) and fields["pooling"] != "last_token":
            raise ValueError(
                "default prompt of a sentence-transformers folder must not be pooled, got "
                f"{config['default_prompt_name']!r} with pooling {fields['pooling']!r}. Load it with "
                "sentence-transformers."
            )
        found["text_prefix"] = default
    return found
