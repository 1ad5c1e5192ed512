"""Read a causal language model as the decoder of a report encoder, strictly."""

import os
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModel, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

# Wrapping one of these would nest an encoder in an encoder, with a fresh random head around a trained one.
OWN_MODEL_TYPES = ("ct3d_vision", "llm_biencoder", "medclip")


def read_llm(
    path: str | os.PathLike[str], num_hidden_layers: int | None, dtype: torch.dtype
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Read the decoder, without its language-model head, and the tokenizer.

    Args:
        path: Model folder, Hub id, or a ``.gguf`` file, which is dequantized.
        num_hidden_layers: Keep only the lowest layers. None keeps all.
        dtype: Precision of the weights.

    Raises:
        ValueError: If ``path`` holds a model of this package, weights of the decoder are missing, or
            ``num_hidden_layers`` is not in 1..depth.
    """
    source: dict[str, Any] = {"pretrained_model_name_or_path": str(path)}
    if str(path).endswith(".gguf"):
        source = {"pretrained_model_name_or_path": str(Path(path).parent), "gguf_file": Path(path).name}
    model_type = AutoConfig.from_pretrained(**source).model_type
    if model_type in OWN_MODEL_TYPES:
        raise ValueError(
            f"path must hold a causal language model, got one of ours, {model_type}. "
            "Load it with AutoModel.from_pretrained."
        )
    decoder, report = AutoModel.from_pretrained(**source, dtype=dtype, output_loading_info=True)
    if report["missing_keys"]:
        raise ValueError(
            f"path must hold every weight of the decoder, got {len(report['missing_keys'])} missing, "
            f"such as {sorted(report['missing_keys'])[0]}. Point to a complete causal language model."
        )
    if num_hidden_layers is not None:
        if not 1 <= num_hidden_layers <= len(decoder.layers):
            raise ValueError(
                f"num_hidden_layers must be between 1 and {len(decoder.layers)}, got "
                f"{num_hidden_layers}. Leave it out to keep every layer."
            )
        decoder.layers = decoder.layers[:num_hidden_layers]
        decoder.config.num_hidden_layers = num_hidden_layers
        if getattr(decoder.config, "layer_types", None):  # one entry per layer: Qwen3, Gemma 3
            decoder.config.layer_types = decoder.config.layer_types[:num_hidden_layers]
    return decoder, AutoTokenizer.from_pretrained(**source)
