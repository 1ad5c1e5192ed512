"""Read how a sentence-transformers folder makes vectors, as settings of a report encoder."""

import re
from pathlib import Path
from typing import Any

from .modeling_llm_files import path_inside, read_json

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
READING = "sentence_bert_config.json"
SETTINGS = "config_sentence_transformers.json"
# Every setting that a folder may have, with the values under which an encoder gives the same vectors. Any
# other setting is refused: it may change them.
Known = dict[str, list[Any] | None]
ANY = None
KNOWN_READING: Known = {
    "config_args": ANY,  # the dictionaries are read below
    "config_kwargs": ANY,
    "do_lower_case": [False],
    "document_length": [None],
    "max_seq_length": ANY,  # honored, as every length
    "modality_config": ANY,
    "model_args": ANY,
    "model_kwargs": ANY,
    "module_output_name": ["token_embeddings"],
    "processing_kwargs": ANY,
    "processor_kwargs": ANY,
    "query_expansion": [None],
    "query_length": [None],
    "tokenizer_args": ANY,
    "transformer_task": ["feature-extraction"],
    "unpad_inputs": ANY,  # for speed
}
KNOWN_MODALITY: Known = {"method": ["forward"], "method_output_name": ["last_hidden_state"]}
KNOWN_TEXT: Known = {
    "add_special_tokens": [True],
    "max_length": ANY,
    "padding": [True, "longest"],
    "return_tensors": ANY,
    "truncation": [True, "longest_first"],
}
KNOWN_CONFIG: Known = {"trust_remote_code": ANY}  # sentence-transformers ignores it, too
KNOWN_MODEL: Known = KNOWN_CONFIG | {"attn_implementation": ANY, "dtype": ANY, "torch_dtype": ANY}
KNOWN_TOKENIZER: Known = KNOWN_CONFIG | {"model_max_length": ANY, "padding_side": ANY, "use_fast": ANY}
# The second name of each is that of releases before 6.
KEYWORDS = {
    "config_kwargs": KNOWN_CONFIG,
    "config_args": KNOWN_CONFIG,
    "model_kwargs": KNOWN_MODEL,
    "model_args": KNOWN_MODEL,
    "processor_kwargs": KNOWN_TOKENIZER,
    "tokenizer_args": KNOWN_TOKENIZER,
}
KNOWN_SETTINGS: Known = {
    "__version__": ANY,
    "default_prompt_name": ANY,
    "model_type": ["SentenceTransformer"],
    "prompts": ANY,
    "requirements": ANY,
    "similarity_fn_name": ANY,  # compares vectors, and changes none
    "truncate_dim": ANY,
}


def is_st_folder(folder: Path) -> bool:
    """Whether sentence-transformers wrote it."""
    return (folder / "modules.json").is_file()


def st_backbone(folder: Path) -> Path:
    """Give the folder of the language model."""
    path: str = read_json(folder / "modules.json")[0]["path"]
    return path_inside(folder, path)


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
    pooling = read_json(path_inside(folder, modules[1]["path"]) / "config.json") or {}
    fields: dict[str, Any] = {"pooling": _pooling(pooling), "normalize": len(modules) == len(MODULES)}
    backbone = st_backbone(folder)
    reading = read_json(backbone / READING) or {}
    _check_reading(reading)
    limits = [_max_length(reading, read_json(backbone / "tokenizer_config.json") or {}), num_positions]
    known = [int(limit) for limit in limits if limit is not None and limit < UNLIMITED]
    fields |= {"max_length": min(known)} if known else {}
    settings = read_json(folder / SETTINGS) or {}
    _check_values(settings, KNOWN_SETTINGS)
    if settings.get("truncate_dim") is not None:
        fields["embedding_dim"] = settings["truncate_dim"]
    return fields | _prompts(settings, pooling, fields)


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
    """Refuse a Transformer module that does more than give the token states of bare texts."""
    _check_values(config, KNOWN_READING)
    for kind, settings in (config.get("modality_config") or {}).items():
        if kind != "text":  # "message" puts every string into the chat template
            raise ValueError(
                f"modality_config of a sentence-transformers folder must be of text alone, got {kind!r}: it "
                "reads texts as parts of a chat or not at all. Load it with sentence-transformers."
            )
        _check_values(settings, KNOWN_MODALITY, f"modality_config.{kind}")
    for name, known in KEYWORDS.items():
        _check_values(config.get(name) or {}, known, name)
    for kind, settings in (config.get("processing_kwargs") or {}).items():
        # What is for chats, images or sounds has no part in a text.
        if kind in ("common", "text"):
            _check_values(settings, KNOWN_TEXT, f"processing_kwargs.{kind}")


def _check_values(found: dict[str, Any], known: Known, place: str = "") -> None:
    for name, value in found.items():
        where = f"{place}.{name}" if place else name
        if name not in known:
            raise ValueError(
                f"settings of a sentence-transformers folder must be known, got {where} {value!r}. "
                "Load it with sentence-transformers."
            )
        allowed = known[name]
        if allowed is not None and value not in allowed:
            raise ValueError(
                f"{where} of a sentence-transformers folder must be {allowed[0]!r}, got {value!r}. "
                "Load it with sentence-transformers."
            )


def _max_length(reading: dict[str, Any], tokenizer: dict[str, Any]) -> int | None:
    """Tokens that sentence-transformers keeps; the setting that is closest to the call wins."""
    processing = reading.get("processing_kwargs") or {}
    limits = [
        *((processing.get(kind) or {}).get("max_length") for kind in ("common", "text")),
        *(
            (reading.get(name) or {}).get("model_max_length")
            for name in ("processor_kwargs", "tokenizer_args")
        ),
        reading.get("max_seq_length"),
        tokenizer.get("model_max_length"),
    ]
    return next((limit for limit in limits if limit is not None), None)


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
