"""The files with which sentence-transformers gives the vectors of our ``encode``."""

import json
import logging
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer

logger = logging.getLogger(__name__)

# Our poolings that sentence-transformers has, too, by the names of its oldest format: every reader knows it.
POOLING_KEYS = {
    "mean": "pooling_mode_mean_tokens",
    "last_token": "pooling_mode_lasttoken",
    "first_token": "pooling_mode_cls_token",
}
ST_FILES = ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json")
ST_FOLDERS = ("1_Pooling", "2_Normalize")
# The first release whose Transformer module may call a method by name.
LATENT_REQUIREMENTS = {"sentence-transformers": ">=6.2"}
PROMPT_NAME = "text"
# Any of these will do for padding, which is masked. A word of the vocabulary would no longer be read as text.
PADDING_TOKENS = ("eos_token", "bos_token", "unk_token")


def has_st_files(config: dict[str, Any]) -> bool:
    """Whether sentence-transformers can give the vectors of a model: of an encoder, not of one with a head.

    It leaves a prompt out of the pooling by the number of tokens that the prompt has alone. Where the
    tokenizer glues its end to the first word of the text, that word would be lost, and it may be "no".
    """
    is_encoder = config.get("architectures") == ["LLMBiEncoder"]
    if is_encoder and config.get("prompt_padding") == "legacy_middle" and _num_prompt_tokens(config):
        logger.warning(
            "prompt_padding is 'legacy_middle', with which a vector depends on the batch, and "
            "sentence-transformers makes batches of its own: the export has no files for it. Save the model "
            "with config.prompt_padding = 'contiguous' to have them."
        )
        return False
    return is_encoder and (not config.get("text_prefix") or config["pooling"] == "last_token")


def set_padding_token(folder: Path) -> bool:
    """Let one of the special tokens pad where the tokenizer names none; our own ``encode`` needs none.

    Returns:
        Whether there is a token to pad with, without which sentence-transformers refuses two texts.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if tokenizer.pad_token is not None:
        return True
    for name in PADDING_TOKENS:
        token = getattr(tokenizer, name)
        if token is not None:
            path = folder / "tokenizer_config.json"
            _write_json(path, json.loads(path.read_text(encoding="utf-8")) | {"pad_token": str(token)})
            return True
    logger.warning(
        "The tokenizer has no special token to pad with: the export has no files for sentence-transformers. "
        "Give the tokenizer a pad token, and export again."
    )
    return False


def has_own_prompts(folder: Path, config: dict[str, Any]) -> bool:
    """Whether sentence-transformers pools more than our ``encode`` does where a text has an instruction.

    It leaves out the prompt, and we the special tokens, too: of these it pools the one behind the text.
    """
    ids = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)("a", return_special_tokens_mask=True)
    return config["pooling"] in ("mean", "latent_attention") and bool(ids["special_tokens_mask"][-1])


def write_st_files(folder: Path, config: dict[str, Any]) -> None:
    """Write module list, pooling and prompts beside the weights of an encoder.

    A pooling that sentence-transformers has is left to it, so that other runtimes that read these files
    agree. For any other vector (latent attention, a Matryoshka cut) it calls the model, which pools.

    Args:
        folder: Export folder with weights and tokenizer.
        config: Content of ``config.json``.
    """
    key = POOLING_KEYS.get(config["pooling"])
    is_pooled_there = key is not None and config.get("embedding_dim") is None
    transformer: dict[str, Any] = {
        "max_seq_length": config["max_length"] - _num_prompt_tokens(config),
        "do_lower_case": False,
    }
    settings: dict[str, Any] = {"model_type": "SentenceTransformer", "similarity_fn_name": "cosine"}
    prefix = config.get("text_prefix", "")
    settings |= {"prompts": {PROMPT_NAME: prefix}, "default_prompt_name": PROMPT_NAME} if prefix else {}
    modules = [("", "Transformer")]
    if is_pooled_there:
        modules.append(("1_Pooling", "Pooling"))
        # The last token is behind any prompt; leaving that out could only lose it, see has_st_files.
        keeps_prompt = config["pooling"] == "last_token"
        width = config["text_config"]["hidden_size"]
        pooling = {"word_embedding_dimension": width, "include_prompt": keeps_prompt}
        pooling |= {name: name == key for name in POOLING_KEYS.values()}
        _write_json(folder / "1_Pooling" / "config.json", pooling)
        if config.get("normalize"):
            modules.append(("2_Normalize", "Normalize"))
            _write_json(folder / "2_Normalize" / "config.json", {})
    else:
        call = {"method": "forward_prompted", "method_output_name": "pooler_output"}
        transformer |= {"modality_config": {"text": call}, "module_output_name": "sentence_embedding"}
        settings["requirements"] = LATENT_REQUIREMENTS
    entries = [
        {"idx": idx, "name": str(idx), "path": path, "type": f"sentence_transformers.models.{name}"}
        for idx, (path, name) in enumerate(modules)
    ]
    for name, content in zip(ST_FILES, (entries, transformer, settings), strict=True):
        _write_json(folder / name, content)


def is_st_folder(path: Path) -> bool:
    """Whether it is one of the folders written here, and holds nothing else."""
    return path.name in ST_FOLDERS and [file.name for file in path.iterdir()] == ["config.json"]


def _num_prompt_tokens(config: dict[str, Any]) -> int:
    return len(config.get("hard_prompt_ids") or []) + int(config.get("num_soft_tokens", 0))


def _write_json(path: Path, content: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
