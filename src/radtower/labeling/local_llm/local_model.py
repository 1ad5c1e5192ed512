"""Load a causal language model and its tokenizer from a folder, a GGUF file or the Hub; no pickles."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from radtower.labeling.pretrained.device import find_device
from radtower.labeling.pretrained.source import find_source
from radtower.labeling.pretrained.tokenizer import load_tokenizer
from radtower.labeling.pretrained.weights import load_weights


@dataclass(frozen=True, kw_only=True)
class LocalModel:
    """A causal language model in this process, in eval mode.

    Args:
        model: On its device.
        tokenizer: Of the model.
        model_id: Hub id, or the last part of a local path.
        weights: Commit of the Hub, or SHA-256 of the weight files.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    model_id: str
    weights: str

    @property
    def max_length(self) -> int | None:
        """Tokens that the model can read; None where its configuration names no limit."""
        limit: int | None = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return limit


def load_local_model(
    path: str | os.PathLike[str], *, dtype: str = "auto", device: str | None = None
) -> LocalModel:
    """Load a causal language model; remote code is not run.

    Args:
        path: Folder, ``.gguf`` file (dequantized; needs the extra ``local-llm``), or Hub id ``owner/name``.
        dtype: Name of a floating-point type of torch; ``"auto"`` is that of the source, float32 for GGUF.
        device: Of torch; None is the GPU where there is one, else the CPU.

    Raises:
        FileNotFoundError: If ``path`` reads like a local one and is none, or lacks files.
        ValueError: If ``dtype`` is no floating-point type, there is no such device, weights or tokenizer are
            missing or damaged, or it is another kind of model.
    """
    chosen, place = _check_dtype(dtype), find_device(device)
    source = find_source(path, takes_gguf=True)
    gguf: dict[str, Any] = {}
    folder = source
    if isinstance(source, Path) and source.is_file():
        folder, gguf = source.parent, {"gguf_file": source.name}
    model, missing = load_weights(AutoModelForCausalLM, folder, dtype=chosen, **gguf)
    if missing:
        raise ValueError(
            f"path must hold every weight of a causal language model, got {len(missing)} missing, such as "
            f"{missing[0]}. Point to a model with its language-model head."
        )
    return LocalModel(
        model=model.eval().to(place),
        tokenizer=load_tokenizer(folder, model.config, **gguf),
        model_id=source.name if isinstance(source, Path) else source,
        weights=_hash_weights(source) if isinstance(source, Path) else str(model.config._commit_hash),
    )


def _check_dtype(dtype: str) -> torch.dtype | str:
    if dtype == "auto":
        return dtype
    found = getattr(torch, dtype, None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise ValueError(
            f"dtype must be a floating-point type of torch or 'auto', got {dtype!r}. "
            "Take float32 or bfloat16."
        )
    return found


def _hash_weights(local: Path) -> str:
    """SHA-256 over the weight files, in the order of their names."""
    files = [local] if local.is_file() else sorted(local.glob("*.safetensors"))
    total = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()
